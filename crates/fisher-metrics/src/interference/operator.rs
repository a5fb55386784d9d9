//! The operator that scores where two tasks interfere, head by head and sample by sample.

use fisher_core::pieces;
use fisher_core::store::GradientStore;

use super::config::{FisherEstimate, InterferenceConfig, Normalize, PairAggregate, Pool, Variant};
use super::full;
use super::normalizer::{Fishers, weigh_left, weigh_right};
use super::report::{InterferenceReport, assemble};
use super::score::ScoredBlock;
use crate::error::{Error, Result, check_argument};
use crate::pairs::{BlockSlices, Rows, Slice, View, Work, bar, head_slices, products};
use crate::permutation::{Relabelled, Relabellings};

impl InterferenceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when settings do
    /// not go together.
    pub fn init(&self) -> Result<Interference> {
        self.ridge.check()?;
        let some = self.relabellings != Some(0);
        check_argument(some, "relabellings", "above 0", 0.0)?;
        if self.variant == Variant::Symmetric && self.normalize != Normalize::None {
            return Err(Error::Settings {
                what: "the symmetric variant has no g_j to normalize; leave `normalize` at `none`",
            });
        }
        if self.variant == Variant::Full && self.ridge.ridge == 0.0 {
            return Err(Error::Settings {
                what: "the full Fisher of few samples is singular; give a `ridge` above 0",
            });
        }
        Ok(Interference {
            config: self.clone(),
        })
    }
}

/// Scores the interference of two tasks in the heads of every block Q, K, V and O.
///
/// `Î = D(F) = max(F, ε) + λ` over each head's slice ([`Ridge`](crate::damping::Ridge)), `F` from the contributions
/// `C_i = g_i ⊙ g_i / T_i` of the samples in the store, elementwise. Query heads that share a
/// key/value head share its scores.
///
/// Significance ([`InterferenceConfig::relabellings`]) asks whether a cell's scores know the tasks:
/// every sample is scored against every other with `Î` over all of them, so that nothing but the
/// labels is permuted; the statistic is the mean score from A to B less half the sum of the means
/// within each. It is one-sided (small is conflict) for the signed and full variants, and two-sided
/// for the others, whose scores have no sign.
#[derive(Debug, Clone)]
pub struct Interference {
    pub(super) config: InterferenceConfig,
}

impl Interference {
    /// Score every sample of task `a` against every sample of task `b`.
    ///
    /// Heads are those of the store ([`GradientStore::heads`]). A task without samples gives zeros and a
    /// warning in the report. Products are computed on the store's device, in float32; those of the full variant and of significance in float64 where the device
    /// has it (the full variant needs it). What is multiplied is weighed in float64.
    ///
    /// # Errors
    /// [`fisher_core::Error::UnknownParameter`] when the store lacks an attention parameter,
    /// [`Error::NotCollected`] when there is no head, [`Error::TooFewSamples`] when leaving one
    /// out leaves none, [`Error::Singular`], and those of reading the store.
    pub fn forward(&self, store: &GradientStore, [a, b]: [&str; 2]) -> Result<InterferenceReport> {
        let blocks = head_slices(store.heads(), store.catalogue(), &self.config.blocks)?;
        let scored = self.scored_blocks(&blocks, store, [a, b], &View::default())?;
        Ok(assemble(&self.config, store, [a, b], store.heads(), scored))
    }

    pub(super) fn scored_blocks(
        &self,
        blocks: &[BlockSlices],
        store: &GradientStore,
        [a, b]: [&str; 2],
        view: &View,
    ) -> Result<Vec<ScoredBlock>> {
        let config = &self.config;
        let work = Work::new(store.device(), config.memory);
        let rows = [[a].as_slice(), &[b], &[a, b]].map(|tasks| Rows::viewed(store, tasks, view));
        let counts = [rows[0].len(), rows[1].len()];
        let leaves_out = config.estimate == FisherEstimate::LeaveOneOut && config.pool != Pool::B;
        if leaves_out && counts[0] == 1 {
            return Err(Error::too_few_samples(store, a));
        }
        if config.variant == Variant::Full && !work.wide {
            return Err(Error::Settings {
                what: "the full variant needs a device with float64",
            });
        }
        let relabellings = config
            .relabellings
            .filter(|_| counts.iter().all(|n| *n > 1));
        let relabellings =
            relabellings.map(|draws| Relabellings::new(counts[0], counts[1], draws, config.seed));
        let bar = bar(config.progress, "interference", blocks.len());
        let side = work.side(ROWS);
        let need = |slice: &Slice| self.need(slice, counts, side);
        let largest = |block: &BlockSlices| block.slices.iter().map(need).max().unwrap_or(0);
        let at_once = |block: &BlockSlices| work.at_once(largest(block)).min(block.slices.len());
        let score = |block: &BlockSlices| {
            let mut scored = ScoredBlock::new(block, counts, config);
            if !counts.contains(&0) {
                let at_once = at_once(block).max(1);
                for (i, slices) in block.slices.chunks(at_once).enumerate() {
                    self.score(slices, i * at_once, &rows, &work, side, &mut scored)?;
                }
                if let Some(relabellings) = &relabellings {
                    for slice in block.slices.chunks(1) {
                        let test = self.significance(slice, &rows[2], &work, relabellings)?;
                        scored.tests.push(test);
                    }
                }
            }
            bar.inc(1);
            Ok(scored)
        };
        let scored = work.map(blocks, |block| at_once(block) * largest(block), score);
        bar.finish_and_clear();
        scored
    }

