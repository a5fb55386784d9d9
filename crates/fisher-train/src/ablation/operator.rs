//! Parts taken out one after the other.

use std::collections::BTreeMap;

use fisher_core::clusters::{clustered_errors, clusters_of, column_means};
use fisher_core::gates::{GateKind, GateSet};
use fisher_core::gradient::at_least_single;
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::moments::{ConfidenceInterval, student_quantile};
use fisher_core::sample::SampleRecord;
use fisher_core::statistics::UnitSums;
use fisher_core::{check_argument, read};
use fisher_metrics::progress::styled;
use fisher_metrics::ranks::{RankSet, rank_sets_of_differences};
use fisher_metrics::truth::resampled_means;
use fisher_metrics::weights::Weights;
use indicatif::ProgressBar;

use super::config::{AblationConfig, AblationInterval, AblationKind, AblationUnit};
use super::inputs::InputMeans;
use super::report::{AblatedGate, AblationReport};
use super::without::Whole;
use crate::batch::{SampleLoss, clustered, ids};
use crate::capture::{CaptureConfig, Engine, deterministic};
use crate::error::{Error, Result};

/// Version of the form of [`AblationReport`].
const SCHEMA: u64 = 1;
/// Gates of a kind up to which ranks are drawn: every two are told apart in every draw.
const MOST_RANKED: usize = 512;

impl AblationConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`fisher_core::Error::Argument`] for a level that is not between 0 and 1, and for no draws where some are needed.
    pub fn init(&self) -> Result<Ablation> {
        let level = self.level;
        check_argument(
            level > 0.0 && level < 1.0,
            "level",
            "between 0 and 1",
            level,
        )?;
        let drawn = self.kind != AblationKind::Resample || self.draws > 0;
        check_argument(drawn, "draws", "at least 1", self.draws)?;
        let resampled = self.interval != AblationInterval::Bootstrap || self.bootstraps >= 100;
        check_argument(resampled, "bootstraps", "at least 100", self.bootstraps)?;
        Ok(Ablation {
            config: self.clone(),
        })
    }
}

/// Measures what each of some gates is worth: `Δ_i = L_i(without it) − L_i` for each held-out sample, paired.
///
/// Costs one forward pass of all samples for each gate (times [`AblationConfig::draws`] for
/// [`AblationKind::Resample`]). Dropout, noise and batch statistics are off. A loss that draws anew each time adds its
/// noise to every `Δ_i`.
#[derive(Debug, Clone)]
pub struct Ablation {
    config: AblationConfig,
}

impl Ablation {
    /// Take each gate of `sets` out of the model in turn, and look at the losses of `batches`. For
    /// [`AblationKind::Mean`] these samples are the reference too.
    ///
    /// # Errors
    /// [`fisher_core::Error::UnknownParameter`] or [`fisher_metrics::Error::Sizes`] when a gate is on what the model does
    /// not have, [`Error::NoMean`] where mean ablation is out of reach, [`Error::AblatedLoss`] for a loss that is not
    /// finite, errors of single samples (as [`PerSample::gradient`](crate::capture::PerSample::gradient)), and
    /// [`fisher_core::Error::SampleTwice`] when an id comes twice.
    pub fn forward<M: SampleLoss>(
        &self,
        model: &M,
        task: &str,
        batches: &[M::Batch],
        sets: &[GateSet],
    ) -> Result<AblationReport> {
        self.forward_with_reference(model, task, batches, sets, batches)
    }

