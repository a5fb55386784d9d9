//! What a model predicts for the samples of a batch, and other labels in its place.

use burn::tensor::activation::{log_softmax, sigmoid};
use burn::tensor::{Int, Tensor};
use fisher_core::gradient::at_least_single;
use fisher_core::kind::FisherKind;
use fisher_core::{Error as CoreError, read};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::error::Result;
use crate::labels::IGNORE;

/// What losses were computed from, where it is a likelihood that labels can be drawn from.
#[derive(Debug, Clone)]
pub(crate) enum Likelihood {
    /// `softmax(logits)` at each position, `[samples, positions, classes]`, and the labels of the data.
    Classes(Box<(Tensor<3>, Tensor<2, Int>)>),
    /// `σ(logits)`, `[samples, outputs]`.
    Bernoulli(Tensor<2>),
    /// `N(means, sigma²)`, `[samples, outputs]`.
    Gaussian(Tensor<2>, f64),
}

/// The predictions for the samples of a batch, on the host in float64: what labels of another Fisher are made from.
///
/// They are had from losses ([`SampleLosses::predictions`](crate::losses::SampleLosses::predictions)). Random numbers are those of
/// the sample's id, the draw and a seed, and not of a device: a sample gets the same labels in any batch and by any engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    samples: usize,
    form: Form,
}

#[derive(Debug, Clone, PartialEq)]
enum Form {
    Classes {
        positions: usize,
        classes: usize,
        /// `[samples, positions, classes]`
        log_p: Vec<f64>,
        /// `[samples, positions]`, of the data.
        labels: Vec<i64>,
    },
    Bernoulli(Vec<f64>),
    Gaussian(Vec<f64>, f64),
}

/// Labels or targets that take the place of a batch's own: see
/// [`SampleMapper::replace`](crate::batch::SampleMapper::replace).
#[derive(Debug, Clone, PartialEq)]
pub struct Replacement {
    /// Of which Fisher the gradients of their losses are.
    pub kind: FisherKind,
    /// The labels or targets themselves.
    pub values: Values,
}

/// Labels or targets, in rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// A class or [`IGNORE`] for every prediction: `[samples, predictions]`.
    Classes(Vec<i64>),
    /// `[samples, outputs]`.
    Targets(Vec<f64>),
}

/// One position of a sample, for the expectation over its classes or by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) position: usize,
    pub(crate) label: i64,
}

