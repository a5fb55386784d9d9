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
    /// `max(1, n_eff − 1)` degrees of freedom, both over clusters of samples. `None` where fewer than 5 effective ones
    /// make one of the two.
    pub interval: Option<ConfidenceInterval>,
    /// The smaller of the two effective sample sizes, `G / (1 + CV²)` by the sums of `G` clusters.
    pub effective_samples: Option<f64>,
}

/// Means of pairs of numbers over samples, and their errors over clusters: the empirical contribution of a sample, and
/// the model's own.
///
/// With `r_c = Σ_(i∈c) (x_i − x̄)` of each of `G` clusters, the covariance of two means is
/// `G/(G−1) · Σ_c r_c r'_c / n²`. A sample without a cluster is one of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairMoments {
    alone: Alone,
    /// Sums over the samples of each cluster, and how many they are.
    clusters: Vec<([f64; 2], u64)>,
}

/// Samples without a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Alone {
    count: u64,
    means: [f64; 2],
    /// Sums of products of deviations, of the first with itself, of both, of the second with itself.
    products: [f64; 3],
}

impl Alone {
    fn push(&mut self, pair: [f64; 2]) {
        self.count += 1;
        let before = [0, 1].map(|k| pair[k] - self.means[k]);
        for (mean, off) in self.means.iter_mut().zip(before) {
            *mean += off / self.count as f64;
        }
        let after = [0, 1].map(|k| pair[k] - self.means[k]);
        self.products[0] += before[0] * after[0];
        self.products[1] += before[0] * after[1];
        self.products[2] += before[1] * after[1];
    }
}

impl PairMoments {
    /// Take in the pair of one sample, and the number of its cluster.
    pub fn push(&mut self, pair: [f64; 2], cluster: Option<usize>) {
        let Some(cluster) = cluster else {
            return self.alone.push(pair);
        };
        if self.clusters.len() <= cluster {
            self.clusters.resize(cluster + 1, Default::default());
        }
        let (sums, size) = &mut self.clusters[cluster];
        *size += 1;
        sums.iter_mut().zip(pair).for_each(|(sum, x)| *sum += x);
    }

    fn named(&self) -> impl Iterator<Item = &([f64; 2], u64)> {
        self.clusters.iter().filter(|(_, size)| *size > 0)
    }

    /// The number of pairs.
    pub fn samples(&self) -> u64 {
        self.alone.count + self.named().map(|(_, size)| size).sum::<u64>()
    }

    fn units(&self) -> u64 {
        self.alone.count + self.named().count() as u64
    }

    fn sum(&self, of: usize) -> f64 {
        let alone = self.alone.count as f64 * self.alone.means[of];
        alone + self.named().map(|(sums, _)| sums[of]).sum::<f64>()
    }

    /// The mean of the first or second numbers.
    pub fn mean(&self, of: usize) -> f64 {
        self.sum(of) / (self.samples() as f64).max(1.0)
    }

    /// `Σ_c (S_c − centre) (S'_c − centre')` over the sums of clusters, the centres being of their sizes.
    fn products(&self, a: usize, b: usize, centre: impl Fn(usize, u64) -> f64) -> f64 {
        let Alone {
            count,
            means,
            products,
        } = self.alone;
        let off = |of: usize| means[of] - centre(of, 1);
        let alone = products[a + b] + count as f64 * off(a) * off(b);
        let product = |(sums, size): &([f64; 2], u64)| {
            (sums[a] - centre(a, *size)) * (sums[b] - centre(b, *size))
        };
        alone + self.named().map(product).sum::<f64>()
    }

    /// The covariance of two means, or the variance of one; `None` for fewer than two clusters.
    pub fn covariance(&self, a: usize, b: usize) -> Option<f64> {
        let (units, samples) = (self.units() as f64, self.samples() as f64);
        let means = [self.mean(0), self.mean(1)];
        let products = self.products(a, b, |of, size| size as f64 * means[of]);
        (units > 1.0).then(|| units / (units - 1.0) * products / (samples * samples))
    }

    /// The effective number of clusters, by their sums.
    fn effective(&self, of: usize) -> Option<f64> {
        let units = self.units() as f64;
        let average = self.sum(of) / units;
        let squares = || self.products(of, of, |_, _| average);
        (units > 1.0).then(|| effective(units, average, squares()))
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
    /// Of contributions of the same samples, by layer; clusters of samples count as one.
    pub fn paired<'a>(layers: impl IntoIterator<Item = (String, &'a PairMoments)>) -> Self {
        let layers = layers.into_iter().map(|(layer, pair)| {
            let mean = |of| Mean {
                value: pair.mean(of),
                error: pair.covariance(of, of).map(f64::sqrt),
                effective: pair.effective(of),
            };
            let shared = pair.covariance(0, 1).unwrap_or(0.0);
            LayerRatio::of(layer, mean(0), mean(1), shared)
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [[f64; 2]; 7] = [
        [1.0, 2.0],
        [4.0, 3.0],
        [2.0, 2.5],
        [6.0, 4.0],
        [3.0, 3.5],
        [5.0, 1.5],
        [2.5, 2.0],
    ];

    fn moments<'a>(pairs: impl IntoIterator<Item = (&'a [f64; 2], Option<usize>)>) -> PairMoments {
        let mut moments = PairMoments::default();
        let pairs = pairs.into_iter();
        pairs.for_each(|(pair, cluster)| moments.push(*pair, cluster));
        moments
    }

    fn interval(moments: &PairMoments) -> ConfidenceInterval {
        let ratio = KindRatio::paired([("layer".to_owned(), moments)]);
        ratio.layers[0].interval.expect("clusters")
    }

    /// Copies of samples, each a cluster with its own, leave every number as it is.
    #[test]
    fn copies_in_clusters_do_not_narrow_the_interval() {
        let alone = moments(PAIRS.iter().map(|pair| (pair, None)));
        let named = PAIRS.iter().enumerate();
        let copied = moments(named.flat_map(|(i, pair)| [(pair, Some(i)); 4]));
        assert_eq!((alone.samples(), copied.samples()), (7, 28));
        let (x, y) = (interval(&alone), interval(&copied));
        assert!((x.lower - y.lower).abs() < 1e-12 && (x.upper - y.upper).abs() < 1e-12);
        let one = moments(PAIRS.iter().map(|pair| (pair, Some(0))));
        assert_eq!(one.covariance(1, 1), None);
        let sentence = &KindRatio::paired([("layer".to_owned(), &one)]).sentences()[0];
        assert!(sentence.contains("too few"), "{sentence}");
    }

    /// Samples with a cluster and without, against the formula.
    #[test]
    fn errors_are_over_clusters() {
        let clusters = [None, Some(0), Some(1), None, Some(0), None, Some(1)];
        let found = moments(PAIRS.iter().zip(clusters));
        let numbers = [0, 1, 2, 3, 1, 4, 2];
        let rows = PAIRS.concat();
        let expected = fisher_core::clusters::clustered_errors(&rows, 2, &numbers);
        for (of, expected) in expected.expect("clusters").into_iter().enumerate() {
            let error = found.covariance(of, of).expect("clusters").sqrt();
            assert!((error - expected).abs() < 1e-12, "{error} {expected}");
        }
    }
}
