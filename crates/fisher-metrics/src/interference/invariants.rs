//! Invariants: laws that scores obey on any data, checked on the data at hand.

use std::fmt;

use fisher_core::grouping::{Block, Grouping, HeadLayout, Scheme};
use fisher_core::model::Catalogue;
use fisher_core::store::GradientStore;
use serde::{Deserialize, Serialize};

use super::config::{FisherEstimate, InterferenceConfig, Normalize, PairAggregate, Pool, Variant};
use super::operator::Interference;
use super::score::ScoredBlock;
use crate::error::{Error, Result};
use crate::pairs::{BLOCKS, BlockSlices, Slice, View, head_slices};
use crate::report::if_finite;

/// Samples of each task that are checked.
const SAMPLES: usize = 16;
/// Rounding of float32 products, relative to the largest score.
const TOLERANCE: f64 = 1e-5;

/// One law.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What must hold.
    pub law: String,
    /// The largest deviation found, relative to the largest score; `None` where one is no number, which
    /// is as far off as can be.
    pub deviation: Option<f64>,
    /// The largest that rounding explains.
    pub tolerance: f64,
}

impl Check {
    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.deviation.is_some_and(|off| off <= self.tolerance)
    }
}

/// Whether the scores obey their laws on real gradients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// The laws: additivity of heads, scaling of the loss, ablation, symmetry.
    pub checks: Vec<Check>,
    /// How far scores are from their loss-scale law when the damping is left as it is while the
    /// loss doubles: what ε and λ_min, which are absolute, do to these gradients; `None` likewise.
    pub damping: Option<f64>,
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
                "{verdict}  {} (off by {})",
                check.law,
                amount(check.deviation)
            )?;
        }
        write!(
            f,
            "With ε and λ_min left as they are, twice the loss moves scores by {} of the \
             largest from that law.",
            amount(self.damping)
        )
    }
}

fn amount(deviation: Option<f64>) -> String {
    deviation.map_or("no number".into(), |off| format!("{off:.1e}"))
}

