//! The operator that scores where two tasks interfere, head by head and sample by sample.

use fisher_core::pieces;
use fisher_core::store::GradientStore;

use super::config::{FisherEstimate, InterferenceConfig, Normalize, PairAggregate, Pool, Variant};
use super::full::Full;
use super::normalizer::{Fishers, weigh_left, weigh_right};
use super::report::{InterferenceReport, assemble};
use super::score::ScoredBlock;
use super::sign;
use crate::error::{Error, Result, check_argument};
use crate::jackknife::Jackknife;
use crate::pairs::{BlockSlices, Rows, Slice, View, Work, bar, head_slices, products};

impl InterferenceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when settings do
    /// not go together.
    pub fn init(&self) -> Result<Interference> {
        self.ridge.check()?;
        let fits = self.alpha > 0.0 && self.alpha < 1.0;
        check_argument(fits, "alpha", "between 0 and 1", self.alpha)?;
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
/// For the signed and full variants every cell's mean is tested for its sign
/// ([`Significance`](super::Significance)). The other variants have no sign to test.
#[derive(Debug, Clone)]
pub struct Interference {
    pub(super) config: InterferenceConfig,
}

impl Interference {
    /// Score every sample of task `a` against every sample of task `b`.
    ///
    /// Heads are those of the store ([`GradientStore::heads`]). A task without samples gives zeros and a
    /// warning in the report. Products are computed on the store's device, in float32; those of the full variant in float64, which the
    /// device must have. What is multiplied is weighed in float64.
    ///
    /// # Errors
    /// [`fisher_core::Error::UnknownParameter`] when the store lacks an attention parameter,
    /// [`Error::NotCollected`] when there is no head, [`Error::TooFewSamples`] when leaving one
    /// out leaves none, [`Error::Singular`], and those of reading the store.
    pub fn forward(&self, store: &GradientStore, [a, b]: [&str; 2]) -> Result<InterferenceReport> {
        let blocks = head_slices(store.heads(), store.catalogue(), &self.config.blocks)?;
        let scored = self.scored_blocks(&blocks, store, [a, b], &View::default())?;
        assemble(&self.config, store, [a, b], store.heads(), scored)
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
        let pairs = if config.variant == Variant::Full {
            all * all
        } else {
            counts.iter().map(|n| side.min(*n)).product()
        };
        // For the signs: gradients and contributions of either task, of a cluster, and without it.
        let elements = match config.variant {
            Variant::Signed => 24 + 64,
            _ => 24,
        };
        elements * slice.elements + 16 * pairs
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
        if config.variant == Variant::Full {
            return self.score_full(slices, first, rows, work, scored);
        }
        let fishers = Fishers::new(config, slices, [&rows[0], &rows[1]], work)?;
        scored.health.extend(&fishers.health);
        if config.variant == Variant::Signed {
            let lambdas: Vec<f64> = fishers
                .health
                .iter()
                .map(|h| h.ridge_lambda_applied)
                .collect();
            let tests = sign::tests(config, slices, [&rows[0], &rows[1]], &lambdas, work)?;
            scored.tests.extend(tests);
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

    fn score_full(
        &self,
        slices: &[Slice],
        first: usize,
        rows: &[Rows; 3],
        work: &Work,
        scored: &mut ScoredBlock,
    ) -> Result<()> {
        // The diagonal of F is only reported, over all samples.
        let config = InterferenceConfig {
            estimate: FisherEstimate::All,
            ..self.config.clone()
        };
        let fishers = Fishers::new(&config, slices, [&rows[0], &rows[1]], work)?;
        let grams = work.gram(slices, &rows[2], |_, _| 1.0)?;
        for (i, (gram, mut health)) in grams.iter().zip(fishers.health).enumerate() {
            let full = Full::new(&self.config, &slices[i], gram, rows);
            let eigenvalue = full.eigenvalue();
            health.ridge_lambda_applied = full.lambda(eigenvalue);
            scored.health.push(health);
            scored.eigenvalues.push(eigenvalue);
            let whole = [0..rows[0].len(), 0..rows[1].len()];
            let scores = full.scores()?;
            scored.take(first + i, slices[i].elements, &whole, &scores);
            let clusters = [&*rows[0].clusters, &rows[1].clusters];
            let test = Jackknife::of_block(&scores, clusters, 1.0 - config.alpha)?;
            let factor = match config.aggregate {
                PairAggregate::Mean => 1.0 / slices[i].elements as f64,
                PairAggregate::Sum => 1.0,
            };
            scored.tests.push(test.map(|test| test.times(factor)));
        }
        Ok(())
    }
}

/// At most so many samples are scored at a time, so that memory does not grow with their number.
const ROWS: usize = 1024;
