//! The losses of a batch's samples, in one unit.

use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::{DType, FloatDType, Int, Tensor};
use fisher_core::Error as CoreError;
use fisher_core::kind::FisherKind;
use fisher_core::sample::Sample;

use crate::error::{Error, Result};
use crate::labels::{Aligned, Class, IGNORE, Labels, NextToken, is_class};
use crate::predictions::{Likelihood, Predictions};
use crate::targets::Targets;
use fisher_core::gradient::at_least_single;

/// The token-sum loss `L_i = Σ_t −log p(y_it | ..)` of every sample and its active tokens `T_i`.
///
/// Losses are float32 or float64 whatever the model's type is: half precision rounds sums over more
/// than 256 tokens. What labels say is counted and checked when it is read ([`SampleLosses::samples`],
/// [`SampleLosses::tokens`]), not before: the constructors read nothing from the device.
///
/// # Shapes
/// `[samples]`
#[derive(Debug, Clone)]
pub struct SampleLosses {
    sums: Tensor<1>,
    counts: Counts,
    kind: FisherKind,
    /// What they are `−log p` of, where that is known.
    likelihood: Option<Likelihood>,
}

/// Where active tokens are counted.
#[derive(Debug, Clone)]
enum Counts {
    Given(Vec<u64>),
    /// In labels that are still on the device, `[samples, positions]`, of so many classes.
    Labels(Box<Tensor<2, Int>>, usize),
}

impl SampleLosses {
    /// Losses that are sums over each sample's active tokens.
    ///
    /// # Panics
    /// When the numbers of losses and of token counts differ.
    pub fn token_sum(losses: Tensor<1>, tokens: Vec<u64>) -> Self {
        assert_eq!(losses.dims()[0], tokens.len(), "one token count per loss");
        Self {
            sums: at_least_single(losses),
            counts: Counts::Given(tokens),
            kind: FisherKind::Empirical,
            likelihood: None,
        }
    }

    /// Losses that are means over each sample's active tokens: multiplied by `T_i`, once, here.
    ///
    /// # Panics
    /// When the numbers of losses and of token counts differ.
    pub fn token_mean(losses: Tensor<1>, tokens: Vec<u64>) -> Self {
        let counts: Vec<f32> = tokens.iter().map(|&t| t as f32).collect();
        let device = losses.device();
        let counts = Tensor::<1>::from_data(counts.as_slice(), (&device, DType::F32));
        let losses = at_least_single(losses);
        let counts = counts.cast(losses.dtype());
        Self::token_sum(losses * counts, tokens)
    }

    /// Cross-entropy of `logits` against labels that stand at the position that predicts them:
    /// `labels[i, t]` is what `logits[i, t]` should say. Positions labelled [`IGNORE`] do not
    /// count. Nothing is shifted.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    /// - labels: `[samples, positions]`
    ///
    /// # Panics
    /// When there is not one label for the logits of each position.
    pub fn cross_entropy(logits: Tensor<3>, labels: impl Into<Labels<Aligned>>) -> Self {
        let labels = labels.into();
        Self::of(logits, labels.tensor().clone(), labels.kind())
    }

    /// Cross-entropy of a causal language model whose labels are its inputs: position `t` is
    /// scored against label `t + 1`, so the last logits and the first label count for nothing.
    /// Do not shift the labels before.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    /// - labels: `[samples, positions]`
    ///
    /// # Panics
    /// When there is not one label for the logits of each position.
    pub fn next_token(logits: Tensor<3>, labels: impl Into<Labels<NextToken>>) -> Self {
        let labels = labels.into();
        let (classes, kind) = (labels.tensor().clone(), labels.kind());
        let [samples, positions, _] = logits.dims();
        assert_eq!(classes.dims(), [samples, positions], "one label a position");
        if positions < 2 {
            // Nothing is predicted: no active token.
            let zeros = Tensor::zeros([samples], &logits.device());
            let losses = Self::token_sum(zeros, vec![0; samples]);
            return Self { kind, ..losses };
        }
        Self::of(
            logits.narrow(1, 0, positions - 1),
            classes.narrow(1, 1, positions - 1),
            kind,
        )
    }

