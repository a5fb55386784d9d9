//! The empirical Fisher against the true one.

use std::fmt;

use fisher_core::gradient::ContributionUnit;
use fisher_core::kind::FisherKind;
use fisher_core::moments::{
    ConfidenceInterval, FEWEST_FOR_INTERVAL, SampleMoments, effective, student_quantile,
};
use fisher_core::statistics::Statistics;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the trace of the empirical Fisher compares with that of the true one, layer by layer.
///
/// Where the model is that of its data the two agree, and the ratio is 1. Above 1, labels of the data surprise the model
/// more than labels of its own would; below 1, they surprise it less, as those of a training set that it has
/// learnt by heart. Near convergence the empirical Fisher is made of the few samples that the model gets wrong, and is no
/// measure of curvature (Kunstner, Balles & Hennig 2019, "Limitations of the empirical Fisher approximation for
/// natural gradient descent").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRatio {
    /// Whether both are of the same samples, and the intervals take that into account. Otherwise they are taken as
    /// of independent ones: for the same samples, collected twice, intervals are then wider than they need be.
    pub paired: bool,
    /// Layer by layer.
    pub layers: Vec<LayerRatio>,
}

/// The ratio of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRatio {
    /// The layer.
    pub layer: String,
    /// Trace of the empirical Fisher.
    pub empirical: f64,
    /// Trace of the Monte-Carlo or exact one.
    pub model: f64,
    /// The one over the other; `None` where the latter is 0.
    pub ratio: Option<f64>,
    /// 95 %: `ratio · exp(± t se)`, `se` that of the logarithm by the delta method, Student's `t` with
    /// `max(1, n_eff − 1)` degrees of freedom. `None` where fewer than 5 effective samples make one of the two.
    pub interval: Option<ConfidenceInterval>,
    /// The smaller of the two effective sample sizes, `n / (1 + CV²)`.
    pub effective_samples: Option<f64>,
}

/// Means, variances and covariance of pairs of numbers: the empirical contribution of a sample, and the model's own.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairMoments {
    count: u64,
    means: [f64; 2],
    /// Sums of squared deviations.
    squares: [f64; 2],
    /// Sum of products of deviations.
    products: f64,
}

impl PairMoments {
    /// Take in one pair.
    pub fn push(&mut self, pair: [f64; 2]) {
        self.count += 1;
        let before = [0, 1].map(|k| pair[k] - self.means[k]);
        for (mean, off) in self.means.iter_mut().zip(before) {
            *mean += off / self.count as f64;
        }
        let after = [0, 1].map(|k| pair[k] - self.means[k]);
        for k in [0, 1] {
            self.squares[k] += before[k] * after[k];
        }
        self.products += before[0] * after[1];
    }

    /// The number of pairs.
    pub fn samples(&self) -> u64 {
        self.count
    }

    /// The mean of the first or second numbers.
    pub fn mean(&self, of: usize) -> f64 {
        self.means[of]
    }

    /// Their variance, by `n − 1`.
    pub fn variance(&self, of: usize) -> Option<f64> {
        (self.count > 1).then(|| self.squares[of] / (self.count - 1) as f64)
    }
}

/// A mean over samples, with what its error is made of.
#[derive(Debug, Clone, Copy)]
struct Mean {
    value: f64,
    error: Option<f64>,
    effective: Option<f64>,
}

impl Mean {
    /// `(se / mean)²`
    fn relative(&self) -> Option<f64> {
        let error = self.error.filter(|_| self.value > 0.0)?;
        Some((error / self.value).powi(2))
    }
}