impl Predictions {
    pub(crate) fn read(likelihood: &Likelihood) -> Result<Self> {
        let (samples, form) = match likelihood {
            Likelihood::Classes(of) => {
                let (logits, labels) = &**of;
                let logits = at_least_single(logits.clone().inner());
                let [samples, positions, classes] = logits.dims();
                let labels = labels.clone().inner();
                let labels = labels.try_into_data().map_err(CoreError::device)?;
                let form = Form::Classes {
                    positions,
                    classes,
                    log_p: read(log_softmax(logits, 2))?,
                    labels: labels.iter::<i64>().collect(),
                };
                (samples, form)
            }
            Likelihood::Bernoulli(logits) => {
                let p = sigmoid(at_least_single(logits.clone().inner()));
                (p.dims()[0], Form::Bernoulli(read(p)?))
            }
            Likelihood::Gaussian(means, sigma) => {
                let values = read(at_least_single(means.clone().inner()))?;
                (means.dims()[0], Form::Gaussian(values, *sigma))
            }
        };
        Ok(Self { samples, form })
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Whether all numbers of the sample at `index` are finite.
    pub(crate) fn is_finite(&self, index: usize) -> bool {
        let values = match &self.form {
            Form::Classes { log_p, .. } => log_p,
            Form::Bernoulli(p) => p,
            Form::Gaussian(means, _) => means,
        };
        let row = values.len() / self.samples.max(1);
        let row = &values[index * row..(index + 1) * row];
        // A class whose probability is 0 has −∞.
        row.iter().all(|x| !x.is_nan() && *x < f64::INFINITY)
    }

    /// Labels drawn from the predictions, the `draw`-th of each of these samples: for a
    /// [Monte-Carlo](FisherKind::MonteCarlo) Fisher. What does not count among the labels of the data does not count among
    /// those drawn.
    pub fn draw(&self, seed: u64, ids: &[String], draw: u64) -> Replacement {
        let mut rngs: Vec<StdRng> = ids
            .iter()
            .map(|id| StdRng::seed_from_u64(digest(seed, id, draw)))
            .collect();
        let values = match &self.form {
            Form::Bernoulli(p) => Values::Targets(self.each(p, &mut rngs, |p, rng| {
                f64::from(u8::from(rng.random::<f64>() < p))
            })),
            Form::Gaussian(means, sigma) => {
                let draw = |mean, rng: &mut StdRng| mean + sigma * normal(rng);
                Values::Targets(self.each(means, &mut rngs, draw))
            }
            Form::Classes {
                positions,
                classes,
                log_p,
                labels,
            } => {
                let cells = labels.chunks_exact(*positions).zip(&mut rngs).enumerate();
                let drawn = cells.flat_map(|(sample, (row, rng))| {
                    let draw = |(position, label): (usize, &i64)| {
                        if *label == IGNORE {
                            return IGNORE;
                        }
                        let start = (sample * positions + position) * classes;
                        class(&log_p[start..start + classes], rng)
                    };
                    row.iter().enumerate().map(draw).collect::<Vec<_>>()
                });
                Values::Classes(drawn.collect())
            }
        };
        Replacement {
            kind: FisherKind::MonteCarlo,
            values,
        }
    }

    /// `of` every value, by the random numbers of its sample.
    fn each(
        &self,
        values: &[f64],
        rngs: &mut [StdRng],
        of: impl Fn(f64, &mut StdRng) -> f64,
    ) -> Vec<f64> {
        let outputs = (values.len() / self.samples.max(1)).max(1);
        let rows = values.chunks_exact(outputs).zip(rngs);
        let rows = rows.flat_map(|(row, rng)| row.iter().map(|x| of(*x, rng)).collect::<Vec<_>>());
        rows.collect()
    }

    /// `KL(p ‖ q)` of every sample from these predictions to others of the same samples: the mean over the positions that count, or
    /// the sum over outputs. NaN where there is no number.
    ///
    /// # Panics
    /// When the others are of other samples or of another form.
    pub(crate) fn divergences(&self, other: &Self) -> Vec<f64> {
        assert_eq!(self.samples, other.samples, "samples of two predictions");
        let by_sample = |terms: Vec<f64>| -> Vec<f64> {
            let outputs = (terms.len() / self.samples.max(1)).max(1);
            terms.chunks(outputs).map(|row| row.iter().sum()).collect()
        };
        match (&self.form, &other.form) {
            (
                Form::Classes { classes, log_p, .. },
                Form::Classes {
                    log_p: log_q,
                    positions,
                    ..
                },
            ) => {
                let of_position = |start: usize| -> f64 {
                    let range = start..start + classes;
                    let pairs = log_p[range.clone()].iter().zip(&log_q[range]);
                    // A class of probability 0 adds nothing.
                    let terms = pairs.map(|(p, q)| {
                        if p.is_finite() {
                            p.exp() * (p - q)
                        } else {
                            0.0 * p.exp()
                        }
                    });
                    terms.sum()
                };
                let of_sample = |sample: usize| {
                    let active = self.active(sample);
                    let starts = active
                        .iter()
                        .map(|of| (sample * positions + of.position) * classes);
                    starts.map(of_position).sum::<f64>() / active.len().max(1) as f64
                };
                (0..self.samples).map(of_sample).collect()
            }
            (Form::Bernoulli(p), Form::Bernoulli(q)) => {
                let part = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 * p };
                let term = |(p, q): (&f64, &f64)| part(*p, *q) + part(1.0 - p, 1.0 - q);
                by_sample(p.iter().zip(q).map(term).collect())
            }
            (Form::Gaussian(p, sigma), Form::Gaussian(q, _)) => {
                let term = |(p, q): (&f64, &f64)| 0.5 * ((p - q) / sigma).powi(2);
                by_sample(p.iter().zip(q).map(term).collect())
            }
            _ => panic!("predictions of another form"),
        }
    }

    /// The number of classes, where there are classes.
    pub(crate) fn classes(&self) -> Option<usize> {
        match &self.form {
            Form::Classes { classes, .. } => Some(*classes),
            _ => None,
        }
    }

    /// The positions of the sample at `index` that count, with the labels of the data.
    pub(crate) fn active(&self, index: usize) -> Vec<Active> {
        let Form::Classes {
            positions, labels, ..
        } = &self.form
        else {
            return Vec::new();
        };
        let row = &labels[index * positions..(index + 1) * positions];
        let active = row
            .iter()
            .enumerate()
            .filter(|(_, label)| **label != IGNORE);
        active
            .map(|(position, &label)| Active { position, label })
            .collect()
    }

    /// `p(class)` of the sample at `index` at a position.
    pub(crate) fn probability(&self, index: usize, position: usize, class: usize) -> f64 {
        match &self.form {
            Form::Classes {
                positions,
                classes,
                log_p,
                ..
            } => log_p[(index * positions + position) * classes + class].exp(),
            _ => 0.0,
        }
    }

    /// One label a sample, at one position; nothing else counts.
    pub(crate) fn only(&self, cells: &[Active], kind: FisherKind) -> Replacement {
        let positions = match &self.form {
            Form::Classes { positions, .. } => *positions,
            _ => 0,
        };
        let mut values = vec![IGNORE; self.samples * positions];
        for (row, cell) in values.chunks_exact_mut(positions.max(1)).zip(cells) {
            row[cell.position] = cell.label;
        }
        Replacement {
            kind,
            values: Values::Classes(values),
        }
    }
}

/// A class by the Gumbel-max trick: the first event of processes whose rates are the probabilities.
fn class(log_p: &[f64], rng: &mut StdRng) -> i64 {
    let mut best = (f64::NEG_INFINITY, 0);
    for (class, log_p) in log_p.iter().enumerate() {
        let time = -(1.0 - rng.random::<f64>()).ln();
        let key = log_p - time.max(f64::MIN_POSITIVE).ln();
        if key > best.0 {
            best = (key, class as i64);
        }
    }
    best.1
}

pub(crate) fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// FNV-1a of what a draw is of, the same on any machine.
fn digest(seed: u64, id: &str, draw: u64) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(draw.to_le_bytes());
    let bytes = bytes.chain(id.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
