//! Laws that scores obey on any data, checked on the data at hand.

use std::fmt;

use burn::tensor::Device;
use fisher_core::{GradientStore, Grouping, HeadLayout, Scheme};
use serde::{Deserialize, Serialize};

use super::{Aggregate, Interference, InterferenceConfig, Normalize, Pool, ScoredBlock, Variant};
use crate::pairs::{BlockSlices, Slice, View, head_slices};
use crate::{Error, Result};

/// Samples of each task that are checked.
const SAMPLES: usize = 16;
/// Rounding of float32 products, relative to the largest score.
const TOLERANCE: f64 = 1e-5;

/// One law.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What must hold.
    pub law: String,
    /// The largest deviation found, relative to the largest score.
    pub deviation: f64,
    /// The largest that rounding explains.
    pub tolerance: f64,
}

impl Check {
    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.deviation <= self.tolerance
    }
}

/// Whether the scores obey their laws on real gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// The laws: additivity of heads, scaling of the loss, ablation, symmetry.
    pub checks: Vec<Check>,
    /// How far scores are from their loss-scale law when the damping is left as it is while the
    /// loss doubles: what ε and λ_min, which are absolute, do to these gradients.
    pub damping: f64,
}

impl SelfCheck {
    /// Whether all laws hold.
    pub fn holds(&self) -> bool {
        self.checks.iter().all(Check::holds)
    }
}

impl fmt::Display for SelfCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let verdict = if check.holds() { "holds" } else { "FAILS" };
            writeln!(
                f,
                "{verdict}  {} (off by {:.1e})",
                check.law, check.deviation
            )?;
        }
        write!(
            f,
            "With ε and λ_min left as they are, twice the loss moves scores by {:.1e} of the \
             largest from that law.",
            self.damping
        )
    }
}

impl Interference {
    /// Check, on the first 16 samples of each task, that
    ///
    /// - the sums over the heads of a block are those of the whole block, no element twice and none
    ///   left out (λ being the same for all; for the full variant, which does not add up, this is
    ///   checked of the signed one);
    /// - twice the loss multiplies the unsigned scores by two and leaves the others as they are (ε
    ///   and λ_min, which have F's unit, going along);
    /// - a head whose gradient is 0 scores 0, and no other head changes;
    /// - the symmetric variant with a pooled F does not ask which task comes first.
    ///
    /// # Errors
    /// As [`Interference::forward`], and [`Error::TooFewSamples`] for fewer than two samples.
    pub fn self_check(
        &self,
        store: &GradientStore,
        tasks: [&str; 2],
        heads: &HeadLayout,
        device: &Device,
    ) -> Result<SelfCheck> {
        for task in tasks {
            if store.samples(task).len() < 2 {
                return Err(Error::TooFewSamples {
                    task: task.into(),
                    found: store.samples(task).len(),
                    known: store.tasks().collect::<Vec<_>>().join(", "),
                });
            }
        }
        let base = InterferenceConfig {
            keep_scores: true,
            relabellings: None,
            top: 0,
            progress: false,
            ..self.config.clone()
        };
        let blocks = head_slices(heads, store.catalogue(), &base.blocks)?;
        let run = |config: &InterferenceConfig, blocks: &[BlockSlices], tasks, view: &View| {
            let view = View {
                limit: Some(SAMPLES),
                ..view.clone()
            };
            let interference = config.init()?;
            let scored = interference.scored_blocks(blocks, store, tasks, device, &view)?;
            Ok::<Scores, Error>(Scores::of(scored))
        };
        let plain = View::default();

        let additive = InterferenceConfig {
            variant: match base.variant {
                Variant::Full => Variant::Signed,
                other => other,
            },
            aggregate: Aggregate::Sum,
            ..base.clone()
        };
        let additive = additive.with_ridge(base.ridge.clone().with_ridge_rel(0.0));
        let whole: Vec<BlockSlices> = blocks.iter().map(unsliced).collect();
        let sums = run(&additive, &blocks, tasks, &plain)?.summed();
        let additivity = sums.deviation(&run(&additive, &whole, tasks, &plain)?, 1.0);

        let once = run(&base, &blocks, tasks, &plain)?;
        let double = View {
            factor: Some(2.0),
            ..View::default()
        };
        let factor = match base.variant {
            Variant::Unsigned => 2.0,
            _ => 1.0,
        };
        let ridge = &base.ridge;
        let along = ridge.clone().with_epsilon(4.0 * ridge.epsilon);
        let along = base.clone().with_ridge(along.with_ridge(4.0 * ridge.ridge));
        let scaling = run(&along, &blocks, tasks, &double)?.deviation(&once, factor);
        let damping = run(&base, &blocks, tasks, &double)?.deviation(&once, factor);

        let mut ablation = 0f64;
        for (at, block) in blocks.iter().enumerate().filter(|(_, b)| b.layer == 0) {
            let unit = block.slices.len() - 1;
            // Where the head is, by another way than the slices': element by element.
            let label = format!("head.{}", block.block);
            let mut view = View::default();
            for part in &block.slices[unit].parts {
                let parameter = store.catalogue().require(&part.path)?;
                let groupings = Grouping::of(parameter, &Scheme::Head, heads)?;
                for grouping in groupings.iter().filter(|g| g.label() == label) {
                    let groups = grouping.group_of_elements().into_iter();
                    let zero = groups.map(|group| group == Some(unit)).collect();
                    view.zero.push((part.path.clone(), zero));
                }
            }
            let mut expected = once.clone();
            expected.0[at][unit].fill(0.0);
            let found = run(&base, &blocks, tasks, &view)?;
            ablation = ablation.max(found.deviation(&expected, 1.0));
        }

        let symmetric = InterferenceConfig {
            variant: Variant::Symmetric,
            pool: Pool::Pooled,
            estimate: super::Estimate::All,
            normalize: Normalize::None,
            ..base
        };
        let [a, b] = tasks;
        let columns = store.samples(a).len().min(SAMPLES);
        let backward = run(&symmetric, &blocks, [b, a], &plain)?.transposed(columns);
        let symmetry = run(&symmetric, &blocks, tasks, &plain)?.deviation(&backward, 1.0);

        let check = |law: &str, deviation| Check {
            law: law.into(),
            deviation,
            tolerance: TOLERANCE,
        };
        let scales = match factor == 2.0 {
            true => "twice the loss, twice the score",
            false => "twice the loss, the same score",
        };
        Ok(SelfCheck {
            checks: vec![
                check("the heads of a block add up to it", additivity),
                check(scales, scaling),
                check(
                    "a head without gradient scores 0, others as before",
                    ablation,
                ),
                check("the symmetric variant is symmetric", symmetry),
            ],
            damping,
        })
    }
}