    /// The same, with means over other samples.
    ///
    /// # Errors
    /// As [`Ablation::forward`].
    pub fn forward_with_reference<M: SampleLoss>(
        &self,
        model: &M,
        task: &str,
        batches: &[M::Batch],
        sets: &[GateSet],
        reference: &[M::Batch],
    ) -> Result<AblationReport> {
        let _span = tracing::info_span!("ablate", task).entered();
        let whole = Whole::new(Weights::of(model)?, Catalogue::of(model)?);
        let inputs = match self.config.kind {
            AblationKind::Mean => input_means(model, &whole, sets, reference)?,
            _ => BTreeMap::new(),
        };
        let copy = deterministic(model, |_| false);
        let (samples, before) = losses_of(&copy, task, batches)?;
        let gates: usize = sets.iter().map(GateSet::gates).sum();
        let n = samples.len();
        let mut rows = vec![0.0; n * gates];
        let bar = self.bar(task, gates);
        let labelled = sets
            .iter()
            .flat_map(|set| (0..set.gates()).map(move |gate| (set, gate)));
        for (at, (set, gate)) in labelled.enumerate() {
            let draws = match self.config.kind {
                AblationKind::Resample => self.config.draws,
                _ => 1,
            };
            for draw in 0..draws {
                let without = match self.config.kind {
                    AblationKind::Zero => whole.zero(set, gate)?,
                    AblationKind::Mean => whole.mean(set, gate, &inputs)?,
                    AblationKind::Resample => {
                        whole.resample(set, gate, [self.config.seed, at as u64, draw as u64])?
                    }
                };
                let without = without.write(copy.clone())?;
                let after = forward(&without, batches)?;
                for (i, (after, before)) in after.iter().zip(&before).enumerate() {
                    let change = after - before;
                    if !change.is_finite() {
                        return Err(Error::AblatedLoss {
                            gate: set.label(gate),
                            sample: samples[i].id.clone(),
                        });
                    }
                    rows[i * gates + at] += change / self.divisor(&samples[i]) / draws as f64;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let losses = samples.iter().zip(&before);
        let loss = losses.map(|(s, loss)| loss / self.divisor(s)).sum::<f64>() / n as f64;
        let gates = self.gates(sets, &samples, &rows)?;
        Ok(AblationReport {
            schema: SCHEMA,
            task: task.into(),
            model: hash_weights(model)?,
            kind: self.config.kind,
            unit: self.config.unit,
            draws: (self.config.kind == AblationKind::Resample).then_some(self.config.draws),
            seed: self.config.seed,
            level: self.config.level,
            interval: self.config.interval,
            clusters: clusters_of(&samples)
                .into_iter()
                .max()
                .map_or(0, |last| last + 1),
            loss,
            samples,
            gates,
            rows,
        })
    }

    fn divisor(&self, sample: &SampleRecord) -> f64 {
        match self.config.unit {
            AblationUnit::PerToken => sample.tokens as f64,
            AblationUnit::TokenSum => 1.0,
        }
    }

    fn gates(
        &self,
        sets: &[GateSet],
        samples: &[SampleRecord],
        rows: &[f64],
    ) -> Result<Vec<AblatedGate>> {
        let labels = sets
            .iter()
            .flat_map(|set| set.labels().map(|label| (set.kind(), label)));
        let labels: Vec<_> = labels.collect();
        let clusters = clusters_of(samples);
        let count = clusters.iter().max().map_or(0, |last| last + 1);
        let means = column_means(rows, labels.len());
        let errors = clustered_errors(rows, labels.len(), &clusters);
        let upper = 0.5 + self.config.level / 2.0;
        let width = (count > 1).then(|| student_quantile(upper, (count - 1) as f64));
        let drawn = match self.config.interval {
            AblationInterval::Bootstrap if count > 1 => {
                let (draws, seed) = (self.config.bootstraps, self.config.seed);
                Some(resampled_means(rows, labels.len(), &clusters, draws, seed))
            }
            _ => None,
        };
        let kinds: Vec<GateKind> = labels.iter().map(|(kind, _)| *kind).collect();
        let ranks = self.ranks(&kinds, rows, &clusters);
        let gates = labels.into_iter().enumerate().map(|(at, (kind, name))| {
            let standard_error = errors.as_ref().map(|errors| errors[at]);
            let interval = match &drawn {
                Some(drawn) => {
                    let mut column: Vec<f64> = drawn.iter().map(|means| means[at]).collect();
                    column.sort_unstable_by(f64::total_cmp);
                    let tail = (1.0 - self.config.level) / 2.0;
                    let last = column.len() - 1;
                    let place = |share: f64| column[(share * last as f64).round() as usize];
                    Some((place(tail), place(1.0 - tail)))
                }
                None => standard_error
                    .zip(width)
                    .map(|(error, width)| (means[at] - width * error, means[at] + width * error)),
            };
            AblatedGate {
                kind,
                name,
                increase: means[at],
                standard_error,
                interval: interval.map(|(lower, upper)| ConfidenceInterval { lower, upper }),
                ranks: ranks[at],
            }
        });
        Ok(gates.collect())
    }

    /// The ranks of every gate among those of its kind.
    fn ranks(&self, kinds: &[GateKind], rows: &[f64], clusters: &[usize]) -> Vec<Option<RankSet>> {
        let mut ranks = vec![None; kinds.len()];
        for (first, kind) in kinds.iter().enumerate() {
            if kinds[..first].contains(kind) {
                continue;
            }
            let places = (0..kinds.len()).filter(|at| kinds[*at] == *kind);
            let places: Vec<usize> = places.collect();
            if places.len() < 2 || places.len() > MOST_RANKED {
                continue;
            }
            let count = clusters.iter().max().map_or(0, |last| last + 1);
            let mut units = UnitSums {
                sums: vec![vec![0.0; places.len()]; count],
                sizes: vec![0; count],
            };
            for (row, &cluster) in rows.chunks(kinds.len()).zip(clusters) {
                units.sizes[cluster] += 1;
                let sums = units.sums[cluster].iter_mut().zip(&places);
                sums.for_each(|(sum, &at)| *sum += row[at]);
            }
            let (level, draws) = (self.config.level, self.config.bootstraps);
            let sets = rank_sets_of_differences(&units, level, draws, self.config.seed);
            for (at, set) in places.into_iter().zip(sets.into_iter().flatten()) {
                ranks[at] = Some(set);
            }
        }
        ranks
    }

    fn bar(&self, task: &str, gates: usize) -> ProgressBar {
        if !self.config.progress {
            return ProgressBar::hidden();
        }
        let template = "{prefix} without {wide_bar} {pos}/{len} gates, {eta} left";
        styled(ProgressBar::new(gates as u64), template, task.to_owned())
    }
}

/// Samples and their losses, of the whole model.
fn losses_of<M: SampleLoss>(
    model: &M,
    task: &str,
    batches: &[M::Batch],
) -> Result<(Vec<SampleRecord>, Vec<f64>)> {
    let (mut samples, mut losses) = (Vec::new(), Vec::new());
    let mut seen = std::collections::HashSet::new();
    for batch in batches {
        let of_batch = model.sample_losses(batch);
        let named = of_batch.samples(&ids(batch, samples.len()))?;
        for (index, sample) in named.into_iter().enumerate() {
            let record = SampleRecord::from(&clustered(batch, index, sample));
            if !seen.insert(record.id.clone()) {
                return Err(fisher_core::Error::SampleTwice {
                    task: task.into(),
                    sample: record.id,
                }
                .into());
            }
            samples.push(record);
        }
        losses.extend(read(at_least_single(of_batch.sums().clone().inner()))?);
    }
    if samples.is_empty() {
        return Err(fisher_core::Error::NoSamples { task: task.into() }.into());
    }
    Ok((samples, losses))
}

/// The losses of all samples.
fn forward<M: SampleLoss>(model: &M, batches: &[M::Batch]) -> Result<Vec<f64>> {
    let mut losses = Vec::new();
    for batch in batches {
        let sums = model.sample_losses(batch).sums().clone().inner();
        losses.extend(read(at_least_single(sums))?);
    }
    Ok(losses)
}

fn input_means<M: SampleLoss>(
    model: &M,
    whole: &Whole,
    sets: &[GateSet],
    reference: &[M::Batch],
) -> Result<BTreeMap<String, Vec<f64>>> {
    let matrices = whole.matrices(sets)?;
    let paths: Vec<String> = matrices.keys().cloned().collect();
    let mut means = InputMeans::new(matrices);
    let capture = CaptureConfig::new().with_engine(Engine::Trace);
    let mut capture = capture.init(model, paths.iter().map(String::as_str))?;
    for batch in reference {
        capture.accumulate(batch, "reference", &mut means)?;
    }
    means.finish()
}