impl KindRatio {
    /// Of contributions of the same samples, by layer.
    pub fn paired<'a>(layers: impl IntoIterator<Item = (String, &'a PairMoments)>) -> Self {
        let layers = layers.into_iter().map(|(layer, pair)| {
            let n = pair.count as f64;
            let mean = |of| Mean {
                value: pair.mean(of),
                error: pair.variance(of).map(|variance| (variance / n).sqrt()),
                effective: (pair.count > 1).then(|| effective(n, pair.mean(of), pair.squares[of])),
            };
            let covariance = pair.products / pair.count.saturating_sub(1).max(1) as f64;
            LayerRatio::of(layer, mean(0), mean(1), covariance / n)
        });
        Self {
            paired: true,
            layers: layers.collect(),
        }
    }

    /// Of two collections: the empirical Fisher and the Monte-Carlo or exact one of a model, a task each.
    ///
    /// # Errors
    /// [`Error::OtherFisher`] when the first is not empirical, the second neither of the two, or their units or models differ;
    /// those of [`Statistics::task`], [`fisher_core::Error::Device`].
    pub fn unpaired<C: ContributionUnit>(
        empirical: (&Statistics<C>, &str),
        model: (&Statistics<C>, &str),
    ) -> Result<Self> {
        let (ours, theirs) = (empirical.0.provenance(), model.0.provenance());
        let differ =
            |what, ours: &dyn fmt::Display, theirs: &dyn fmt::Display| Error::OtherFisher {
                what,
                ours: ours.to_string(),
                theirs: theirs.to_string(),
            };
        if ours.kind != FisherKind::Empirical {
            return Err(differ("kind", &ours.kind, &FisherKind::Empirical));
        }
        if ![FisherKind::MonteCarlo, FisherKind::Exact].contains(&theirs.kind) {
            return Err(differ("kind", &theirs.kind, &"monte_carlo or exact"));
        }
        if ours.model != theirs.model {
            return Err(differ(
                "model (hash of its weights)",
                &ours.model,
                &theirs.model,
            ));
        }
        let names = empirical.0.totals().layers();
        let others = model.0.totals().layers();
        if names != others {
            return Err(differ("layers", &names.join(", "), &others.join(", ")));
        }
        let read = |(statistics, task): (&Statistics<C>, &str)| -> Result<SampleMoments> {
            Ok(statistics.task(task)?.layers())
        };
        let moments = [read(empirical)?, read(model)?];
        let layers = names.iter().enumerate().map(|(at, layer)| {
            let mean = |of: &SampleMoments| Mean {
                value: of.mean.as_ref().map_or(0.0, |mean| mean[at]),
                error: of.standard_error.as_ref().map(|error| error[at]),
                effective: of.effective.as_ref().map(|effective| effective[at]),
            };
            LayerRatio::of(layer.clone(), mean(&moments[0]), mean(&moments[1]), 0.0)
        });
        Ok(Self {
            paired: false,
            layers: layers.collect(),
        })
    }

    /// A sentence a layer.
    pub fn sentences(&self) -> Vec<String> {
        let pairing = if self.paired {
            "over the same samples"
        } else {
            "unpaired"
        };
        let sentence = |of: &LayerRatio| match (of.ratio, of.interval) {
            (Some(ratio), Some(ConfidenceInterval { lower, upper })) => format!(
                "{}: the empirical trace is {ratio:.3} times the model's own (95 %: {lower:.3} to {upper:.3}, {pairing})",
                of.layer
            ),
            (Some(ratio), None) => format!(
                "{}: the empirical trace is {ratio:.3} times the model's own ({pairing}); too few effective samples for \
                 an interval",
                of.layer
            ),
            (None, _) => format!(
                "{}: the model's own trace is 0, and there is no ratio",
                of.layer
            ),
        };
        self.layers.iter().map(sentence).collect()
    }
}

impl LayerRatio {
    fn of(layer: String, empirical: Mean, model: Mean, covariance: f64) -> Self {
        let ratio = empirical.value / model.value;
        let ratio = Some(ratio).filter(|ratio| ratio.is_finite());
        let effective = empirical.effective.zip(model.effective);
        let effective = effective.map(|(ours, theirs)| ours.min(theirs));
        let interval = || {
            let effective = effective.filter(|effective| *effective >= FEWEST_FOR_INTERVAL)?;
            let shared = 2.0 * covariance / empirical.value / model.value;
            let variance = empirical.relative()? + model.relative()? - shared;
            let t = student_quantile(0.975, effective - 1.0);
            let factor = (t * variance.max(0.0).sqrt()).exp();
            let interval = ConfidenceInterval {
                lower: ratio? / factor,
                upper: ratio? * factor,
            };
            interval.upper.is_finite().then_some(interval)
        };
        Self {
            interval: interval(),
            layer,
            empirical: empirical.value,
            model: model.value,
            ratio,
            effective_samples: effective,
        }
    }
}
