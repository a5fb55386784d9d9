//! The report of [`Interference`](super::Interference).

use std::collections::HashSet;
use std::fmt;

use fisher_core::grouping::{Block, HeadLayout};
use fisher_core::store::GradientStore;
use serde::{Deserialize, Serialize};

use super::config::{FisherEstimate, InterferenceConfig, PairAggregate, Pool, Variant};
use super::score::{ScoredBlock, Worst, ids};
use crate::damping::Health;
use crate::error::Result;
use crate::jackknife::{Jackknife, clusters};
use crate::pairs::BLOCKS;
use crate::picture::{ColorScale, HeatMap, Picture};
use crate::report::{GradientSource, SampleRef};

/// Version of the form of [`InterferenceReport`].
const SCHEMA: u64 = 2;

/// The scores of one head slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceScores {
    /// Attention layer, block and head.
    pub name: String,
    /// The block.
    pub block: Block,
    /// The number of the attention layer, from 0.
    pub layer: usize,
    /// The query heads that use it: more than one where a key/value head is shared.
    pub heads: Vec<usize>,
    /// Mean score over all pairs of samples. Where a sign was tested, maps show the mean of the test,
    /// which has its bias taken off: [`SliceScores::shown`].
    pub mean: f64,
    /// State of F, and λ; `None` where a task has no samples.
    pub health: Option<Health>,
    /// `tr F / n`, which λ is relative to in the full variant: the mean eigenvalue of F that `n`
    /// samples make; `None` for the others.
    pub mean_eigenvalue: Option<f64>,
    /// Whether the sign of the mean is known. `None` for variants without a sign, and where nothing
    /// varies or a task has fewer than two clusters of samples.
    pub significance: Option<Significance>,
    /// The score of every pair, `[n_A, n_B]` row-major, if kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<Vec<f64>>,
}

impl SliceScores {
    /// The mean that verdict and interval are of: that of the test, or the plain one where nothing was
    /// tested.
    pub fn shown(&self) -> f64 {
        self.significance.map_or(self.mean, |of| of.test.mean)
    }
}

/// What the sign of a cell's mean score says.
///
/// The mean score is, but for the weight of each sample, `Σ_k ḡ_Ak ḡ_Bk / Î_k` over the slice (for the
/// full variant with the inverse of its damped Fisher): to first order, what a small step against the one
/// task's mean gradient, divided by Î and on this slice alone, does to the other's loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The mean is below 0: such a step for one task raises the other's loss.
    Conflict,
    /// It is above 0: such a step for one task lowers the other's loss.
    Synergy,
    /// Its sign is not known.
    Unresolved,
}

/// Whether the sign of a cell's mean score is known, by the two-sample jackknife.
///
/// While F is above ε, it does not change when the losses of a task are multiplied by a factor common to
/// them, as long as Î does not weigh one task's Fisher against the other's ([`Pool::Pooled`]).
///
/// For the signed variant a sample that is left out leaves Î too, λ aside, and what is tested is the
/// mean of scores by the Î of all samples, less its bias of order 1/n; for the full variant the Fisher
/// is taken as given, so that what it owes to the draw of samples is not in the error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Significance {
    /// The test. Its interval has the level at which those that leave 0 out are the cells selected,
    /// and at most α of these are expected to miss the true mean
    /// ([`Correction::coverage`](crate::correction::Correction::coverage)).
    pub test: Jackknife,
    /// Its two-sided p.
    pub p: f64,
    /// q over all cells, shared key/value slices once.
    pub q: f64,
    /// The sign where `q ≤ α`.
    pub verdict: Verdict,
}

impl Significance {
    /// Whether the sign is known: `q ≤ α`.
    pub fn resolved(&self) -> bool {
        self.verdict != Verdict::Unresolved
    }
}