    /// Cross-entropy of a classifier. A sample has one active token, or none where its label is
    /// [`IGNORE`].
    ///
    /// # Shapes
    /// - logits: `[samples, classes]`
    /// - labels: `[samples]`
    ///
    /// # Panics
    /// When there is not one label for the logits of each sample.
    pub fn classification(logits: Tensor<2>, labels: impl Into<Labels<Class>>) -> Self {
        let labels = labels.into();
        let logits = logits.unsqueeze_dim(1);
        Self::of(logits, labels.tensor().clone(), labels.kind())
    }

    fn of(logits: Tensor<3>, labels: Tensor<2, Int>, kind: FisherKind) -> Self {
        let [samples, positions, classes] = logits.dims();
        assert_eq!(labels.dims(), [samples, positions], "one label a position");
        let ignored = labels.clone().equal_scalar(IGNORE);
        let known = is_class(&labels, classes);
        // Where there is no such class, some backends would read another sample's.
        let index = labels.clone().mask_fill(known.clone().bool_not(), 0);
        let likelihood = Likelihood::Classes(Box::new((logits.clone(), labels.clone())));
        let losses = log_softmax(at_least_single(logits), 2)
            .gather(2, index.reshape([samples, positions, 1]))
            .reshape([samples, positions])
            .neg()
            .mask_fill(known.bool_not(), f32::NAN)
            .mask_fill(ignored, 0.0);
        Self {
            sums: losses.sum_dim(1).reshape([samples]),
            counts: Counts::Labels(Box::new(labels), classes),
            kind,
            likelihood: Some(likelihood),
        }
    }

    /// Several labels that each are there or not: `L_i = −Σ_o [y_o log σ(z_o) + (1 − y_o) log σ(−z_o)]`, the outputs of a
    /// sample independent given its input. A sample has one active token.
    ///
    /// # Shapes
    /// - logits, targets (0 or 1): `[samples, outputs]`
    ///
    /// # Panics
    /// When there is not one target for each logit.
    pub fn bernoulli(logits: Tensor<2>, targets: impl Into<Targets>) -> Self {
        let (targets, logits) = (targets.into(), at_least_single(logits));
        let y = targets.tensor().clone().cast(logits.dtype());
        assert_eq!(logits.dims(), y.dims(), "one target a logit");
        let [samples, _] = logits.dims();
        let likelihood = Likelihood::Bernoulli(logits.clone());
        let no = y.clone().neg() + 1.0;
        let log_p = y * log_sigmoid(logits.clone()) + no * log_sigmoid(logits.neg());
        let losses = log_p.sum_dim(1).neg().reshape([samples]);
        Self {
            kind: targets.kind(),
            likelihood: Some(likelihood),
            ..Self::token_sum(losses, vec![1; samples])
        }
    }

    /// A regression whose errors are normal with a known deviation: `L_i = Σ_o (y_o − f_o)² / (2 sigma²)`, which leaves
    /// out what depends on no parameter. A sample has one active token. A mean square error is this with another
    /// `sigma`, and a Fisher that was drawn needs to know which: it goes with `1/sigma²`, the empirical one with
    /// `1/sigma⁴`.
    ///
    /// # Shapes
    /// - means, targets: `[samples, outputs]`
    ///
    /// # Panics
    /// When there is not one target for each mean, or `sigma` is not above 0.
    pub fn gaussian(means: Tensor<2>, targets: impl Into<Targets>, sigma: f64) -> Self {
        assert!(sigma > 0.0 && sigma.is_finite(), "sigma is above 0");
        let (targets, means) = (targets.into(), at_least_single(means));
        let y = targets.tensor().clone().cast(means.dtype());
        assert_eq!(means.dims(), y.dims(), "one target a mean");
        let [samples, _] = means.dims();
        let likelihood = Likelihood::Gaussian(means.clone(), sigma);
        let squares = (y - means).square().sum_dim(1).reshape([samples]);
        Self {
            kind: targets.kind(),
            likelihood: Some(likelihood),
            ..Self::token_sum(squares.div_scalar(2.0 * sigma * sigma), vec![1; samples])
        }
    }

