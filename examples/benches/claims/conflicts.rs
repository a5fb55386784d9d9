//! Conflicts: sizes of the tests of a slice and false discoveries among pairs where nothing conflicts,
//! and what is found of what was planted.

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStore, GradientStoreConfig};
use fisher_metrics::conflicts::{ConflictReport, ConflictsConfig, PairOrder};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rayon::prelude::*;

type Error = Box<dyn std::error::Error + Send + Sync>;

const ALPHA: f64 = 0.05;
const SLICES: usize = 10;
const ELEMENTS: usize = 16;

/// Gradients under which no pair of samples conflicts by more than chance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Null {
    /// Normal noise around means that are orthogonal.
    Orthogonal,
    /// The same of Student's t with three degrees of freedom.
    HeavyTailed,
    /// Noise in two dimensions of all.
    LowRank,
    /// Eight documents a task, each with a direction of its own, told as clusters.
    Clustered,
    /// One expected gradient per token, tasks of 4 and 64 tokens.
    Lengths,
    /// The second task has a direction in common, the first none.
    Common,
    /// The same, and one sample in twelve of the first lies along it, on either side.
    Rows,
    /// The same, where the first task's part of it is exponential less its mean.
    Skewed,
}

const NULLS: [(Null, &str); 8] = [
    (Null::Orthogonal, "orthogonal, normal"),
    (Null::HeavyTailed, "orthogonal, t3"),
    (Null::LowRank, "rank 2"),
    (Null::Clustered, "clusters of documents"),
    (Null::Lengths, "same gradient per token, T 4 and 64"),
    (Null::Common, "common direction in B"),
    (Null::Rows, "common direction in B, 1 in 12 of A along it"),
    (Null::Skewed, "skewed part along B's direction"),
];

/// Tables of sizes and of power.
///
/// # Errors
/// When a simulation was refused.
pub(crate) fn tables(runs: usize) -> Vec<String> {
    let mut size = format!(
        "**Conflicts where there are none**: {SLICES} slices of {ELEMENTS} elements, α = {ALPHA}, {runs} runs. Runs with any \
         slice opposed or aligned, share of slices with p ≤ 0.05 for each question, mean share of false ones among the \
         pairs called (± s.e.), where pairs are ordered by cosine and by product.\n\n\
         | null | n | any opposed | any aligned | p opposed ≤ .05 | p aligned ≤ .05 | p apart ≤ .05 | false pairs | by product |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for (null, name) in NULLS {
        for counts in [[16, 16], [32, 32], [12, 60]] {
            let reports = simulate(runs, PairOrder::Cosine, |seed| null.store(counts, seed));
            let by_product = simulate(runs, PairOrder::Product, |seed| null.store(counts, seed));
            let any = |question: usize| {
                share(&reports, |r| {
                    f64::from(u8::from(
                        r.slices.iter().any(|s| answers(s)[question].1 <= ALPHA),
                    ))
                })
            };
            let small = |question: usize| {
                share(&reports, |r| {
                    r.slices
                        .iter()
                        .filter(|s| answers(s)[question].0 <= 0.05)
                        .count() as f64
                        / SLICES as f64
                })
            };
            // Which is the share of runs with any.
            let any_pair = |r: &ConflictReport| f64::from(u8::from(r.total > 0));
            let [false_pairs, by_product] =
                [&reports, &by_product].map(|reports| share(reports, any_pair));
            let apart = match null {
                // These tasks are apart, and it is no error to say so.
                Null::LowRank | Null::Clustered => small(0),
                _ => format!("({})", small(0)),
            };
            let [a, b] = counts;
            size += &format!(
                "| {name} | {a} + {b} | {} | {} | {} | {} | {apart} | {false_pairs} | {by_product} |\n",
                any(1),
                any(2),
                small(1),
                small(2)
            );
        }
    }
    let mut power = format!(
        "**Conflicts that were planted**: in one of {SLICES} slices, beside normal noise, α = {ALPHA}, {runs} runs. *k* disjoint \
         pairs near cosine −0.9; blocks where all of *k* samples of either task pull apart; whole tasks opposed. Share of \
         planted pairs found, mean share of false ones among those called, runs in which the slice is opposed.\n\n\
         | planted | n | found | false | opposed |\n|---|---|---|---|---|\n"
    );
    for (name, counts, planted, block) in [
        ("19 pairs", [32, 32], 19, 1),
        ("24 pairs", [32, 32], 24, 1),
        ("24 pairs", [48, 48], 24, 1),
        ("block of 5 × 5", [32, 32], 5, 5),
        ("block of 8 × 8", [32, 32], 8, 8),
        ("block of 12 × 12", [32, 32], 12, 12),
        ("all", [16, 16], 16, 16),
        ("all", [12, 60], 60, 60),
    ] {
        let reports = simulate(runs, PairOrder::Cosine, |seed| {
            plant(counts, planted, block, seed)
        });
        let right = |r: &ConflictReport| {
            let hit = |c: &&fisher_metrics::conflicts::Conflict| {
                let number = |id: &str| id.parse::<usize>().unwrap_or(usize::MAX);
                let (a, b) = (number(&c.a.id), number(&c.b.id));
                c.slice == "p0" && a < planted && b < planted && a / block == b / block
            };
            r.conflicts.iter().filter(hit).count() as f64
        };
        let [a, b] = counts;
        let there: usize = (0..a.min(planted))
            .map(|i| {
                (0..b.min(planted))
                    .filter(|j| i / block == j / block)
                    .count()
            })
            .sum();
        let found = share(&reports, |r| right(r) / there as f64);
        let wrong = share(&reports, |r| {
            (r.total as f64 - right(r)) / r.total.max(1) as f64
        });
        let opposed = share(&reports, |r| {
            f64::from(u8::from(answers(&r.slices[0])[1].1 <= ALPHA))
        });
        power += &format!("| {name} | {a} + {b} | {found} | {wrong} | {opposed} |\n");
    }
    vec![size, power]
}