/// What the tests of all cells say together.
fn significance(
    config: &InterferenceConfig,
    tests: Vec<Option<Jackknife>>,
) -> Result<Vec<Option<Significance>>> {
    let p = tests.iter().flatten().map(Jackknife::two_sided);
    let q = config.correction.q_values(&p.collect::<Vec<_>>());
    let selected = q.iter().filter(|q| **q <= config.alpha).count();
    let level = config.correction.coverage(config.alpha, q.len(), selected);
    let mut q = q.into_iter();
    let judge = |test: Option<Jackknife>| {
        // There is one q for every test that there is.
        let Some(test) = test else { return Ok(None) };
        let Some(q) = q.next() else { return Ok(None) };
        let verdict = match (q <= config.alpha, test.mean < 0.0) {
            (false, _) => Verdict::Unresolved,
            (true, true) => Verdict::Conflict,
            (true, false) => Verdict::Synergy,
        };
        Ok(Some(Significance {
            test: test.at_level(level)?,
            p: test.two_sided(),
            q,
            verdict,
        }))
    };
    tests.into_iter().map(judge).collect()
}

/// A pair of samples among the worst.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collision {
    /// The sample of task A.
    pub a: SampleRef,
    /// The sample of task B.
    pub b: SampleRef,
    /// The slice.
    pub slice: String,
    /// `M_ij`.
    pub score: f64,
}

/// The interference of two tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InterferenceReport {
    /// Version of this form.
    pub schema: u64,
    /// Tasks A and B.
    pub tasks: [String; 2],
    /// Hash of the model's weights.
    pub model: String,
    /// The gradients compared.
    pub gradients: GradientSource,
    /// The settings.
    pub settings: InterferenceConfig,
    /// Ids of the samples.
    pub samples: [Vec<String>; 2],
    /// Names of the attention layers.
    pub layers: Vec<String>,
    /// The key/value head that each query head of each layer reads.
    pub kv_heads: Vec<Vec<usize>>,
    /// All slices, by block, layer and head.
    pub slices: Vec<SliceScores>,
    /// The worst pairs: the lowest scores of the signed and full variants, the highest of the
    /// others.
    pub top: Vec<Collision>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

pub(super) fn assemble(
    config: &InterferenceConfig,
    store: &GradientStore,
    tasks: [&str; 2],
    heads: &HeadLayout,
    scored: Vec<ScoredBlock>,
) -> Result<InterferenceReport> {
    let samples = tasks.map(|task| ids(store.samples(task)));
    let pairs = (samples[0].len() * samples[1].len()).max(1) as f64;
    let mut scored = scored;
    scored.sort_by_key(|of| (of.block, of.layer));
    let tests = scored.iter().map(|of| &of.tests);
    let mut tests = significance(config, tests.flatten().copied().collect())?.into_iter();
    let mut slices = Vec::new();
    let mut worst: Vec<(Worst, String)> = Vec::new();
    for mut of in scored {
        let attention = &heads.attention()[of.layer];
        let shared = attention.heads() / of.names.len();
        let mut kept = of.kept.take().map(Vec::into_iter);
        for (unit, name) in of.names.iter().enumerate() {
            slices.push(SliceScores {
                name: name.clone(),
                block: of.block,
                layer: of.layer,
                heads: (unit * shared..(unit + 1) * shared).collect(),
                mean: of.sums[unit] / pairs,
                health: of.health.get(unit).copied(),
                mean_eigenvalue: of.eigenvalues.get(unit).copied(),
                significance: of.tests.get(unit).and_then(|_| tests.next()).flatten(),
                scores: kept.as_mut().and_then(Iterator::next),
            });
        }
        let of_block = of.top.into_sorted_vec().into_iter();
        worst.extend(of_block.map(|w| (w.0.clone(), of.names[w.0.slice].clone())));
    }
    // The sort is stable, so ties stay in the order of block, layer, head and sample.
    worst.sort_by(|(x, _), (y, _)| y.badness.total_cmp(&x.badness));
    let top = worst.into_iter().take(config.top).map(|(worst, slice)| {
        let [a, b] = [0, 1].map(|task| SampleRef {
            task: tasks[task].into(),
            id: samples[task][worst.pair[task]].clone(),
        });
        Collision {
            a,
            b,
            slice,
            score: worst.score,
        }
    });
    let attention = heads.attention();
    Ok(InterferenceReport {
        schema: SCHEMA,
        tasks: tasks.map(Into::into),
        model: store.model().into(),
        gradients: GradientSource::of(store),
        settings: config.clone(),
        layers: attention.iter().map(|a| a.name().into()).collect(),
        kv_heads: attention
            .iter()
            .map(|a| (0..a.heads()).map(|h| a.kv_of(h)).collect())
            .collect(),
        top: top.collect(),
        warnings: warnings(config, store, tasks, &slices),
        slices,
        samples,
    })
}