    /// Cross-entropy against a distribution at each position, as of a teacher or with smoothed labels:
    /// `L_i = −Σ_t Σ_y q_ty log p_ty`. A position whose row is all 0 does not count; the loss of a sample with a row that is no
    /// distribution (negative, or its sum further than 0.001 from 1) is NaN. Nothing is shifted.
    ///
    /// Their Fisher is empirical, and is not the one of labels drawn from `q`: gradients are averaged over `q`
    /// before they are squared, `g_t = Σ_y q_ty g_ty`. It is never larger than the mean of squares over labels drawn from `q`, and 0
    /// where `q = p`, where the true Fisher is not.
    ///
    /// # Shapes
    /// - logits, distributions: `[samples, positions, classes]`
    ///
    /// # Panics
    /// When there is not one distribution for the logits of each position.
    pub fn soft_labels(logits: Tensor<3>, distributions: Tensor<3>) -> Self {
        let logits = at_least_single(logits);
        let q = distributions.cast(logits.dtype());
        assert_eq!(logits.dims(), q.dims(), "one distribution a position");
        let [samples, positions, classes] = logits.dims();
        let sums = q.clone().sum_dim(2);
        let ignored = q.clone().abs().sum_dim(2).equal_scalar(0.0);
        let off = (sums - 1.0).abs().greater_elem(1e-3);
        let wrong = off.bool_or(q.clone().min_dim(2).lower_elem(0.0));
        let losses = (q * log_softmax(logits, 2)).sum_dim(2).neg();
        let losses = losses.mask_fill(wrong, f32::NAN);
        let losses = losses.mask_fill(ignored.clone(), 0.0);
        // What counts, as labels do.
        let labels = ignored.int().reshape([samples, positions]) * IGNORE;
        Self {
            sums: losses
                .reshape([samples, positions])
                .sum_dim(1)
                .reshape([samples]),
            counts: Counts::Labels(Box::new(labels), classes),
            kind: FisherKind::Empirical,
            likelihood: None,
        }
    }

    /// The same losses, of targets that were drawn from the model's own predictions: where a model
    /// has no classes, such as a regression whose targets were drawn about its outputs.
    #[must_use]
    pub fn of_drawn_targets(self) -> Self {
        Self {
            kind: FisherKind::MonteCarlo,
            ..self
        }
    }

    /// What the model predicts for each sample.
    ///
    /// # Errors
    /// [`Error::NoPredictions`] when that does not follow from the losses: those of [`SampleLosses::token_sum`],
    /// [`SampleLosses::token_mean`] and [`SampleLosses::soft_labels`], and what [`SampleLosses::map`] made of others.
    /// [`fisher_core::Error::Device`] when the device does not give them.
    pub fn predictions(&self) -> Result<Predictions> {
        let likelihood = self.likelihood.as_ref().ok_or(Error::NoPredictions)?;
        Predictions::read(likelihood)
    }

