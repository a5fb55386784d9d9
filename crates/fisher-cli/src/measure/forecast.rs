//! What a run takes of memory and disk, told before it starts.

use std::fmt::Write as _;
use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Parameter, Role};
use fisher_core::statistics::{Statistics, StatisticsConfig};

use super::args::MeasureArgs;
use super::outcome::Result;
use super::tokens::{chosen, passes};
use crate::memory::{available_disk, available_memory};
use crate::models::Checkpoint;
use crate::samples::{TaskData, batches};
use crate::say::say;
use crate::words::{count, size};

impl MeasureArgs {
    /// Tokens in a batch: as many as were asked for, or as fit.
    pub fn tokens(&self, checkpoint: &Checkpoint) -> usize {
        let given = self.batch_tokens.map(|tokens| tokens as usize);
        given.unwrap_or_else(|| batch_tokens(checkpoint, self.analysis.memory.0))
    }
}

/// Bytes of what is needed, by what needs them.
type Parts = Vec<(&'static str, u64)>;

/// What a run takes.
#[derive(Debug)]
pub(crate) struct Forecast {
    /// By task: its name, samples, tokens.
    tasks: Vec<(String, usize, usize)>,
    /// Samples that are looked at token by token, their labels, and the tokens of a pass for each of those.
    by_token: [usize; 3],
    /// At the worst moment.
    memory: Parts,
    /// When all is done.
    disk: Parts,
    /// What the disk must hold besides while a file takes another's place.
    besides: u64,
}

/// Between 64 and 2048 tokens, as many as half of the memory has room for: a power of two, and the
/// same for the same model and memory, so that a run goes on with the same batches.
///
/// Batches of more samples than a few are hardly faster: work grows with the tokens, and what a batch
/// takes in memory as well.
pub(crate) fn batch_tokens(checkpoint: &Checkpoint, memory: usize) -> usize {
    let longest = checkpoint.config.longest.tokens;
    let fits = |tokens: usize| 2 * batch(checkpoint, tokens, tokens.min(longest)) <= memory as u64;
    let sizes = (6..=11).rev().map(|power| 1 << power);
    sizes.into_iter().find(|size| fits(*size)).unwrap_or(64)
}

/// Bytes that a batch of so many tokens takes, in sequences of this length: what goes in and out of every
/// matrix, a few times over, and scores of attention.
fn batch(checkpoint: &Checkpoint, tokens: usize, longest: usize) -> u64 {
    let sides = |parameter: &Parameter| match parameter.role() {
        Role::Vector => 0,
        _ => parameter.shape().iter().sum::<usize>(),
    };
    let parameters = checkpoint.catalogue.parameters().iter();
    let sides: usize = parameters.map(sides).sum();
    let layers = checkpoint.heads.attention().len();
    let [heads, ..] = checkpoint.config.heads();
    let scores = layers * heads * longest;
    (4 * tokens * (TIMES_SIDES * sides + TIMES_SCORES * scores)) as u64
}

/// How many times the sides of matrices, and the scores of attention, are held while a batch is worked
/// on: measured.
const TIMES_SIDES: usize = 3;
/// How many times the elements of a parameter are held while statistics of each are kept.
const TIMES_ELEMENTS: u64 = 5;
const TIMES_SCORES: usize = 4;

/// Bytes of the names of a parameter's mean and M2 in a header, and of a sample in the index of a store.
const NAMED: usize = 2 * 210;
const A_LINE: usize = 150;

impl Forecast {
    /// Of a run whose gradients are kept, or not.
    ///
    /// # Errors
    /// When a flag names no parameter.
    pub(crate) fn of(
        run: &MeasureArgs,
        phases: &[u8],
        checkpoint: &Checkpoint,
        data: &[TaskData],
        keep: bool,
    ) -> Result<Self> {
        let Checkpoint {
            catalogue, heads, ..
        } = checkpoint;
        let wanted = |phase| phases.contains(&phase);
        // Those that an adapter leaves as they are too; and the model to merge with beside its own.
        let all = checkpoint.model.num_params();
        let models = 1 + usize::from(run.analysis.merge_with.is_some());
        let samples: usize = data.iter().map(|task| task.samples.len()).sum();

        let measured = run.params.of(catalogue, heads)?;
        let measured = measured.ok_or("--params none leaves nothing to measure")?;
        let measured = catalogue.filter(&measured)?;
        let of_elements = match run.elements.of(&measured, heads)? {
            Some(chosen) => elements(&measured.filter(&chosen)?),
            None => 0,
        };
        let groups = groups(&measured, heads)?;
        let accumulators = 16 * (of_elements + groups) * data.len();
        let names = NAMED * measured.parameters().len() * data.len();

        let [of_kept, largest_kept] = match run.compare.of(catalogue, heads)? {
            Some(kept) if keep => {
                let kept = catalogue.filter(&kept)?;
                [elements(&kept), largest(&kept)]
            }
            _ => [0, 0],
        };
        let precision = fisher_core::store::Precision::from(run.precision);
        let a_sample = precision.bytes() * of_kept;

        let tokens = run.tokens(checkpoint);
        let of_batches = data.iter().flat_map(|task| batches(&task.samples, tokens));
        let of_batch = of_batches.map(|samples| {
            let longest = samples.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
            let most = samples.len() * longest;
            // A gradient that is kept is multiplied out, for all samples of the batch.
            let largest = largest_kept * samples.len() * 8;
            batch(checkpoint, most, longest) + largest as u64
        });
        let of_batch = of_batch.max().unwrap_or(0);
        // What is computed of the elements of one parameter while they are accumulated or read, in float64.
        let reading = match of_elements {
            0 => 0,
            _ => 8 * TIMES_ELEMENTS * largest(&measured) as u64,
        };
        let held = (a_sample * samples).min(run.analysis.half()) as u64;
        let memory = vec![
            (
                "weights",
                (models * DType::from(checkpoint.dtype).size() * all) as u64,
            ),
            ("statistics", accumulators as u64),
            ("gradients held", held),
            ("a batch, or the analyses", (of_batch + reading).max(held)),
        ];

        let rows = samples * (catalogue.parameters().len() + heads.attention().len());
        let statistics = (accumulators + 2 * names + 8 * rows.min(1 << 20)) as u64;
        let scores = if run.analysis.save_pairs {
            pairs(data, run, catalogue, heads)
        } else {
            0
        };
        let sparsities = 2 * run.analysis.sparsity.len();
        let results = [
            if wanted(1) {
                16 * groups * data.len() + names
            } else {
                0
            },
            if wanted(3) {
                sparsities * (groups * data.len() + names / 3)
            } else {
                0
            },
            if wanted(1) && run.analysis.save_elements {
                16 * of_elements * data.len()
            } else {
                0
            },
            if run.analysis.save_gradients {
                8 * of_kept * samples
            } else {
                0
            },
            run.analysis.scale.len() * 8 * of_kept,
            scores,
        ];
        let mut disk = vec![
            ("statistics", statistics),
            ("gradients", ((a_sample + A_LINE) * samples) as u64),
            ("results", results.iter().sum::<usize>() as u64),
        ];
        if run.analysis.merge_with.is_some() {
            disk.push(("the merged model", 4 * all as u64));
        }
        disk.retain(|(what, bytes)| *bytes > 0 && (keep || *what != "gradients"));
        Ok(Self {
            tasks: data
                .iter()
                .map(|task| {
                    let tokens = task.samples.iter().map(|s| s.tokens.len()).sum();
                    (task.name.clone(), task.samples.len(), tokens)
                })
                .collect(),
            by_token: chosen(data, &run.per_token)
                .iter()
                .map(|(task, at)| &task.samples[*at])
                .fold([0; 3], |[samples, labels, tokens], sample| {
                    [
                        samples + 1,
                        labels + sample.active(),
                        tokens + passes(sample),
                    ]
                }),
            memory,
            disk,
            besides: statistics,
        })
    }

    /// Say it, and compare it with what there is.
    ///
    /// # Errors
    /// What will not do, and what to do about it, unless it is to begin all the same.
    pub(crate) fn tell(&self, run: &MeasureArgs, checkpoint: &Checkpoint) -> Result {
        let [samples, tokens] = self
            .tasks
            .iter()
            .fold([0, 0], |[n, t], (_, samples, tokens)| {
                [n + samples, t + tokens]
            });
        let batch = run.tokens(checkpoint);
        let [samples, tokens] = [count(samples, "sample"), count(tokens, "token")];
        say!("To measure: {samples}, {tokens}, in batches of up to {batch} tokens.");
        let [of, labels, tokens] = self.by_token;
        if of > 0 {
            let [of, labels, tokens] = [(of, "sample"), (labels, "label"), (tokens, "token")]
                .map(|(n, what)| count(n, what));
            say!("Token by token (--per-token): {labels} of {of}, a pass each: {tokens} more.");
        }
        let there = available_memory();
        say!("Memory: about {}{}.", told(&self.memory), free(there));
        let disk = available_disk(&run.out);
        say!("Disk: about {}{}.", told(&self.disk), free(disk));
        if run.force {
            return Ok(());
        }
        self.fits(there, disk.map(|free| free + present(&run.out)))
            .map_err(Into::into)
    }

    /// Whether so much memory and disk will do.
    fn fits(&self, memory: Option<u64>, disk: Option<u64>) -> std::result::Result<(), String> {
        let needed = sum(&self.memory);
        if let Some(there) = memory.filter(|there| needed > *there) {
            let [needed, there] = [needed, there].map(size);
            return Err(format!(
                "about {needed} of memory is needed and {there} is free: make it less ({ADVICE}, smaller \
                 --memory or --batch-tokens), or begin all the same by --force"
            ));
        }
        // A file takes another's place when it is whole.
        let needed = sum(&self.disk) + self.besides;
        if let Some(there) = disk.filter(|there| needed > *there) {
            let [needed, there] = [needed, there].map(size);
            return Err(format!(
                "about {needed} of disk is needed while files take the place of older ones, and {there} is \
                 free: make it less ({ADVICE}), or begin all the same by --force"
            ));
        }
        Ok(())
    }
}

/// What makes a run smaller.
const ADVICE: &str =
    "--elements attention or none, --compare attention, --precision half, fewer --samples";

/// Elements of all parameters.
fn elements(catalogue: &Catalogue) -> usize {
    catalogue.parameters().iter().map(Parameter::elements).sum()
}

/// Elements of the largest parameter.
fn largest(catalogue: &Catalogue) -> usize {
    let elements = catalogue.parameters().iter().map(Parameter::elements);
    elements.max().unwrap_or(0)
}

/// Groups of all parameters.
fn groups(catalogue: &Catalogue, heads: &HeadLayout) -> Result<usize> {
    let config = StatisticsConfig::new().with_elementwise(false);
    let statistics: Statistics = config.init_for(
        catalogue,
        heads,
        String::new(),
        &burn::tensor::Device::flex(),
    )?;
    Ok(statistics.groups())
}

/// Bytes of numbers of every pair of samples.
fn pairs(data: &[TaskData], run: &MeasureArgs, catalogue: &Catalogue, heads: &HeadLayout) -> usize {
    let pairs: usize = data.iter().map(|task| task.samples.len()).product();
    let heads: usize = heads
        .attention()
        .iter()
        .map(|layer| 4 * layer.heads())
        .sum();
    let cosines = 2 * 2 * catalogue.parameters().len();
    8 * pairs * (cosines + heads * run.analysis.settings().len())
}

/// Bytes that a folder has already.
fn present(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => present(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

fn sum(parts: &Parts) -> u64 {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

/// The sum, and what it is made of.
fn told(parts: &Parts) -> String {
    let mut text = size(sum(parts));
    for (i, (what, bytes)) in parts.iter().filter(|(_, bytes)| *bytes > 0).enumerate() {
        let start = if i == 0 { " (" } else { ", " };
        let _ = write!(text, "{start}{what} {}", size(*bytes));
    }
    text + ")"
}

fn free(bytes: Option<u64>) -> String {
    bytes.map_or(String::new(), |bytes| format!("; free: {}", size(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_do() {
        let forecast = Forecast {
            tasks: Vec::new(),
            by_token: [0; 3],
            memory: vec![("weights", 2_000_000_000), ("statistics", 4_000_000_000)],
            disk: vec![("statistics", 5_000_000_000)],
            besides: 5_000_000_000,
        };
        let enough = Some(10_000_000_000);
        assert_eq!(forecast.fits(enough, enough), Ok(()));
        assert_eq!(forecast.fits(None, None), Ok(()));
        let memory = forecast.fits(Some(5_900_000_000), enough);
        let memory = memory.expect_err("too little memory");
        assert!(
            memory.contains("6.0 GB of memory") && memory.contains("--elements"),
            "{memory}"
        );
        let disk = forecast.fits(enough, Some(9_900_000_000));
        let disk = disk.expect_err("too little disk");
        assert!(
            disk.contains("10.0 GB of disk") && disk.contains("--precision half"),
            "{disk}"
        );
        assert_eq!(
            told(&forecast.memory),
            "6.0 GB (weights 2.0 GB, statistics 4.0 GB)"
        );
    }
}
