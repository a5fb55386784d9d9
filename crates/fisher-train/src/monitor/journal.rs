//! The captures of a run beside its checkpoints, each written once.
//!
//! Checkpoints say how far they go in files `history-N.jsonl` that are only added to: two lines a
//! capture, its reading and its samples by task. A run that goes on from a checkpoint begins another
//! file, since the rest of the last one is other checkpoints'.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use fisher_core::sample::SampleRecord;
use serde::{Deserialize, Serialize};

use super::folder::{failed, malformed};
use super::lines::Lines;
use crate::error::Result;

/// By task.
pub(crate) type Samples = BTreeMap<String, Vec<SampleRecord>>;

/// The first captures of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    /// The number of the file.
    pub(super) file: u64,
    captures: u64,
    bytes: u64,
}

/// What was captured, and how much of it is written.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    spans: Vec<Span>,
    /// The file of the last span, once this run has one.
    file: Option<Lines>,
    /// What is not written yet.
    pending: Vec<(String, Samples)>,
}

impl Journal {
    /// A capture is to be written with the next checkpoint.
    pub(super) fn note(&mut self, reading: String, samples: Samples) {
        self.pending.push((reading, samples));
    }

    /// Write what is not written yet. `kept` are the files that checkpoints speak of, where that is
    /// known: others are those of runs that are gone.
    ///
    /// # Errors
    /// [`fisher_core::Error::Io`]. Checkpoints written before are as good as they were.
    pub(super) fn write(
        &mut self,
        folder: &Path,
        kept: impl FnOnce() -> Option<BTreeSet<u64>>,
    ) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let numbers = numbers(folder)?;
                let number = numbers.last().map_or(0, |last| last + 1);
                let kept = kept();
                let ours = |n: u64| self.spans.iter().any(|span| span.file == n);
                let gone =
                    |n: &&u64| kept.as_ref().is_some_and(|kept| !kept.contains(n)) && !ours(**n);
                for number in numbers.iter().filter(gone) {
                    let path = path(folder, *number);
                    std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
                }
                let path = path(folder, number);
                let file = Lines::create(&path).map_err(|e| failed(&path, e))?;
                self.spans.push(Span {
                    file: number,
                    captures: 0,
                    bytes: 0,
                });
                self.file.insert(file)
            }
        };
        let Some(span) = self.spans.last_mut() else {
            return Ok(()); // a file has its span
        };
        let path = path(folder, span.file);
        let mut lines = Vec::new();
        for (reading, samples) in &self.pending {
            let samples = serde_json::to_string(samples);
            let samples = samples.map_err(|e| malformed(&path, e))?;
            lines.extend([reading.clone(), samples]);
        }
        file.append_synced(&lines).map_err(|e| failed(&path, e))?;
        span.captures += self.pending.len() as u64;
        span.bytes = file.length();
        self.pending.clear();
        Ok(())
    }

    /// What is written.
    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The readings, line by line, and samples of the captures in `spans`.
    ///
    /// # Errors
    /// [`fisher_core::Error::Io`] when a file cannot be read, [`fisher_core::Error::Format`] when
    /// it is not as long as it was.
    pub(super) fn read(folder: &Path, spans: Vec<Span>) -> Result<(Self, Vec<String>, Samples)> {
        let (mut readings, mut samples) = (Vec::new(), Samples::new());
        for span in &spans {
            let path = path(folder, span.file);
            let file = std::fs::File::open(&path).map_err(|e| failed(&path, e))?;
            let mut lines = BufReader::new(file.take(span.bytes)).lines();
            let mut captures = 0;
            let mut bytes = 0;
            while let Some(reading) = lines.next() {
                let reading = reading.map_err(|e| failed(&path, e))?;
                let of_capture = lines.next().transpose().map_err(|e| failed(&path, e))?;
                let of_capture = of_capture.unwrap_or_default();
                bytes += (reading.len() + of_capture.len() + 2) as u64;
                let of_capture: Samples =
                    serde_json::from_str(&of_capture).map_err(|e| malformed(&path, e))?;
                for (task, of_task) in of_capture {
                    samples.entry(task).or_default().extend(of_task);
                }
                readings.push(reading);
                captures += 1;
            }
            if (captures, bytes) != (span.captures, span.bytes) {
                let reason = format!(
                    "it has {captures} captures in {bytes} bytes; the checkpoint speaks of {} in {}",
                    span.captures, span.bytes
                );
                return Err(malformed(&path, reason));
            }
        }
        let journal = Self {
            spans,
            ..Self::default()
        };
        Ok((journal, readings, samples))
    }
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("history-{number}.jsonl"))
}

/// The numbers of the files in a folder.
fn numbers(folder: &Path) -> Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(|e| failed(folder, e))? {
        let name = entry.map_err(|e| failed(folder, e))?.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix("history-");
        let number = number.and_then(|name| name.strip_suffix(".jsonl"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(numbers)
}