    /// Other losses of the same samples and tokens: `change` of these.
    ///
    /// # Panics
    /// When there are more or fewer of them.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        let before = self.sums.dims();
        let sums = at_least_single(change(self.sums));
        assert_eq!(sums.dims(), before, "one loss a sample");
        Self {
            sums,
            likelihood: None,
            ..self
        }
    }

    /// The losses, `[samples]`. NaN where a label is out of range.
    pub fn sums(&self) -> &Tensor<1> {
        &self.sums
    }

    /// The mean losses of a token, `L_i / T_i` of `[samples]`: what training averages where samples
    /// count alike. Nothing is read from the device. NaN for a sample without active tokens.
    pub fn means(&self) -> Tensor<1> {
        let tokens = match &self.counts {
            Counts::Given(tokens) => {
                let tokens: Vec<f32> = tokens.iter().map(|&t| t as f32).collect();
                let device = self.sums.device();
                Tensor::<1>::from_data(tokens.as_slice(), (&device, DType::F32))
            }
            Counts::Labels(labels, _) => {
                let counted = (**labels).clone().equal_scalar(IGNORE).bool_not();
                let tokens = counted.int().sum_dim(1).reshape(self.sums.dims());
                tokens.cast(FloatDType::F32)
            }
        };
        self.sums.clone() / tokens.cast(self.sums.dtype())
    }

    /// Of which Fisher their gradients are: empirical, unless labels were drawn by
    /// [`Labels::draw`], or targets otherwise ([`SampleLosses::of_drawn_targets`]).
    pub fn kind(&self) -> FisherKind {
        self.kind
    }

    /// The active tokens of every sample. Those of labels are counted on the device, and read.
    ///
    /// # Errors
    /// [`Error::Label`] for a label that is no class, [`fisher_core::Error::Device`] when the device
    /// does not give them.
    pub fn tokens(&self) -> Result<Vec<u64>> {
        self.counted(|at| format!("number {at} of the batch"))
    }

    /// The samples of these ids, each with its active tokens.
    ///
    /// # Errors
    /// [`Error::BatchLosses`] (for one sample [`Error::Losses`]) when there is not one loss for each
    /// id, [`fisher_core::Error::NoActiveTokens`], and those of [`SampleLosses::tokens`].
    pub fn samples(&self, ids: &[String]) -> Result<Vec<Sample>> {
        let [found] = self.sums.dims();
        if found != ids.len() {
            return Err(match ids {
                [sample] => Error::Losses {
                    sample: sample.clone(),
                    found,
                },
                _ => Error::BatchLosses {
                    samples: ids.len(),
                    found,
                },
            });
        }
        let tokens = self.counted(|at| ids[at].clone())?;
        let samples = ids.iter().zip(tokens);
        let samples = samples.map(|(id, tokens)| Sample::new(id.clone(), tokens));
        Ok(samples.collect::<fisher_core::Result<_>>()?)
    }

    /// The labels that active tokens are counted in, if they are.
    pub(crate) fn labels(&self) -> Option<&Tensor<2, Int>> {
        match &self.counts {
            Counts::Given(_) => None,
            Counts::Labels(labels, _) => Some(labels),
        }
    }

    /// The same losses where they have been computed.
    pub(crate) fn computed(self, sums: Tensor<1>, labels: Option<Tensor<2, Int>>) -> Self {
        let counts = match (self.counts, labels) {
            (Counts::Labels(_, classes), Some(labels)) => Counts::Labels(Box::new(labels), classes),
            (counts, _) => counts,
        };
        Self {
            sums,
            counts,
            likelihood: None,
            ..self
        }
    }

    fn counted(&self, name: impl Fn(usize) -> String) -> Result<Vec<u64>> {
        let (labels, classes) = match &self.counts {
            Counts::Given(tokens) => return Ok(tokens.clone()),
            Counts::Labels(labels, classes) => ((**labels).clone(), *classes),
        };
        let ignored = labels.clone().equal_scalar(IGNORE);
        let active = ignored.clone().bool_not().int().cast(labels.dtype());
        let labels = labels.mask_fill(ignored, 0);
        // In one transfer.
        let columns = vec![
            active.sum_dim(1),
            labels.clone().min_dim(1),
            labels.max_dim(1),
        ];
        let data = Tensor::cat(columns, 1);
        let data = data.try_into_data().map_err(CoreError::device)?;
        let values: Vec<i64> = data.iter::<i64>().collect();
        let rows = values.chunks_exact(3).enumerate();
        rows.map(|(at, row)| {
            let mut ends = [row[1], row[2]].into_iter();
            let wrong = ends.find(|label| !(0..classes as i64).contains(label));
            match wrong {
                Some(label) => Err(Error::Label {
                    sample: name(at),
                    label,
                    classes,
                }),
                None => Ok(row[0].unsigned_abs()),
            }
        })
        .collect()
    }
}
