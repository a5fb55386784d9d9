//! The same cases in PyTorch, by a script of its own.

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Outcome;
use crate::cases::{Case, Shape};
use crate::names::name;

/// What else to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    /// PyTorch 2
    Python,
}

/// What a library took for one way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theirs {
    pub(crate) seconds: f64,
    /// To PyTorch's forward and backward.
    pub(crate) ratio: f64,
}

/// What the script found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By library, case and way.
    pub(crate) figures: HashMap<(String, String, String), Theirs>,
    /// What is not there, and why.
    pub(crate) remarks: Vec<String>,
    /// Its lines.
    pub(crate) lines: Vec<Value>,
}

/// A line of the script.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Figure {
        library: String,
        case: String,
        way: String,
        seconds: f64,
        ratio: f64,
    },
    Remark {
        remark: String,
    },
}

/// A Python, and the device that its PyTorch computes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Python<'a> {
    pub(crate) program: &'a str,
    pub(crate) device: &'a str,
}

impl Python<'_> {
    /// What PyTorch says of itself.
    ///
    /// # Errors
    /// There is no such Python, or no PyTorch in it.
    pub(crate) fn torch(self) -> Outcome<String> {
        self.run(json!({"threads": threads(), "device": self.device}))
    }

    /// Seconds and ratios of `cases`, in a process of its own.
    pub(crate) fn measure(
        self,
        cases: &[(Case, Shape)],
        rounds: usize,
        seed: u64,
    ) -> Outcome<Found> {
        let cases = cases.iter().map(|&(case, shape)| -> Outcome<Value> {
            let mut value = serde_json::to_value(shape)?;
            value["case"] = json!(name(case));
            Ok(value)
        });
        let output = self.run(json!({
            "threads": threads(),
            "device": self.device,
            "rounds": rounds,
            "seed": seed,
            "cases": cases.collect::<Outcome<Vec<_>>>()?,
        }))?;
        let mut found = Found::default();
        // The first line is PyTorch's word of itself.
        for line in output.lines().skip(1) {
            match serde_json::from_str(line)? {
                Line::Figure {
                    library,
                    case,
                    way,
                    seconds,
                    ratio,
                } => {
                    let figure = Theirs { seconds, ratio };
                    found.figures.insert((library, case, way), figure);
                    found.lines.push(serde_json::from_str(line)?);
                }
                Line::Remark { remark } => found.remarks.push(remark),
            }
        }
        Ok(found)
    }

    /// Run the script with `what` on its standard input; what it printed.
    fn run(self, what: Value) -> Outcome<String> {
        let mut child = Command::new(self.program)
            .args(["-c", include_str!("cases.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                format!(
                    "{} does not run: {error}; --python names another",
                    self.program
                )
            })?;
        let written = child
            .stdin
            .take()
            .map(|mut input| input.write_all(what.to_string().as_bytes()));
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().into());
        }
        written.transpose()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// As many as are used here.
fn threads() -> usize {
    rayon::current_num_threads()
}