fn warnings(
    config: &InterferenceConfig,
    store: &GradientStore,
    tasks: [&str; 2],
    slices: &[SliceScores],
) -> Vec<String> {
    let mut warnings = Vec::new();
    for task in tasks.iter().filter(|task| store.samples(task).is_empty()) {
        let known = store.tasks().collect::<Vec<_>>().join(", ");
        warnings.push(format!(
            "task `{task}` has no samples in the store (tasks there: {known}): all scores are 0 \
             and mean nothing"
        ));
    }
    if (config.variant, config.pool, config.estimate)
        == (Variant::Unsigned, Pool::A, FisherEstimate::All)
    {
        let [a, b] = tasks;
        warnings.push(format!(
            "the mean over the samples of {a} is, by construction, the size of the gradients of \
             {b}, whatever {a} is: this map of means says nothing about {a}. Scores of single \
             pairs do; for a map prefer pool B or the signed variant"
        ));
    }
    let alone = |task: &&&str| {
        let clusters: HashSet<usize> = clusters(store.samples(task)).into_iter().collect();
        clusters.len() == 1
    };
    if let Some(task) = tasks
        .iter()
        .find(alone)
        .filter(|_| config.variant.is_signed())
    {
        warnings.push(format!(
            "no sign is tested: it takes two samples (or clusters of samples) of each task, and \
             {task} has one"
        ));
    }
    let full = config.variant == Variant::Full;
    let beside = if full {
        "mean eigenvalue of F"
    } else {
        "median F"
    };
    let mut warn = |is: &dyn Fn(&Health, &SliceScores) -> bool, what: &str, says: &str| {
        let is = |s: &&SliceScores| s.health.is_some_and(|health| is(&health, s));
        if let Some(first) = slices.iter().find(is) {
            warnings.push(format!(
                "{what} in {} of {} cells, such as {}: {says}",
                slices.iter().filter(is).count(),
                slices.len(),
                first.name
            ));
        }
    };
    warn(
        &|health, slice| match slice.mean_eigenvalue {
            Some(mean) => health.ridge_lambda_applied > 0.01 * mean,
            None => health.swamped(),
        },
        &format!("the damping is more than 1 % of the {beside}"),
        "it decides more than F does there",
    );
    // The full variant has no ε.
    warn(
        &|health, _| health.floored() && !full,
        "more than 5 % of F is below ε",
        "ε stands for it there, and nothing is normalized where it does",
    );
    warnings
}

impl InterferenceReport {
    /// The slice of a block that query head `head` of attention layer `layer` uses.
    pub fn slice(&self, block: Block, layer: usize, head: usize) -> Option<&SliceScores> {
        let fits =
            |s: &&SliceScores| (s.block, s.layer) == (block, layer) && s.heads.contains(&head);
        self.slices.iter().find(fits)
    }

    fn resolves(&self, block: Block, layer: usize, head: usize) -> bool {
        let tested = self.slice(block, layer, head).and_then(|s| s.significance);
        tested.is_some_and(|tested| tested.resolved())
    }

    /// What was tested, in a sentence without its full stop; `None` where nothing was.
    pub fn tested(&self) -> Option<String> {
        let tested = self.slices.iter().filter_map(|s| s.significance);
        let verdicts: Vec<Verdict> = tested.map(|tested| tested.verdict).collect();
        let count = |of| verdicts.iter().filter(|verdict| **verdict == of).count();
        (!verdicts.is_empty()).then(|| {
            format!(
                "The sign of the mean score, by the two-sample jackknife over samples: below 0 \
                 (conflict) in {}, above 0 (synergy) in {}, not resolved in {} of {} cells (q ≤ {})",
                count(Verdict::Conflict),
                count(Verdict::Synergy),
                count(Verdict::Unresolved),
                verdicts.len(),
                self.settings.alpha
            )
        })
    }

