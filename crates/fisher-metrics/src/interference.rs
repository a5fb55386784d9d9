//! Where the attention of two tasks interferes, head by head and sample by sample.

mod check;
mod full;
mod report;

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

use burn::config::Config;
use burn::tensor::Device;
use fisher_core::{Block, GradientStore, HeadLayout, Sample};
use serde::{Deserialize, Serialize};

pub use check::{Check, SelfCheck};
pub use report::{Collision, InterferenceReport, Significance, SliceScores};

use self::report::assemble;
use crate::correction::Correction;
use crate::damping::{Health, Ridge};
use crate::error::{Error, Result};
use crate::pairs::{
    BLOCKS, BlockSlices, Rows, Slice, View, Work, bar, fisher, for_each_run, head_slices, products,
};
use crate::permutation::{Relabelled, Relabellings};

/// The score `M_ij` of a sample `i` of task A and `j` of task B, over the `k` elements of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// `Σ_k C_ik / Î_k · |g_jk|`: how strongly `j` pulls at what `i` depends on.
    ///
    /// Degenerate where it is averaged: with pool A and all samples, the mean over `i` is
    /// `Σ_k |g_jk|` whatever task A is, since `Î` is the mean of the very `C_i` it divides.
    Unsigned,
    /// `Σ_k g_ik g_jk / Î_k`: positive is synergy, negative is conflict.
    Signed,
    /// `Σ_k √(C_ik C_jk) / Î_k`: neither task comes first.
    Symmetric,
    /// `Σ_k C_ik / Î_k · |g_jk| / √Î_k`: does not change when a loss is multiplied.
    Natural,
    /// `g_iᵀ (F + λI)⁻¹ g_j` with the full empirical Fisher of the slice, exact by the Woodbury
    /// identity on the samples. With `leave_one_out` one linear system a sample.
    Full,
}

/// Which Fisher normalises: `Î = D(F)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pool {
    /// F of task A.
    A,
    /// F of task B.
    B,
    /// `½(F_A + F_B)`.
    #[serde(rename = "pooled")]
    Pooled,
}

/// Which samples F is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// All.
    All,
    /// Sample `i` leaves `F_A` when it is scored.
    LeaveOneOut,
}

/// What a slice's score stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// The mean over its elements: heads and blocks of different size compare.
    Mean,
    /// The sum: heads add up to their block.
    Sum,
}

/// What `g_j` is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Nothing.
    None,
    /// `T_j`.
    PerTokenMean,
    /// `Σ_j T_j`.
    PerTokenSum,
}

/// Configuration of [`Interference`].
///
/// The defaults are those of the measure's first description: see [`Variant::Unsigned`] for what
/// their averaged map cannot say, and prefer [`Pool::B`] or [`Variant::Signed`] for one.
#[derive(Config, Debug, PartialEq)]
pub struct InterferenceConfig {
    /// The score.
    #[config(default = "Variant::Unsigned")]
    pub variant: Variant,
    /// Which Fisher normalises.
    #[config(default = "Pool::A")]
    pub pool: Pool,
    /// Which samples it is of.
    #[config(default = "Estimate::All")]
    pub estimate: Estimate,
    /// What a slice's score stands for.
    #[config(default = "Aggregate::Mean")]
    pub aggregate: Aggregate,
    /// What `g_j` is divided by.
    #[config(default = "Normalize::None")]
    pub normalize: Normalize,
    /// The damping.
    #[config(default = "Ridge::new()")]
    pub ridge: Ridge,
    /// The blocks to look at.
    #[config(default = "BLOCKS.to_vec()")]
    pub blocks: Vec<Block>,
    /// Pairs of samples listed.
    #[config(default = 20)]
    pub top: usize,
    /// Keep the scores of all pairs: `n_A n_B` numbers for every block, layer and head.
    #[config(default = false)]
    pub keep_scores: bool,
    /// Test every cell by this many relabellings of the tasks (all, where they are at most
    /// 10 000). Scores every sample against every other: several times the work.
    pub relabellings: Option<usize>,
    /// The level of those tests.
    #[config(default = 0.05)]
    pub alpha: f64,
    /// Their correction.
    #[config(default = "Correction::BenjaminiHochberg")]
    pub correction: Correction,
    /// Seed of the relabellings.
    #[config(default = 0)]
    pub seed: u64,
    /// Bytes to work with, all threads together: half for tiles of gradients, half for what is held
    /// of heads (24 bytes an element, 16 a pair of samples that are scored together). As many heads
    /// are scored at a time as that allows, and one alone where it needs more. Scores that are kept
    /// come on top.
    #[config(default = 268435456)]
    pub memory: usize,
    /// Show a progress bar, where standard error is a terminal.
    #[config(default = true)]
    pub progress: bool,
}