    /// Bytes that are held of a slice while it is scored: F made ready, and scores as they come from
    /// the device and as they are summed.
    fn need(&self, slice: &Slice, counts: [usize; 2], side: usize) -> usize {
        let all = counts[0] + counts[1];
        let config = &self.config;
        let pairs = if config.variant == Variant::Full || config.relabellings.is_some() {
            all * all
        } else {
            counts.iter().map(|n| side.min(*n)).product()
        };
        24 * slice.elements + 16 * pairs
    }

    fn score(
        &self,
        slices: &[Slice],
        first: usize,
        rows: &[Rows; 3],
        work: &Work,
        side: usize,
        scored: &mut ScoredBlock,
    ) -> Result<()> {
        let config = &self.config;
        let fishers = Fishers::new(config, slices, [&rows[0], &rows[1]], work)?;
        scored.health.extend(&fishers.health);
        if config.variant == Variant::Full {
            let grams = work.gram(slices, &rows[2], |_, _| 1.0)?;
            for (i, gram) in grams.into_iter().enumerate() {
                let scores = full::scores(config, &slices[i], &gram, rows, &fishers.lambdas[i])?;
                let whole = [0..rows[0].len(), 0..rows[1].len()];
                scored.take(first + i, slices[i].elements, &whole, &scores);
            }
            return Ok(());
        }
        for left in pieces(rows[0].len(), side) {
            let a = rows[0].cut(left.clone());
            for right in pieces(rows[1].len(), side) {
                let b = rows[1].cut(right.clone());
                let weigh_b = weigh_right(config, &b, &rows[1]);
                let ranges = [left.clone(), right];
                let scores = match &fishers.left_out {
                    None => {
                        let weigh_a = weigh_left(config.variant, &a, &fishers.inverse);
                        let device = &work.device;
                        products::<f32>(slices, (&a, weigh_a), (&b, weigh_b), device, work.bytes)?
                    }
                    Some(of) => {
                        let weigh_a = of.weigh_left(config, &a, left.start, &fishers.lambdas);
                        let device = &work.device;
                        products::<f32>(slices, (&a, weigh_a), (&b, weigh_b), device, work.bytes)?
                    }
                };
                for (i, scores) in scores.iter().enumerate() {
                    scored.take(first + i, slices[i].elements, &ranges, scores);
                }
            }
        }
        Ok(())
    }

    /// All samples against each other, with F over all of them: what relabelling may permute.
    fn significance(
        &self,
        slice: &[Slice],
        rows: &Rows,
        work: &Work,
        relabellings: &Relabellings,
    ) -> Result<Relabelled> {
        let config = InterferenceConfig {
            pool: Pool::A,
            estimate: FisherEstimate::All,
            ..self.config.clone()
        };
        let fishers = Fishers::new(&config, slice, [rows, rows], work)?;
        let mut scores = if config.variant == Variant::Full {
            let gram = work.gram(slice, rows, |_, _| 1.0)?;
            full::among(&config, &slice[0], &gram[0], rows, &fishers.lambdas[0][..])?
        } else {
            let left = weigh_left(config.variant, rows, &fishers.inverse);
            let right = weigh_right(&config, rows, rows);
            let (left, right) = ((rows, left), (rows, right));
            let mut scores = if work.wide {
                products::<f64>(slice, left, right, &work.device, work.bytes)?
            } else {
                products::<f32>(slice, left, right, &work.device, work.bytes)?
            };
            scores.swap_remove(0)
        };
        if config.aggregate == PairAggregate::Mean {
            let elements = slice[0].elements as f64;
            scores.iter_mut().for_each(|score| *score /= elements);
        }
        Ok(relabellings.test(&scores, work.slack))
    }
}

/// At most so many samples are scored at a time, so that memory does not grow with their number.
const ROWS: usize = 1024;
