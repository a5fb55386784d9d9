//! Kernels that a batch launches, and bytes that it holds, on a device of CubeCL.

use burn::tensor::Device;
use serde_json::json;

use crate::Outcome;
use crate::cases::{Case, Shape, Visitor};
use crate::cube::{Cube, Launched};
use crate::names::name;
use crate::subject::Subject;
use crate::ways::{Way, runner};

/// Counts what all ways that were asked for launch, and prints a row for each.
pub(crate) struct Launches<'a> {
    cube: Cube,
    asked: &'a [Way],
    batches: usize,
    /// A line of JSON for each row.
    pub(crate) lines: Vec<serde_json::Value>,
}

impl<'a> Launches<'a> {
    /// # Errors
    /// `device` is none of CubeCL's.
    pub(crate) fn new(device: &Device, asked: &'a [Way], batches: usize) -> Outcome<Self> {
        let cube = Cube::of(device).ok_or(
            "kernels are counted on devices of CubeCL: --device wgpu, cuda or cpu, in a program built with that feature",
        )?;
        Ok(Self {
            cube,
            asked,
            batches,
            lines: Vec::new(),
        })
    }

    /// What the table is of, and its head.
    pub(crate) fn head(&self) -> String {
        format!(
            "Launches for a batch, the mean of {} batches after two others, and × those of forward and backward. From time \
             to time a sample is computed by itself and compared, so batches differ. Held: bytes in use on the device \
             after them (weights, batch and result). More: the most in use in the meantime, looked at before every launch, \
             beyond what was held before.\n\n\
             | case           | way         | launches | fewest |   most |     × | kernels |  held MB |  more MB |\n\
             |----------------|-------------|---------:|-------:|-------:|------:|--------:|---------:|---------:|",
            self.batches
        )
    }
}

impl Visitor for Launches<'_> {
    fn visit<M: Subject>(&mut self, at: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome {
        let (case, shape) = at;
        let sync = || model.devices().iter().try_for_each(Device::sync);
        let mut plain = None;
        for way in Way::of::<M>(self.asked) {
            let mut run = runner(way, model, batch)?;
            let mut run = || -> Outcome {
                run()?;
                Ok(sync()?)
            };
            // What is done once, and what the second batch makes room for.
            run()?;
            run()?;
            let before = self.cube.in_use();
            let mut batches = Vec::new();
            for _ in 0..self.batches {
                batches.push(self.cube.watch(&mut run)?);
            }
            let held = self.cube.in_use();
            let launches = || batches.iter().map(|batch: &Launched| batch.launches);
            let mean = launches().sum::<usize>() as f64 / self.batches as f64;
            let ratio = mean / *plain.get_or_insert(mean);
            let (fewest, most) = (launches().min().unwrap_or(0), launches().max().unwrap_or(0));
            let kernels = batches.iter().map(|batch| batch.kernels).max();
            let more = batches.iter().map(|batch| batch.most).max();
            let more = more.unwrap_or(0).saturating_sub(before);
            println!(
                "| {:<14} | {:<11} | {mean:>8.1} | {fewest:>6} | {most:>6} | {ratio:>5.2} | {:>7} | {:>8.1} | {:>8.1} |",
                name(case),
                name(way),
                kernels.unwrap_or(0),
                held as f64 / 1e6,
                more as f64 / 1e6,
            );
            self.lines.push(json!({
                "case": name(case),
                "shape": shape,
                "way": name(way),
                "batches": self.batches,
                "launches": mean,
                "fewest_launches": fewest,
                "most_launches": most,
                "kernels": kernels,
                "held_bytes": held,
                "more_bytes": more,
            }));
        }
        Ok(())
    }
}