/// p and q of apart, opposed, aligned; 1 where there is no test.
fn answers(slice: &fisher_metrics::conflicts::SliceConflicts) -> [(f64, f64); 3] {
    [slice.apart, slice.opposed, slice.aligned]
        .map(|answer| answer.map_or((1.0, 1.0), |a| (a.p, a.q)))
}

/// The mean over runs and its standard error.
fn share(reports: &[ConflictReport], of: impl Fn(&ConflictReport) -> f64) -> String {
    let values: Vec<f64> = reports.iter().map(of).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    format!("{mean:.3} ± {:.3}", (squares / (n - 1.0) / n).sqrt())
}

fn simulate(
    runs: usize,
    order: PairOrder,
    store: impl Fn(u64) -> Result<GradientStore, Error> + Sync,
) -> Vec<ConflictReport> {
    let run = |seed: u64| -> Result<ConflictReport, Error> {
        let config = ConflictsConfig::new()
            .with_progress(false)
            .with_order(order)
            .with_listed(usize::MAX)
            .with_relabellings(Some(499))
            .with_seed(seed);
        Ok(config.init()?.forward(&store(seed)?, ["a", "b"])?)
    };
    let reports: Result<Vec<_>, Error> = (0..runs as u64).into_par_iter().map(run).collect();
    reports.unwrap_or_else(|error| panic!("{error}"))
}

struct Noise(ChaCha8Rng);

impl Noise {
    fn uniform(&mut self) -> f32 {
        self.0.random()
    }

    fn normal(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * (1.0 - u).ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }

    fn normals(&mut self) -> [f32; ELEMENTS] {
        std::array::from_fn(|_| self.normal())
    }
}