    /// Mean scores of a block as they are [shown](SliceScores::shown), layer by head; layers may differ
    /// in their heads. Empty when the block was not looked at.
    pub fn map(&self, block: Block) -> Vec<Vec<f64>> {
        let row = |(layer, heads): (usize, &Vec<usize>)| {
            let heads = 0..heads.len();
            let means = heads.map(|head| self.slice(block, layer, head).map(SliceScores::shown));
            means.collect::<Option<Vec<f64>>>()
        };
        let rows = self.kv_heads.iter().enumerate().map(row);
        rows.collect::<Option<_>>().unwrap_or_default()
    }

    /// The maps of mean scores, layer by head, one for each block. Cells the sign of whose mean is
    /// known are marked: those whose interval leaves 0 out.
    pub fn picture(&self) -> Picture {
        let [a, b] = &self.tasks;
        let signed = self.settings.variant.is_signed();
        let map = |block: Block| {
            let means = self.map(block);
            let heads = means.iter().map(Vec::len).max().unwrap_or(0);
            let marked = |layer: usize| {
                let resolved = |head| self.resolves(block, layer, head);
                (0..heads).map(resolved).collect()
            };
            HeatMap {
                title: format!("{block}: {}", block.meaning()),
                rows: (0..means.len()).map(|l| format!("layer {l}")).collect(),
                columns: (0..heads).map(|h| h.to_string()).collect(),
                axes: ["layer".into(), "query head".into()],
                marked: (0..means.len()).map(marked).collect(),
                values: means
                    .into_iter()
                    .map(|row| (0..heads).map(|h| row.get(h).copied()).collect())
                    .collect(),
                scale: if signed {
                    ColorScale::Signed {
                        negative: "conflict".into(),
                        positive: "synergy".into(),
                    }
                } else {
                    ColorScale::Sequential
                },
                quantity: if signed {
                    "mean score: dark is conflict, light is synergy".into()
                } else {
                    "mean score: the darker, the more interference".into()
                },
            }
        };
        let settings = self.settings.label();
        let mut note = format!(
            "Mean over all pairs of {} and {} samples; settings: {settings}.",
            self.samples[0].len(),
            self.samples[1].len()
        );
        if let Some(tested) = self.tested() {
            note += &format!(
                " Where a sign was tested its bias of order 1/n is taken off. {tested}. Framed (*): the \
                 sign is resolved."
            );
        }
        for warning in &self.warnings {
            note += &format!(" Note: {warning}.");
        }
        Picture {
            title: format!("Interference of {a} and {b}, by attention head"),
            note,
            maps: self.blocks().into_iter().map(map).collect(),
        }
    }

    /// The blocks that were looked at.
    pub fn blocks(&self) -> Vec<Block> {
        let there = |b: &Block| self.slices.iter().any(|s| s.block == *b);
        BLOCKS.into_iter().filter(there).collect()
    }
}

impl fmt::Display for InterferenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let [n_a, n_b] = self.samples.each_ref().map(Vec::len);
        let unit = match self.settings.aggregate {
            PairAggregate::Mean => "mean over the slice",
            PairAggregate::Sum => "sum over the slice",
        };
        writeln!(
            f,
            "{a} ({n_a} samples) → {b} ({n_b}), settings {}, {unit}, mean over all pairs",
            self.settings.label(),
        )?;
        if let Some(tested) = self.tested() {
            writeln!(
                f,
                "{tested}; * marks what is resolved; means less their bias of order 1/n"
            )?;
        }
        for block in self.blocks() {
            for (layer, row) in self.map(block).iter().enumerate() {
                let title = match layer {
                    0 => format!("{block}  layer 0"),
                    _ => format!("   layer {layer}"),
                };
                write!(f, "{title:<12}")?;
                for (head, mean) in row.iter().enumerate() {
                    let resolved = self.resolves(block, layer, head);
                    write!(f, "  {mean:>10.3e}{}", if resolved { '*' } else { ' ' })?;
                }
                writeln!(f)?;
            }
        }
        for collision in self.top.iter().take(5) {
            let Collision { a, b, slice, score } = collision;
            writeln!(f, "  {b} and {a} on {slice}: {score:.3e}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}
