//! The table of time and memory.

use fisher_examples::device::Backend;
use serde_json::json;

use crate::Outcome;
use crate::cases::{Case, Shape, Visitor};
use crate::memory::{accumulators, peak};
use crate::names::name;
use crate::rounds::{Taken, measure};
use crate::subject::Subject;
use crate::ways::Way;

/// Measures all ways that were asked for, and prints a row for each.
#[derive(Debug)]
pub(crate) struct Times<'a> {
    backend: Backend,
    asked: &'a [Way],
    rounds: usize,
    pub(crate) quick: bool,
    /// Whether to measure memory.
    pub(crate) memory: bool,
    /// A line of JSON for each row.
    pub(crate) lines: Vec<serde_json::Value>,
}

impl<'a> Times<'a> {
    pub(crate) fn new(backend: Backend, asked: &'a [Way], rounds: usize) -> Self {
        Self {
            backend,
            asked,
            rounds,
            quick: false,
            memory: true,
            lines: Vec::new(),
        }
    }

    /// What the table is of, and its head.
    pub(crate) fn head(&self) -> String {
        let what = match self.quick {
            true => "One round of small shapes: whether it runs, not how fast.".to_owned(),
            false => format!(
                "Seconds for a batch, medians of {} rounds (3 of the loop) in which the ways took turns, and × forward \
                 and backward of the same batch. Peak memory is a process's own; its × leaves out what the result takes.",
                self.rounds
            ),
        };
        format!(
            "{what}\n\n\
             | case           | way         |  first s |  seconds |     × |  peak MB |    × |\n\
             |----------------|-------------|---------:|---------:|------:|---------:|-----:|"
        )
    }
}

impl Visitor for Times<'_> {
    fn visit<M: Subject>(&mut self, at: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome {
        let (case, shape) = at;
        let ways = Way::of::<M>(self.asked);
        let taken = measure(model, batch, &ways, self.rounds)?;
        // Of a device with memory of its own the host's says nothing.
        let on_host = matches!(self.backend, Backend::Flex | Backend::Ndarray);
        let mut plain_peak = None;
        for Taken {
            way,
            first,
            seconds,
            ratio,
            rounds,
        } in taken
        {
            let peak = match on_host && self.memory {
                true => peak(self.backend, self.quick, case, way)?,
                false => None,
            };
            let accumulators = accumulators(way, model, batch)? as f64;
            let beyond = peak.map(|peak| peak - accumulators);
            plain_peak = plain_peak.or(beyond);
            let peak_ratio = beyond.zip(plain_peak).map(|(way, plain)| way / plain);
            println!(
                "| {:<14} | {:<11} | {first:>8.4} | {seconds:>8.4} | {ratio:>5.2} | {:>8} | {:>4} |",
                name(case),
                name(way),
                peak.map_or("—".into(), |peak| format!("{:.0}", peak / 1e6)),
                peak_ratio.map_or("—".into(), |ratio| format!("{ratio:.2}")),
            );
            self.lines.push(json!({
                "case": name(case),
                "shape": shape,
                "way": name(way),
                "device": name(self.backend),
                "first_seconds": first,
                "seconds": seconds,
                "ratio": ratio,
                "rounds": rounds,
                "peak_bytes": peak,
                "accumulator_bytes": accumulators,
                "peak_ratio_beyond_accumulators": peak_ratio,
            }));
        }
        Ok(())
    }
}
