//! The diagonal Fisher in the bases of Kronecker factors, as a sink of gradients.

use std::collections::BTreeMap;

use burn::tensor::Device;
use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::grouping::HeadLayout;
use fisher_core::kind::FisherKind;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};

use super::operator::Kronecker;
use super::rotation::Rotation;
use crate::error::{Error, Result};

/// The corrected eigenvalues of EKFAC, `s_kl = (1/n) Σ_i (u_kᵀ g_i v_l)² / T_i`, of one task.
///
/// [`Statistics`] of rotated gradients: with their own standard errors, and merged as those are.
#[derive(Debug, Clone)]
pub struct Corrections {
    task: String,
    rotations: BTreeMap<String, Rotation>,
    statistics: Statistics,
}

impl Corrections {
    fn new(kronecker: &Kronecker, device: &Device, errors: bool) -> Result<Self> {
        let device = device.clone().without_autodiff();
        let parameters = kronecker.blocks.iter().map(|(path, block)| {
            // Eigenvectors have no roles.
            let [rows, columns] = block.sides();
            Parameter::new(
                path,
                [rows, columns],
                Role::Matrix,
                Orientation::InputOutput,
            )
        });
        let catalogue = Catalogue::new(parameters.collect())?;
        let config = StatisticsConfig::new()
            .with_grouped(false)
            .with_variance(errors)
            .with_kind(kronecker.provenance.kind);
        let model = kronecker.rotated_model();
        let statistics = config.init_for(&catalogue, &HeadLayout::none(), model, &device)?;
        let rotations = kronecker.blocks.iter();
        let rotations =
            rotations.map(|(path, block)| (path.clone(), Rotation::new(block, &device)));
        Ok(Self {
            task: kronecker.task.clone(),
            rotations: rotations.collect(),
            statistics,
        })
    }

    /// The eigenvalues with their errors: elements of statistics, `[first axis, all others]`.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Take in what others have seen of the same factors: other samples.
    ///
    /// # Errors
    /// Those of [`Statistics::merge`], also when the factors are others.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        Ok(self.statistics.merge(other.statistics)?)
    }

    /// `s_kl` of the parameter at `path`, `[first axis, all others]`.
    ///
    /// # Errors
    /// [`Error::NoSamples`] when none was seen, [`Error::Keys`] when there are no factors of it.
    pub fn eigenvalues(&self, path: &str) -> Result<Vec<f64>> {
        let no_samples = || Error::no_samples(&self.task);
        let mut tasks = self.statistics.tasks();
        if !tasks.any(|task| task == self.task) {
            return Err(no_samples());
        }
        if !self.rotations.contains_key(path) {
            return Err(Error::keys(path, "the factors", "their corrections"));
        }
        let of_path = self.statistics.task(&self.task)?.parameter(path)?;
        let welford = of_path.elementwise().ok_or_else(no_samples)?;
        welford.read_mean()?.ok_or_else(no_samples)
    }
}

impl Kronecker {
    /// A sink for a second pass over the task's samples, or over others of its kind: the corrected eigenvalues of
    /// [EKFAC](Self::corrected). Gradients are rotated on `device`.
    ///
    /// # Errors
    /// Those of statistics.
    pub fn corrections(&self, device: &Device) -> Result<Corrections> {
        Corrections::new(self, device, true)
    }

    /// The same without errors of the eigenvalues, in half the memory.
    ///
    /// # Errors
    /// Those of statistics.
    pub fn corrections_without_errors(&self, device: &Device) -> Result<Corrections> {
        Corrections::new(self, device, false)
    }

    /// The model's name in what was seen in these bases: what was seen in others is of another, as far as merging goes.
    fn rotated_model(&self) -> String {
        format!(
            "{} in the bases {:016x}",
            self.provenance.model,
            self.digest()
        )
    }

    /// EKFAC: the same bases with the eigenvalues that `corrections` have seen.
    ///
    /// # Errors
    /// [`Error::OtherFisher`] when they are of other factors, [`Error::NoSamples`] when they have seen none, [`Error::Keys`] or [`Error::Sizes`] when they are of other parameters,
    /// [`Error::NotFinite`] when one has left the range.
    pub fn corrected(mut self, corrections: &Corrections) -> Result<Self> {
        let ours = self.rotated_model();
        let theirs = &corrections.statistics.provenance().model;
        if ours != *theirs || self.task != corrections.task {
            return Err(Error::OtherFisher {
                what: "the bases",
                ours: format!("{ours} of {}", self.task),
                theirs: format!("{theirs} of {}", corrections.task),
            });
        }
        for (path, block) in &mut self.blocks {
            let eigenvalues = corrections.eigenvalues(path)?;
            if eigenvalues.len() != block.eigenvalues().len() {
                let (ours, theirs) = (block.eigenvalues().len(), eigenvalues.len());
                return Err(Error::sizes(path.clone(), ours, theirs));
            }
            if eigenvalues.iter().any(|x| !x.is_finite()) {
                return Err(Error::not_finite("an eigenvalue", path));
            }
            *block = block.clone().with_eigenvalues(eigenvalues);
        }
        Ok(self)
    }
}

impl GradientSink for Corrections {
    fn wants(&self, path: &str) -> bool {
        self.rotations.contains_key(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        self.statistics.refuses(found)
    }

    fn takes_from(&self) -> Option<&Device> {
        self.statistics.takes_from()
    }

    /// # Errors
    /// Those of statistics; [`fisher_core::Error::UnknownTask`] for another task than the factors are of.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        if task != self.task {
            return Err(CoreError::UnknownTask {
                task: task.into(),
                known: self.task.clone(),
            });
        }
        self.statistics.begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let gradient = match self.rotations.get(path) {
            Some(rotation) => rotation.turn(gradient),
            None => gradient,
        };
        self.statistics.put(path, gradient)
    }

    fn prepare(&mut self) -> fisher_core::Result<()> {
        self.statistics.prepare()
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        self.statistics.commit()
    }

    fn forget(&mut self) {
        self.statistics.forget();
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> fisher_core::Result<()> {
        GradientSink::skip(&mut self.statistics, task, sample, parameter)
    }
}