impl Interference {
    /// Check, on the first 16 samples of each task, that
    ///
    /// - the sums over the heads of a block are those of its whole parameters, no element twice and
    ///   none left out (for a fused matrix, over the heads of Q, K and V together; λ being the same
    ///   for all; for the full variant, which does not add up, this is checked of the signed one);
    /// - twice the loss multiplies the unsigned scores by two and leaves the others as they are (ε
    ///   and λ_min, which have F's unit, going along);
    /// - a head whose gradient is 0 scores 0, and no other head changes;
    /// - the symmetric variant with a pooled F does not ask which task comes first.
    ///
    /// # Errors
    /// As [`Interference::forward`], and [`Error::TooFewSamples`] for fewer than two samples.
    pub fn self_check(&self, store: &GradientStore, tasks: [&str; 2]) -> Result<SelfCheck> {
        for task in tasks {
            if store.samples(task).len() < 2 {
                return Err(Error::too_few_samples(store, task));
            }
        }
        let base = InterferenceConfig {
            keep_scores: true,
            top: 0,
            progress: false,
            ..self.config.clone()
        };
        let laws = Laws {
            blocks: head_slices(store.heads(), store.catalogue(), &base.blocks)?,
            base,
            store,
            tasks,
        };
        let additivity = laws.additivity()?;
        let once = laws.run(&laws.base, &laws.blocks, tasks, &View::default())?;
        let [scaling, damping] = laws.scaling(&once)?;
        let ablation = laws.ablation(&once)?;
        let symmetry = laws.symmetry()?;
        let check = |law: &str, deviation| Check {
            law: law.into(),
            deviation,
            tolerance: TOLERANCE,
        };
        let scales = if laws.factor() == 2.0 {
            "twice the loss, twice the score"
        } else {
            "twice the loss, the same score"
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

/// What the laws are checked on. Every method gives the largest deviation from one.
struct Laws<'a> {
    base: InterferenceConfig,
    blocks: Vec<BlockSlices>,
    store: &'a GradientStore,
    tasks: [&'a str; 2],
}

impl Laws<'_> {
    fn run(
        &self,
        config: &InterferenceConfig,
        blocks: &[BlockSlices],
        tasks: [&str; 2],
        view: &View,
    ) -> Result<Scores> {
        let view = View {
            limit: Some(SAMPLES),
            ..view.clone()
        };
        let interference = config.init()?;
        let scored = interference.scored_blocks(blocks, self.store, tasks, &view)?;
        Ok(Scores::of(scored))
    }

    /// The heads of a block add up to it.
    fn additivity(&self) -> Result<Option<f64>> {
        let config = InterferenceConfig {
            variant: match self.base.variant {
                Variant::Full => Variant::Signed,
                other => other,
            },
            aggregate: PairAggregate::Sum,
            ridge: self.base.ridge.clone().with_ridge_rel(0.0),
            ..self.base.clone()
        };
        let [sliced, whole] = families(
            self.store.heads(),
            self.store.catalogue(),
            &self.base.blocks,
        )?;
        let run = |blocks: &[BlockSlices]| self.run(&config, blocks, self.tasks, &View::default());
        Ok(run(&sliced)?.summed().deviation(&run(&whole)?, 1.0))
    }

    /// What twice the loss multiplies scores by.
    fn factor(&self) -> f64 {
        match self.base.variant {
            Variant::Unsigned => 2.0,
            _ => 1.0,
        }
    }

    /// Twice the loss, with ε and λ_min going along, and with them left as they are.
    fn scaling(&self, once: &Scores) -> Result<[Option<f64>; 2]> {
        let double = View {
            factor: Some(2.0),
            ..View::default()
        };
        let ridge = &self.base.ridge;
        let along = ridge.clone().with_epsilon(4.0 * ridge.epsilon);
        let along = along.with_ridge(4.0 * ridge.ridge);
        let along = self.base.clone().with_ridge(along);
        let off = |config: &InterferenceConfig| -> Result<Option<f64>> {
            let twice = self.run(config, &self.blocks, self.tasks, &double)?;
            Ok(twice.deviation(once, self.factor()))
        };
        Ok([off(&along)?, off(&self.base)?])
    }

    /// The last head of every block of the first layer without its gradient.
    fn ablation(&self, once: &Scores) -> Result<Option<f64>> {
        let catalogue = self.store.catalogue();
        let mut worst = Some(0.0);
        let blocks = self.blocks.iter().enumerate();
        for (at, block) in blocks.filter(|(_, block)| block.layer == 0) {
            let unit = block.slices.len() - 1;
            // Where the head is, by another way than the slices': element by element.
            let label = format!("head.{}", block.block);
            let mut view = View::default();
            for part in &block.slices[unit].parts {
                let parameter = catalogue.require(&part.path)?;
                let groupings = Grouping::of(parameter, &Scheme::Head, self.store.heads())?;
                for grouping in groupings.iter().filter(|g| g.label() == label) {
                    let groups = grouping.group_of_elements().into_iter();
                    let zero = groups.map(|group| group == Some(unit)).collect();
                    view.zero.push((part.path.clone(), zero));
                }
            }
            let mut expected = once.clone();
            expected.0[at][unit].fill(0.0);
            let found = self.run(&self.base, &self.blocks, self.tasks, &view)?;
            worst = larger(worst, found.deviation(&expected, 1.0));
        }
        Ok(worst)
    }

    /// The symmetric variant with a pooled F, the tasks one way around and the other.
    fn symmetry(&self) -> Result<Option<f64>> {
        let config = InterferenceConfig {
            variant: Variant::Symmetric,
            pool: Pool::Pooled,
            estimate: FisherEstimate::All,
            normalize: Normalize::None,
            ..self.base.clone()
        };
        let [a, b] = self.tasks;
        let columns = self.store.samples(a).len().min(SAMPLES);
        let run = |tasks| self.run(&config, &self.blocks, tasks, &View::default());
        let backward = run([b, a])?.transposed(columns);
        Ok(run([a, b])?.deviation(&backward, 1.0))
    }
}

/// All heads of the blocks that share parameters (Q, K and V in a fused matrix) as one unit, for every
/// layer; and their parameters as one slice, which does not know of heads.
fn families(
    heads: &HeadLayout,
    catalogue: &Catalogue,
    blocks: &[Block],
) -> Result<[Vec<BlockSlices>; 2]> {
    let [mut sliced, mut whole] = [Vec::new(), Vec::new()];
    for (layer, attention) in heads.attention().iter().enumerate() {
        let mut left = blocks.to_vec();
        while let Some(&block) = left.first() {
            let has = |path: &&str, block| attention.blocks(path).any(|b| b == block);
            let paths = attention.paths().filter(|path| has(path, block));
            let paths: Vec<&str> = paths.collect();
            let shares = |block: &Block| paths.iter().any(|path| has(path, *block));
            let family: Vec<Block> = BLOCKS.into_iter().filter(shares).collect();
            left.retain(|of| *of != block && !family.contains(of));
            let parts = paths.iter().map(|path| {
                let all = std::iter::once(0..catalogue.require(path)?.elements());
                Ok(((*path).to_owned(), all.collect()))
            });
            let parts = parts.collect::<Result<Vec<_>>>()?;
            let slices = head_slices(heads, catalogue, &family)?.into_iter();
            let slices = slices.filter(|of| of.layer == layer);
            let unit = |slices| BlockSlices {
                layer,
                block,
                slices,
            };
            sliced.push(unit(slices.flat_map(|of| of.slices).collect()));
            whole.push(unit(vec![Slice::new(
                format!("layer {layer} {block}"),
                parts,
            )]));
        }
    }
    Ok([sliced, whole])
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

    /// The largest difference to `factor` times `other`, relative to that block's largest score; `None`
    /// where one is no number.
    fn deviation(&self, other: &Self, factor: f64) -> Option<f64> {
        let mut worst = Some(0.0);
        for (ours, theirs) in self.0.iter().zip(&other.0) {
            let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
            let largest = theirs
                .iter()
                .flatten()
                .fold(0.0, |m: f64, x| m.max(x.abs()));
            let largest = (largest * factor).max(f64::MIN_POSITIVE);
            for (x, y) in pairs {
                worst = larger(worst, if_finite((x - factor * y).abs() / largest));
            }
        }
        worst
    }
}

/// The larger deviation: what is no number is larger than all.
fn larger(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a?.max(b?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_off() {
        let scores = |values: [f64; 3]| Scores(vec![vec![values.to_vec()]]);
        let right = scores([1.0, -2.0, 4.0]);
        assert_eq!(right.deviation(&right, 1.0), Some(0.0));
        assert_eq!(scores([1.0, -2.0, 3.0]).deviation(&right, 1.0), Some(0.25));
        for wrong in [f64::NAN, f64::INFINITY] {
            for (x, y) in [(0, 1), (1, 0), (1, 1)] {
                let of = |on| scores([if on == 1 { wrong } else { 1.0 }, -2.0, 4.0]);
                let found = of(x).deviation(&of(y), 1.0);
                assert_eq!(found, None, "{wrong} {x} {y}");
                let check = Check {
                    law: "a law".into(),
                    deviation: found,
                    tolerance: TOLERANCE,
                };
                assert!(!check.holds());
            }
        }
    }
}