/// All heads of a block as one slice.
fn unsliced(block: &BlockSlices) -> BlockSlices {
    let name = format!("layer {} {}", block.layer, block.block);
    BlockSlices {
        slices: vec![Slice::union(name, &block.slices)],
        ..block.clone()
    }
}

/// Scores by block of a layer, slice and pair.
#[derive(Clone)]
struct Scores(Vec<Vec<Vec<f64>>>);

impl Scores {
    fn of(scored: Vec<ScoredBlock>) -> Self {
        Self(
            scored
                .into_iter()
                .map(|of| of.kept.unwrap_or_default())
                .collect(),
        )
    }

    /// The sums over a block's slices.
    fn summed(self) -> Self {
        let sum = |slices: Vec<Vec<f64>>| {
            let zeros = vec![0.0; slices.first().map_or(0, Vec::len)];
            vec![slices.iter().fold(zeros, |mut sum, slice| {
                sum.iter_mut().zip(slice).for_each(|(sum, x)| *sum += x);
                sum
            })]
        };
        Self(self.0.into_iter().map(sum).collect())
    }

    /// Scores `[rows, columns]` from `[columns, rows]`.
    fn transposed(self, columns: usize) -> Self {
        let transpose = |scores: Vec<f64>| {
            let rows = scores.len() / columns;
            let pair = |k: usize| scores[k % rows * columns + k / rows];
            // The other way around: `columns` rows of `rows`.
            (0..scores.len()).map(pair).collect()
        };
        let slices = |slices: Vec<Vec<f64>>| slices.into_iter().map(transpose).collect();
        Self(self.0.into_iter().map(slices).collect())
    }

    /// The largest difference to `factor` times `other`, relative to that block's largest score.
    fn deviation(&self, other: &Self, factor: f64) -> f64 {
        let mut worst = 0f64;
        for (ours, theirs) in self.0.iter().zip(&other.0) {
            let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
            let largest = theirs
                .iter()
                .flatten()
                .fold(0.0, |m: f64, x| m.max(x.abs()));
            let largest = (largest * factor).max(f64::MIN_POSITIVE);
            for (x, y) in pairs {
                worst = worst.max((x - factor * y).abs() / largest);
            }
        }
        worst
    }
}
