//! Kernels that a batch launches, and bytes that it holds, on a device of CubeCL.

use burn::tensor::Device;
use serde_json::json;

use crate::Outcome;
use crate::cases::{Case, Shape, Visitor};
use crate::cube::{Cube, Launched};
use crate::names::name;
use crate::subject::Subject;
use crate::ways::{Way, runner};

pub(crate) const HEAD: &str = "\
Launches of the third batch of each way, and × those of forward and backward. Held: bytes in use on the device after it \
(weights, batch and result). More: the most in use while it ran, looked at before every launch, beyond what was held \
before it.

| case           | way         | launches |     × | kernels |  held MB |  more MB |
|----------------|-------------|---------:|------:|--------:|---------:|---------:|";

/// Counts what all ways that were asked for launch, and prints a row for each.
pub(crate) struct Launches<'a> {
    cube: Cube,
    asked: &'a [Way],
    /// A line of JSON for each row.
    pub(crate) lines: Vec<serde_json::Value>,
}

impl<'a> Launches<'a> {
    pub(crate) fn new(device: &Device, asked: &'a [Way]) -> Outcome<Self> {
        let cube = Cube::of(device).ok_or(
            "kernels are counted on devices of CubeCL: --device wgpu, cuda or cpu, in a program built with that feature",
        )?;
        Ok(Self {
            cube,
            asked,
            lines: Vec::new(),
        })
    }
}

impl Visitor for Launches<'_> {
    fn visit<M: Subject>(&mut self, at: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome {
        let (case, shape) = at;
        let sync = || model.devices().iter().try_for_each(Device::sync);
        let mut plain = None;
        for way in Way::of::<M>(self.asked) {
            let mut run = runner(way, model, batch)?;
            // What is done once, and what the second batch makes room for.
            for _ in 0..2 {
                run()?;
                sync()?;
            }
            let before = self.cube.in_use();
            let Launched {
                launches,
                kernels,
                most,
            } = self.cube.watch(|| {
                run()?;
                Ok(sync()?)
            })?;
            let held = self.cube.in_use();
            drop(run);
            let more = most.saturating_sub(before);
            let ratio = launches as f64 / *plain.get_or_insert(launches) as f64;
            println!(
                "| {:<14} | {:<11} | {launches:>8} | {ratio:>5.2} | {kernels:>7} | {:>8.1} | {:>8.1} |",
                name(case),
                name(way),
                held as f64 / 1e6,
                more as f64 / 1e6,
            );
            self.lines.push(json!({
                "case": name(case),
                "shape": shape,
                "way": name(way),
                "launches": launches,
                "kernels": kernels,
                "held_bytes": held,
                "more_bytes": more,
            }));
        }
        Ok(())
    }
}