impl Null {
    fn store(self, counts: [usize; 2], seed: u64) -> Result<GradientStore, Error> {
        let noise = &mut Noise(ChaCha8Rng::seed_from_u64(seed));
        let mut document = [0.0; ELEMENTS];
        let per_document = counts.map(|n| n / 8);
        let sample = |task: usize, i: usize| {
            let tokens = if self == Self::Lengths {
                [4, 64][task]
            } else {
                8
            };
            let sample = Sample::new(i.to_string(), tokens)?;
            Ok(match self {
                Self::Clustered => {
                    sample.with_cluster(format!("{task} {}", i / per_document[task].max(1)))
                }
                _ => sample,
            })
        };
        filled(counts, sample, |task, i, _| {
            let mut row = noise.normals();
            match self {
                Self::Orthogonal => row[task] += 2.0,
                Self::HeavyTailed => {
                    for x in &mut row {
                        let squares: f32 = (0..3).map(|_| noise.normal().powi(2)).sum();
                        *x /= (squares / 3.0).sqrt();
                    }
                    row[task] += 2.0;
                }
                Self::LowRank => row[2..].iter_mut().for_each(|x| *x *= 0.05),
                Self::Clustered => {
                    if i.is_multiple_of(per_document[task].max(1)) {
                        document = noise.normals();
                    }
                    row.iter_mut()
                        .zip(&document)
                        .for_each(|(x, d)| *x = 0.5 * *x + d);
                }
                Self::Lengths => {
                    let tokens = [4.0f32, 64.0][task];
                    row.iter_mut()
                        .for_each(|x| *x = 0.15 * tokens + tokens.sqrt() * *x);
                }
                Self::Common if task == 1 => row[0] += 8.0,
                Self::Common => {}
                Self::Rows | Self::Skewed if task == 1 => row[0] += 8.0,
                Self::Rows => {
                    if noise.uniform() < 1.0 / 12.0 {
                        row[0] += if noise.uniform() < 0.5 { 10.0 } else { -10.0 };
                    }
                }
                Self::Skewed => {
                    // Of one length, so that the expected cosine is 0.
                    row[0] = 1.0 + (1.0 - noise.uniform()).ln();
                    let rest: f32 = row[1..].iter().map(|x| x * x).sum();
                    let scale = ((64.0 - row[0] * row[0]).max(0.0) / rest).sqrt();
                    row[1..].iter_mut().for_each(|x| *x *= scale);
                }
            }
            row
        })
    }
}

fn plant(
    counts: [usize; 2],
    planted: usize,
    block: usize,
    seed: u64,
) -> Result<GradientStore, Error> {
    let noise = &mut Noise(ChaCha8Rng::seed_from_u64(seed));
    let directions: Vec<_> = (0..planted.div_ceil(block))
        .map(|_| noise.normals())
        .collect();
    filled(
        counts,
        |_, i| Ok(Sample::new(i.to_string(), 8)?),
        |task, i, slice| {
            let mut row = noise.normals();
            if slice == 0 && i < planted {
                let sign = [3.0, -3.0][task];
                row.iter_mut()
                    .zip(&directions[i / block])
                    .for_each(|(x, u)| *x += sign * u);
            }
            row
        },
    )
}

/// A store of what `gradient` gives of task, sample and slice.
fn filled(
    counts: [usize; 2],
    sample: impl Fn(usize, usize) -> Result<Sample, Error>,
    mut gradient: impl FnMut(usize, usize, usize) -> [f32; ELEMENTS],
) -> Result<GradientStore, Error> {
    let device = Device::flex();
    let parameter = |i: usize| {
        Parameter::new(
            format!("p{i}"),
            [ELEMENTS],
            Role::Vector,
            Orientation::InputOutput,
        )
    };
    let catalogue = Catalogue::new((0..SLICES).map(parameter).collect())?;
    let store = GradientStoreConfig::new(1 << 28).init_for(&catalogue, "simulated".into())?;
    let mut store = store.with_device(&device);
    for (task, count) in counts.into_iter().enumerate() {
        let samples = (0..count)
            .map(|i| sample(task, i))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut batch = GradientBatch::new(samples);
        for slice in 0..SLICES {
            let rows: Vec<f32> = (0..count).flat_map(|i| gradient(task, i, slice)).collect();
            let tensor = Tensor::<1>::from_floats(rows.as_slice(), &device);
            batch.insert(
                format!("p{slice}"),
                Gradient::token_sum(tensor.reshape([count, ELEMENTS])),
            );
        }
        store.push(["a", "b"][task], &batch)?;
    }
    Ok(store)
}
