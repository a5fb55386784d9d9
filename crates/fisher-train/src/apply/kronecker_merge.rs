//! Joining models by Kronecker approximations of their Fishers.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use burn::module::Module;
use fisher_core::model::{Catalogue, hash_weights};
use fisher_metrics::check_argument;
use fisher_metrics::curvature::kronecker::{Kronecker, KroneckerBlock};
use fisher_metrics::report::same_fisher;
use fisher_metrics::weights::Weights;
use serde::{Deserialize, Serialize};

use super::merge::{FisherScale, check_ties};
use crate::error::{Error, Result};

/// Version of the form of [`KroneckerMergeReport`].
const SCHEMA: u64 = 1;

/// Configuration of [`KroneckerMerging`].
#[derive(Config, Debug)]
pub struct KroneckerMergeConfig {
    /// The scale that the models' F are brought to.
    #[config(default = "FisherScale::None")]
    pub scale: FisherScale,
    /// ε, added to every F as a multiple of the mean of its eigenvalues: where no model cares, they are averaged plainly.
    #[config(default = 1e-3)]
    pub epsilon: f64,
    /// Iterations for a parameter at most.
    #[config(default = 500)]
    pub iterations: usize,
    /// The residual at which a parameter is solved, relative to the right side.
    #[config(default = 1e-8)]
    pub tolerance: f64,
}

impl KroneckerMergeConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`fisher_metrics::Error::Argument`] unless ε and the tolerance are finite and above 0.
    pub fn init(&self) -> Result<KroneckerMerging> {
        for (name, found) in [("epsilon", self.epsilon), ("tolerance", self.tolerance)] {
            let fits = found > 0.0 && found.is_finite();
            check_argument(fits, name, "finite and above 0", found)?;
        }
        Ok(KroneckerMerging {
            config: self.clone(),
        })
    }
}

/// `θ* = (Σ_t w_t (F_t + ε))⁻¹ Σ_t w_t (F_t + ε) θ_t` with Kronecker products for *F*, KFAC or EKFAC: the minimum of the
/// models' losses to second order, as far as the approximations go (Tam et al. 2023, "Merging by matching models in task parameter
/// subspaces"). With [`Kronecker::of_inputs`] it is RegMean (Jin et al. 2023, "Dataless knowledge fusion by merging weights of language
/// models").
///
/// Solved parameter by parameter by conjugate gradients in float64. Frozen parameters are those of the first model.
#[derive(Debug, Clone)]
pub struct KroneckerMerging {
    config: KroneckerMergeConfig,
}

/// One of the models to merge.
#[derive(Debug)]
pub struct KroneckerSource<'a, M> {
    /// The model.
    pub model: &'a M,
    /// Its Fisher.
    pub fisher: &'a Kronecker,
    /// The weight `w_t`, not negative.
    pub weight: f64,
}

/// A merged model.
#[derive(Debug, Clone)]
pub struct KroneckerMerged<M> {
    /// With the ids and the device of the first.
    pub model: M,
    /// How it was solved.
    pub report: KroneckerMergeReport,
}

/// How a merge was solved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KroneckerMergeReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks.
    pub tasks: Vec<String>,
    /// The scale that F were brought to.
    pub scale: FisherScale,
    /// ε, relative to the mean of the eigenvalues.
    pub epsilon: f64,
    /// By path.
    pub parameters: BTreeMap<String, Solved>,
}

/// How a parameter was solved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Solved {
    /// Iterations that it took.
    pub iterations: usize,
    /// The norm of what is left of the right side, relative to it.
    pub residual: f64,
}

/// One model's share of a parameter.
struct Share<'a> {
    fisher: &'a Kronecker,
    /// `w_t`, over the size that F is brought to 1 from.
    factor: f64,
    epsilon: f64,
    theta: &'a [f64],
}