impl InterferenceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when settings do
    /// not go together.
    pub fn init(&self) -> Result<Interference> {
        self.ridge.check()?;
        if self.relabellings == Some(0) {
            return Err(Error::Argument {
                name: "relabellings",
                expected: "above 0",
                found: 0.0,
            });
        }
        if self.variant == Variant::Symmetric && self.normalize != Normalize::None {
            return Err(Error::Settings {
                what: "the symmetric variant has no g_j to normalise; leave `normalize` at `none`",
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

    /// What is scored, as `key=value,..`: the settings that are not the default, or `default`.
    ///
    /// ```
    /// use fisher_metrics::{InterferenceConfig, Pool, Variant};
    /// let config = InterferenceConfig::new();
    /// assert_eq!(config.label(), "default");
    /// let config = config.with_variant(Variant::Signed).with_pool(Pool::Pooled);
    /// assert_eq!(config.label(), "variant=signed,pool=pooled");
    /// ```
    pub fn label(&self) -> String {
        let default = Self::new();
        let mut named: Vec<String> = Vec::new();
        macro_rules! name {
            ($key:literal, $($field:ident).+) => {
                if self.$($field).+ != default.$($field).+ {
                    let value = serde_json::json!(self.$($field).+);
                    let text = value.as_str().map_or_else(|| value.to_string(), Into::into);
                    named.push(format!("{}={text}", $key));
                }
            };
        }
        name!("variant", variant);
        name!("pool", pool);
        name!("estimate", estimate);
        name!("aggregate", aggregate);
        name!("normalize", normalize);
        name!("epsilon", ridge.epsilon);
        name!("ridge", ridge.ridge);
        name!("ridge_rel", ridge.ridge_rel);
        match named.is_empty() {
            true => "default".into(),
            false => named.join(","),
        }
    }
}

/// Scores the interference of two tasks in the heads of every block Q, K, V and O.
///
/// `Î = D(F) = max(F, ε) + λ` over each head's slice ([`Ridge`]), `F` from the contributions
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
    config: InterferenceConfig,
}

impl Interference {
    /// Score every sample of task `a` against every sample of task `b`.
    ///
    /// A task without samples gives zeros and a warning in the report. Products are computed on
    /// `device`, in float32; those of the full variant and of significance in float64 where the device
    /// has it (the full variant needs it). What is multiplied is weighed in float64.
    ///
    /// # Errors
    /// [`fisher_core::Error::UnknownParameter`] when the store lacks an attention parameter,
    /// [`Error::NotCollected`] when there is no head, [`Error::TooFewSamples`] when leaving one
    /// out leaves none, [`Error::Singular`], and those of reading the store.
    pub fn forward(
        &self,
        store: &GradientStore,
        [a, b]: [&str; 2],
        heads: &HeadLayout,
        device: &Device,
    ) -> Result<InterferenceReport> {
        let scored = self.scored(store, [a, b], heads, device, &View::default())?;
        Ok(assemble(&self.config, store, [a, b], heads, scored))
    }

    fn scored(
        &self,
        store: &GradientStore,
        [a, b]: [&str; 2],
        heads: &HeadLayout,
        device: &Device,
        view: &View,
    ) -> Result<Vec<ScoredBlock>> {
        let blocks = head_slices(heads, store.catalogue(), &self.config.blocks)?;
        self.scored_blocks(&blocks, store, [a, b], device, view)
    }

    fn scored_blocks(
        &self,
        blocks: &[BlockSlices],
        store: &GradientStore,
        [a, b]: [&str; 2],
        device: &Device,
        view: &View,
    ) -> Result<Vec<ScoredBlock>> {
        let config = &self.config;
        let work = Work::new(device, config.memory);
        let rows = [[a].as_slice(), &[b], &[a, b]].map(|tasks| Rows::viewed(store, tasks, view));
        let counts = [rows[0].len(), rows[1].len()];
        let leaves_out = config.estimate == Estimate::LeaveOneOut && config.pool != Pool::B;
        if leaves_out && counts[0] == 1 {
            return Err(Error::TooFewSamples {
                task: a.into(),
                found: 1,
                known: store.tasks().collect::<Vec<_>>().join(", "),
            });
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
        let pairs = match config.variant == Variant::Full || config.relabellings.is_some() {
            true => all * all,
            false => counts.iter().map(|n| side.min(*n)).product(),
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
        for left in tiles(rows[0].len(), side) {
            let a = rows[0].cut(left.clone());
            for right in tiles(rows[1].len(), side) {
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
            estimate: Estimate::All,
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
            match work.wide {
                true => products::<f64>(slice, left, right, &work.device, work.bytes)?,
                false => products::<f32>(slice, left, right, &work.device, work.bytes)?,
            }
            .swap_remove(0)
        };
        if config.aggregate == Aggregate::Mean {
            let elements = slice[0].elements as f64;
            scores.iter_mut().for_each(|score| *score /= elements);
        }
        Ok(relabellings.test(&scores, work.slack))
    }
}

/// At most so many samples are scored at a time, so that memory does not grow with their number.
const ROWS: usize = 1024;

fn tiles(rows: usize, side: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows)
        .step_by(side)
        .map(move |start| start..rows.min(start + side))
}

/// F over every slice, made ready to divide by.
struct Fishers {
    health: Vec<Health>,
    /// Of every slice, of every row of A where they differ, else one.
    lambdas: Vec<Vec<f64>>,
    /// `1/Î` (`Î^-1.5` for the natural variant) of every slice and element, where no sample leaves F
    /// and the variant is not the full one.
    inverse: Vec<Vec<f64>>,
    left_out: Option<LeftOut>,
}

/// What it takes to leave a sample out.
struct LeftOut {
    /// `n_A F_A`, or half of it where F is pooled, of every slice.
    sums: Vec<Vec<f64>>,
    /// What task B adds to F.
    rest: Option<Vec<Vec<f64>>>,
    count: f64,
    share: f64,
}

impl Fishers {
    fn new(
        config: &InterferenceConfig,
        slices: &[Slice],
        rows: [&Rows; 2],
        work: &Work,
    ) -> Result<Self> {
        let [a, b] = rows;
        let (tasks, share): (&[_], _) = match config.pool {
            Pool::A => (&[(a, 1.0)], 1.0),
            Pool::B => (&[(b, 1.0)], 0.0),
            Pool::Pooled => (&[(a, 0.5), (b, 0.5)], 0.5),
        };
        if config.estimate == Estimate::LeaveOneOut && share > 0.0 {
            return Self::leaving_out(config, slices, tasks, share, work);
        }
        let mut fisher = fisher(slices, tasks, work.bytes)?;
        let health: Vec<Health> = fisher
            .iter()
            .map(|f| config.ridge.health(&mut f.clone()))
            .collect();
        for (fisher, health) in fisher.iter_mut().zip(&health) {
            let lambda = health.ridge_lambda_applied;
            let damped = |f: f64| config.ridge.damped(f, lambda);
            let entries = fisher.iter_mut();
            entries.for_each(|f| *f = config.variant.inverse(damped(*f)));
        }
        Ok(Self {
            inverse: fisher,
            lambdas: health
                .iter()
                .map(|h| vec![h.ridge_lambda_applied])
                .collect(),
            left_out: None,
            health,
        })
    }

    /// `tasks` begin with A, whose part of F is `share`.
    fn leaving_out(
        config: &InterferenceConfig,
        slices: &[Slice],
        tasks: &[(&Rows, f64)],
        share: f64,
        work: &Work,
    ) -> Result<Self> {
        let (first, others) = tasks.split_at(1);
        let rows = first[0].0;
        let mut sums = fisher(slices, first, work.bytes)?;
        let rest = (!others.is_empty()).then(|| fisher(slices, others, work.bytes));
        let rest = rest.transpose()?;
        let health = |(slice, sum): (usize, &Vec<f64>)| {
            let mut all = sum.clone();
            let rest = rest.iter().flat_map(|rest| &rest[slice]);
            all.iter_mut().zip(rest).for_each(|(f, rest)| *f += rest);
            config.ridge.health(&mut all)
        };
        let health = sums.iter().enumerate().map(health).collect();
        let count = rows.len() as f64;
        sums.iter_mut().flatten().for_each(|f| *f *= count);
        let left_out = LeftOut {
            sums,
            rest,
            count,
            share,
        };
        Ok(Self {
            health,
            lambdas: left_out.lambdas(config, slices, rows, work)?,
            inverse: Vec::new(),
            left_out: Some(left_out),
        })
    }
}

impl LeftOut {
    /// F at one element of a slice without a sample whose gradient there is `g`.
    fn fisher(&self, slice: usize, at: usize, g: f32, tokens: f64) -> f64 {
        let own = self.share * (f64::from(g) * f64::from(g)) / tokens;
        let rest = self.rest.as_ref().map_or(0.0, |rest| rest[slice][at]);
        // A sum less its largest term can round to below 0.
        ((self.sums[slice][at] - own) / (self.count - 1.0)).max(0.0) + rest
    }

    /// λ of every slice and row: the median of F without the row.
    fn lambdas(
        &self,
        config: &InterferenceConfig,
        slices: &[Slice],
        rows: &Rows,
        work: &Work,
    ) -> Result<Vec<Vec<f64>>> {
        let mut lambdas = vec![Vec::new(); slices.len()];
        let mut without: Vec<Vec<f64>> = slices.iter().map(|s| vec![0.0; s.elements]).collect();
        for row in 0..rows.len() {
            let one = rows.cut(row..row + 1);
            for_each_run(slices, &one, work.bytes, |slice, _, at, run| {
                let into = &mut without[slice][at..at + run.len()];
                for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                    *into = self.fisher(slice, at + k, g, one.tokens[0]);
                }
            })?;
            for (lambdas, without) in lambdas.iter_mut().zip(&mut without) {
                lambdas.push(config.ridge.lambda(without));
            }
        }
        Ok(lambdas)
    }

    /// The side of task A, every row divided by an `Î` of its own. Rows count from `first`.
    fn weigh_left(
        &self,
        config: &InterferenceConfig,
        rows: &Rows,
        first: usize,
        lambdas: &[Vec<f64>],
    ) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) {
        let (variant, ridge) = (config.variant, config.ridge.clone());
        let tokens = rows.tokens.clone();
        move |slice, row, at, run, into| {
            let (lambda, share) = (lambdas[slice][first + row], variant.share(tokens[row]));
            for (k, (into, &g)) in into.iter_mut().zip(run).enumerate() {
                let damped = ridge.damped(self.fisher(slice, at + k, g, tokens[row]), lambda);
                *into = left(variant, g, variant.inverse(damped), share);
            }
        }
    }
}

/// What task A's sample gives to one term: `C/Î`, `g/Î` or `√C/Î`; `share` is [`Variant::share`]. In
/// float64: the square of a gradient and the inverse of F are out of float32's range long before
/// their product is.
#[inline(always)]
fn left(variant: Variant, g: f32, inverse: f64, share: f64) -> f64 {
    let g = f64::from(g);
    match variant {
        Variant::Unsigned | Variant::Natural => g * g * inverse * share,
        Variant::Symmetric => g.abs() * inverse * share,
        Variant::Signed | Variant::Full => g * inverse,
    }
}

impl Variant {
    /// What the tokens of a sample of task A multiply its terms by.
    fn share(self, tokens: f64) -> f64 {
        match self {
            Self::Symmetric => tokens.sqrt().recip(),
            _ => tokens.recip(),
        }
    }

    /// The power of `Î` that its terms are multiplied by.
    fn inverse(self, damped: f64) -> f64 {
        match self {
            Self::Natural => (damped * damped.sqrt()).recip(),
            _ => damped.recip(),
        }
    }
}

fn weigh_left(
    variant: Variant,
    rows: &Rows,
    inverse: &[Vec<f64>],
) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) {
    let shares: Vec<f64> = rows.tokens.iter().map(|t| variant.share(*t)).collect();
    move |slice, row, at, run, into| {
        let share = shares[row];
        let inverse = &inverse[slice][at..at + run.len()];
        let terms = into.iter_mut().zip(run).zip(inverse);
        // One loop each, so that none asks for the variant inside.
        macro_rules! fill {
            ($($variant:ident)|+) => {
                match variant {
                    $(Variant::$variant => terms.for_each(|((into, &g), &inverse)| {
                        *into = left(Variant::$variant, g, inverse, share);
                    }),)+
                }
            };
        }
        fill!(Unsigned | Signed | Symmetric | Natural | Full)
    }
}

/// The side of task B: `|g|`, `g` or `√C`, normalised. `all` are the rows of the whole task.
fn weigh_right(
    config: &InterferenceConfig,
    rows: &Rows,
    all: &Rows,
) -> impl Fn(usize, usize, usize, &[f32], &mut [f64]) + use<> {
    let variant = config.variant;
    let total: f64 = all.tokens.iter().sum();
    let factor = |tokens: &f64| match (variant, config.normalize) {
        (Variant::Symmetric, _) => tokens.sqrt().recip(),
        (_, Normalize::None) => 1.0,
        (_, Normalize::PerTokenMean) => tokens.recip(),
        (_, Normalize::PerTokenSum) => total.recip(),
    };
    let factors: Vec<f64> = rows.tokens.iter().map(factor).collect();
    move |_, row, _, run, into| {
        let factor = factors[row];
        let terms = into.iter_mut().zip(run);
        match variant {
            Variant::Signed | Variant::Full => {
                terms.for_each(|(into, &g)| *into = f64::from(g) * factor);
            }
            _ => terms.for_each(|(into, &g)| *into = f64::from(g.abs()) * factor),
        }
    }
}

/// The scores of one block of one layer, as they come in.
pub(crate) struct ScoredBlock {
    layer: usize,
    block: Block,
    names: Vec<String>,
    counts: [usize; 2],
    divide: bool,
    /// Sums over all pairs, of every slice.
    sums: Vec<f64>,
    /// The worst pairs: slice, sample of A, sample of B.
    top: BinaryHeap<Reverse<Worst>>,
    limit: usize,
    /// Whether the lowest scores are the worst.
    low: bool,
    /// Of every slice, `[n_A, n_B]`, if kept.
    kept: Option<Vec<Vec<f64>>>,
    health: Vec<Health>,
    tests: Vec<Relabelled>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worst {
    /// Larger is worse.
    badness: f64,
    score: f64,
    slice: usize,
    pair: [usize; 2],
}

impl Eq for Worst {}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |w: &Self| (w.slice, w.pair);
        let badness = self.badness.total_cmp(&other.badness);
        badness.then(place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ScoredBlock {
    fn new(block: &BlockSlices, counts: [usize; 2], config: &InterferenceConfig) -> Self {
        let slices = block.slices.len();
        Self {
            layer: block.layer,
            block: block.block,
            names: block.slices.iter().map(|s| s.name.clone()).collect(),
            counts,
            divide: config.aggregate == Aggregate::Mean,
            sums: vec![0.0; slices],
            top: BinaryHeap::new(),
            limit: config.top,
            low: matches!(config.variant, Variant::Signed | Variant::Full),
            kept: config
                .keep_scores
                .then(|| vec![vec![0.0; counts[0] * counts[1]]; slices]),
            health: Vec::new(),
            tests: Vec::new(),
        }
    }

    /// Take in the sums over a slice of the pairs in `[left, right]`, row-major.
    fn take(&mut self, slice: usize, elements: usize, ranges: &[Range<usize>; 2], sums: &[f64]) {
        let factor = if self.divide {
            1.0 / elements as f64
        } else {
            1.0
        };
        let [left, right] = ranges;
        for (i, row) in left.clone().zip(sums.chunks_exact(right.len())) {
            for (j, sum) in right.clone().zip(row) {
                let score = sum * factor;
                self.sums[slice] += score;
                if let Some(kept) = &mut self.kept {
                    kept[slice][i * self.counts[1] + j] = score;
                }
                let badness = if self.low { -score } else { score };
                let full = self.top.len() >= self.limit;
                if full
                    && self
                        .top
                        .peek()
                        .is_none_or(|least| badness < least.0.badness)
                {
                    continue;
                }
                self.top.push(Reverse(Worst {
                    badness,
                    score,
                    slice,
                    pair: [i, j],
                }));
                if full {
                    self.top.pop();
                }
            }
        }
    }
}

fn ids(samples: &[Sample]) -> Vec<String> {
    samples.iter().map(|s| s.id().to_owned()).collect()
}
