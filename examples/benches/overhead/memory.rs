//! Memory of the host that a way takes.

use std::process::Command;

use fisher_cli::memory::resident;
use fisher_core::factors::FactorsConfig;
use fisher_core::model::Catalogue;
use fisher_examples::device::Backend;
use fisher_train::batch::SampleBatch;

use crate::Outcome;
use crate::cases::{Case, Shape, Visitor};
use crate::names::name;
use crate::subject::Subject;
use crate::ways::{Way, runner};

/// Runs the named ways and prints the most that the process has held.
#[derive(Debug)]
pub(crate) struct Peak<'a> {
    ways: &'a [Way],
}

impl<'a> Peak<'a> {
    pub(crate) fn new(ways: &'a [Way]) -> Self {
        Self { ways }
    }
}

impl Visitor for Peak<'_> {
    fn visit<M: Subject>(&mut self, _: (Case, Shape), model: &M, batch: &M::Batch) -> Outcome {
        for &way in self.ways {
            let mut run = runner(way, model, batch)?;
            run()?;
            run()?;
        }
        println!("{}", resident("VmHWM:").unwrap_or_default() * 1e9);
        Ok(())
    }
}

/// Peak memory in bytes of a process that does nothing else, where the system tells.
pub(crate) fn peak(backend: Backend, quick: bool, case: Case, way: Way) -> Outcome<Option<f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--peak", "--case", &name(case), "--way", &name(way)]);
    command.args(["--device", &name(backend)]);
    if quick {
        command.arg("--quick");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let peak: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    Ok((peak > 0.0).then_some(peak))
}

/// Bytes that a way's result takes: they are not overhead.
pub(crate) fn accumulators<M: Subject>(way: Way, model: &M, batch: &M::Batch) -> Outcome<usize> {
    let catalogue = Catalogue::of(model)?;
    let elements = |only: &str| -> usize {
        let parameters = catalogue.parameters().iter();
        let parameters = parameters.filter(|p| p.path().contains(only));
        parameters.map(|p| p.elements()).sum()
    };
    Ok(match way {
        Way::Plain | Way::Factors | Way::Grouped | Way::Ghost => 0,
        Way::Mean => 8 * elements(""),
        Way::Loop | Way::Elementwise | Way::Sketch | Way::Corrections => 16 * elements(""),
        Way::Kronecker | Way::Eigenvectors => {
            let factors = FactorsConfig::new().init(model)?;
            let sides = factors.parameters().map(|(_, shape)| {
                let rows = shape.first().copied().unwrap_or(1);
                let others: usize = shape.iter().skip(1).product();
                rows * rows + others * others
            });
            8 * sides.sum::<usize>()
        }
        // Gradients of one batch, in float32.
        Way::Store => 4 * elements("mha") * batch.len(),
    })
}