impl KroneckerMerging {
    /// Merge models of one architecture.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] without models, or when weights are not finite, negative or all 0; [`Error::OtherModel`] when a
    /// model's Fisher is not its own; [`Error::NoFisher`] naming a trainable parameter without factors; [`Error::Untied`] when one
    /// model uses a parameter twice that is two in another; [`fisher_metrics::Error::OtherFisher`] when the models' F are of another
    /// kind; [`fisher_metrics::Error::Keys`] or `Sizes` when the architectures differ; [`Error::Unsolved`] naming a
    /// parameter that was not solved.
    pub fn forward<M: Module>(
        &self,
        sources: &[KroneckerSource<'_, M>],
    ) -> Result<KroneckerMerged<M>> {
        let proper =
            |source: &KroneckerSource<'_, M>| source.weight.is_finite() && source.weight >= 0.0;
        let sum: f64 = sources.iter().map(|source| source.weight).sum();
        let (Some(first), true) = (sources.first(), sources.iter().all(proper) && sum > 0.0) else {
            return Err(Error::NothingToMerge);
        };
        let mut weights = Vec::with_capacity(sources.len());
        for source in sources {
            let hash = hash_weights(source.model)?;
            if hash != source.fisher.provenance().model {
                return Err(Error::OtherModel {
                    expected: source.fisher.provenance().model.clone(),
                    found: hash,
                });
            }
            same_fisher(first.fisher.provenance(), source.fisher.provenance())?;
            weights.push(Weights::of(source.model)?);
        }
        let (mut merged, mut parameters) = (BTreeMap::new(), BTreeMap::new());
        for parameter in Catalogue::of(first.model)?.parameters() {
            let (path, elements) = (parameter.path(), parameter.elements());
            let mut shares = Vec::with_capacity(sources.len());
            for (source, weights) in sources.iter().zip(&weights) {
                check_ties(parameter, weights, source.fisher.task())?;
                let theta = weights.get(path, elements)?;
                let block = source
                    .fisher
                    .block(path)
                    .map_err(|_| Error::no_fisher(path))?;
                let size = self.size(source.fisher, block);
                shares.push(Share {
                    fisher: source.fisher,
                    factor: source.weight / sum / size,
                    epsilon: (self.config.epsilon * mean(block.eigenvalues()))
                        .max(f64::MIN_POSITIVE),
                    theta,
                });
            }
            let (theta, solved) = self.solve(path, &shares)?;
            for tied in parameter.tied() {
                merged.insert(tied.clone(), theta.clone());
            }
            merged.insert(path.to_owned(), theta);
            parameters.insert(path.to_owned(), solved);
        }
        Ok(KroneckerMerged {
            model: Weights::from(merged).write(first.model.clone())?,
            report: KroneckerMergeReport {
                schema: SCHEMA,
                tasks: sources
                    .iter()
                    .map(|source| source.fisher.task().to_owned())
                    .collect(),
                scale: self.config.scale,
                epsilon: self.config.epsilon,
                parameters,
            },
        })
    }

    /// What F is divided by; 1 for an F of zeros.
    fn size(&self, fisher: &Kronecker, block: &KroneckerBlock) -> f64 {
        let size = match self.config.scale {
            FisherScale::Trace => fisher.mean_eigenvalue(),
            FisherScale::Norm => {
                let eigenvalues = block.eigenvalues();
                let largest = eigenvalues
                    .iter()
                    .copied()
                    .fold(f64::MIN_POSITIVE, f64::max);
                let squares: Vec<f64> = eigenvalues.iter().map(|s| (s / largest).powi(2)).collect();
                largest * mean(&squares).sqrt()
            }
            _ => 1.0,
        };
        if size > 0.0 { size } else { 1.0 }
    }

    /// Conjugate gradients from the plain average, with the inverse of the heaviest model's F for a preconditioner.
    fn solve(&self, path: &str, shares: &[Share]) -> Result<(Vec<f64>, Solved)> {
        let apply = |share: &Share, v: &[f64]| -> Result<Vec<f64>> {
            let f = |s: f64| share.factor * (s + share.epsilon);
            Ok(share.fisher.apply(path, v, f)?)
        };
        let add = |sum: &mut Vec<f64>, terms: Vec<f64>| {
            sum.iter_mut()
                .zip(terms)
                .for_each(|(sum, term)| *sum += term);
        };
        let zeros = || vec![0.0; shares[0].theta.len()];
        let product = |v: &[f64]| -> Result<Vec<f64>> {
            shares.iter().try_fold(zeros(), |mut sum, share| {
                add(&mut sum, apply(share, v)?);
                Ok(sum)
            })
        };
        let trace = |share: &Share| -> Result<f64> {
            Ok(share.factor * mean(share.fisher.block(path)?.eigenvalues()))
        };
        let traces = shares.iter().map(trace).collect::<Result<Vec<f64>>>()?;
        let heaviest = (0..shares.len()).max_by(|&a, &b| traces[a].total_cmp(&traces[b]));
        let heaviest = heaviest.unwrap_or(0);
        let others: f64 = traces.iter().sum::<f64>() - traces[heaviest];
        let precondition = |r: &[f64]| -> Result<Vec<f64>> {
            let share = &shares[heaviest];
            let f =
                |s: f64| 1.0 / (share.factor * (s + share.epsilon) + others).max(f64::MIN_POSITIVE);
            Ok(share.fisher.apply(path, r, f)?)
        };

        let count = shares.len() as f64;
        let mut theta = zeros();
        let mut right = zeros();
        for share in shares {
            add(&mut theta, share.theta.iter().map(|x| x / count).collect());
            add(&mut right, apply(share, share.theta)?);
        }
        let size = norm(&right);
        let mut left: Vec<f64> = right
            .iter()
            .zip(product(&theta)?)
            .map(|(b, ax)| b - ax)
            .collect();
        let mut z = precondition(&left)?;
        let mut direction = z.clone();
        let mut rz = dot(&left, &z);
        for iterations in 0..=self.config.iterations {
            let residual = if size > 0.0 { norm(&left) / size } else { 0.0 };
            if residual <= self.config.tolerance {
                return Ok((
                    theta,
                    Solved {
                        iterations,
                        residual,
                    },
                ));
            }
            if !residual.is_finite() || iterations == self.config.iterations {
                return Err(Error::Unsolved {
                    parameter: path.into(),
                    iterations,
                    residual,
                });
            }
            let a = product(&direction)?;
            let step = rz / dot(&direction, &a);
            add(&mut theta, direction.iter().map(|d| step * d).collect());
            add(&mut left, a.iter().map(|a| -step * a).collect());
            z = precondition(&left)?;
            let next = dot(&left, &z);
            let keep = next / rz;
            direction = z
                .iter()
                .zip(&direction)
                .map(|(z, d)| z + keep * d)
                .collect();
            rz = next;
        }
        unreachable!("the last iteration returns")
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

impl fmt::Display for KroneckerMergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self
            .parameters
            .values()
            .map(|solved| solved.iterations)
            .max();
        write!(
            f,
            "Merged {} with ε = {:e} of the mean eigenvalue, in {} iterations a parameter at most.",
            self.tasks.join(", "),
            self.epsilon,
            most.unwrap_or(0)
        )
    }
}
