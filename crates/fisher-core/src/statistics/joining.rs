//! Files of statistics joined into one file, however many and however large they are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use burn::tensor::Device;
use safetensors::tensor::Dtype;

use super::accumulators::Statistics;
use super::file::{METADATA, Metadata, SCHEMA_VERSION};
use super::slots::slots;
use crate::container::{Filled, Partial, Source, encode};
use crate::error::{Error, Result, check_version, format_error};
use crate::gradient::ContributionUnit;
use crate::moments::Merged;
use crate::pieces::pieces;

/// Elements whose mean and M2 are held at once: 16 MB, and twice as much of what is read.
const HELD: usize = 1 << 20;

/// Elements of one accumulator in a file.
struct Run {
    task: String,
    /// Names of mean and, where a variance is kept, M2.
    mean: String,
    m2: Option<String>,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl<C: ContributionUnit> Statistics<C> {
    /// Join the files at `paths` into one at `to`: what [`Statistics::merge`] of all of them in this order
    /// would save, to the bit where they are in float64. The files are read twice, once to compare them with
    /// their checksums and then some elements at a time. What is held are 50 MB and the records of the
    /// samples, whatever the number of files and parameters. It is done on the host; `device` is where the result
    /// may be loaded to.
    ///
    /// # Errors
    /// Those of [`Statistics::load`] and [`Statistics::merge`]; [`Error::Argument`] for no files,
    /// [`Error::Io`] when `to` cannot be written. Nothing is written then.
    pub fn join_files(
        paths: &[impl AsRef<Path>],
        to: impl AsRef<Path>,
        device: &Device,
    ) -> Result<()> {
        let mut joined: Option<Self> = None;
        // Samples of every task, file by file.
        let mut counts: Vec<BTreeMap<String, u64>> = Vec::new();
        for path in paths {
            let of_file = Self::without_elements(path.as_ref(), device)?;
            let tasks = of_file.tasks.iter();
            counts.push(
                tasks
                    .map(|(name, t)| (name.clone(), t.totals.count))
                    .collect(),
            );
            match &mut joined {
                Some(joined) => joined.merge(of_file)?,
                None => joined = Some(of_file),
            }
        }
        let mut joined = joined.ok_or_else(|| Error::Argument {
            name: "paths",
            expected: "at least one file",
            found: "none".into(),
        })?;
        let to = to.as_ref();
        let runs = joined.runs();
        let (metadata, small) = joined.about(to, true)?;
        let mut file = begin(to, metadata, &small, &runs)?;
        let mut batch: Vec<Run> = Vec::new();
        let mut held = 0;
        for run in runs {
            if held + run.range.len() > HELD {
                join_runs(paths, &counts, &std::mem::take(&mut batch), &mut file)?;
                held = 0;
            }
            held += run.range.len();
            batch.push(run);
        }
        join_runs(paths, &counts, &batch, &mut file)?;
        file.finish()
    }

    /// All of a file but elements and groups, compared with its checksum.
    fn without_elements(path: &Path, device: &Device) -> Result<Self> {
        let file = Partial::open(path)?;
        check_version(path, file.schema(METADATA)?, 1..=SCHEMA_VERSION)?;
        let metadata: Metadata = file.metadata(METADATA)?;
        file.verify(METADATA, &metadata.sha256)?;
        let mut small = BTreeMap::new();
        let of_elements = |name: &str| {
            let mut tasks = metadata.tasks.keys();
            tasks.any(|task| {
                let rest = name.strip_prefix(&*encode(task));
                let rest = rest.and_then(|rest| rest.strip_prefix('/'));
                let kinds = ["mean/", "mean_low/", "m2/", "m2_low/", "group_"];
                rest.is_some_and(|rest| kinds.iter().any(|kind| rest.starts_with(kind)))
            })
        };
        for (name, info) in file.tensors() {
            if !of_elements(&name) {
                let bytes = file.bytes(&name)?;
                small.insert(name, (info, bytes));
            }
        }
        let sources = small.iter().map(|(name, (info, bytes))| {
            let bytes = || Ok(Cow::Borrowed(&**bytes));
            let source = Source::new(info.dtype, info.shape.clone(), bytes);
            (name.clone(), source)
        });
        let sources: BTreeMap<String, Source> = sources.collect();
        Self::of_file(path, device, metadata, &sources, None, false)
    }

    /// All elements of all accumulators, by what they are in the file.
    fn runs(&mut self) -> Vec<Run> {
        let mut runs = Vec::new();
        for (task, of_task) in &mut self.tasks {
            for slot in slots(&mut of_task.parameters, task, &self.plan) {
                for range in pieces(slot.shape().iter().product(), HELD) {
                    runs.push(Run {
                        task: task.clone(),
                        mean: slot.name("mean"),
                        m2: slot.welford.keeps_variance().then(|| slot.name("m2")),
                        shape: slot.shape().to_vec(),
                        range,
                    });
                }
            }
        }
        runs
    }
}

/// The file that all is joined in, with what is small in it.
fn begin<'a>(
    to: &'a Path,
    metadata: Metadata,
    small: &BTreeMap<String, Source>,
    runs: &[Run],
) -> Result<Filled<'a, Metadata>> {
    let mut tensors = BTreeMap::new();
    for run in runs {
        for name in [Some(&run.mean), run.m2.as_ref()].into_iter().flatten() {
            tensors.insert(name.clone(), (Dtype::F64, run.shape.clone()));
        }
    }
    let shapes = small.iter().map(|(name, source)| {
        let shape = (source.dtype(), source.shape().to_vec());
        (name.clone(), shape)
    });
    tensors.extend(shapes);
    let mut file = Filled::begin(to, METADATA, metadata, |m| &mut m.sha256, tensors)?;
    for (name, source) in small {
        file.put(name, 0, &source.bytes()?)?;
    }
    Ok(file)
}

/// Join some runs of all files, one file after the other.
fn join_runs(
    paths: &[impl AsRef<Path>],
    counts: &[BTreeMap<String, u64>],
    runs: &[Run],
    into: &mut Filled<Metadata>,
) -> Result<()> {
    let empty = |run: &Run| Merged::new(run.range.len(), run.m2.is_some());
    let mut joined: Vec<Merged> = runs.iter().map(empty).collect();
    for (path, counts) in paths.iter().zip(counts) {
        let file = Partial::open(path.as_ref())?;
        for (run, joined) in runs.iter().zip(&mut joined) {
            let Some(count) = counts.get(&run.task) else {
                continue;
            };
            let of = |name: &String| values(&file, path.as_ref(), name, run);
            joined.merge(Merged {
                count: *count,
                mean: of(&run.mean)?,
                m2: run.m2.as_ref().map(of).transpose()?,
            });
        }
    }
    for (run, joined) in runs.iter().zip(joined) {
        let from = 8 * run.range.start as u64;
        let parts = [
            (Some(&run.mean), Some(joined.mean)),
            (run.m2.as_ref(), joined.m2),
        ];
        for (name, values) in parts {
            if let (Some(name), Some(values)) = (name, values) {
                let bytes: Vec<u8> = values.into_iter().flat_map(f64::to_le_bytes).collect();
                into.put(name, from, &bytes)?;
            }
        }
    }
    Ok(())
}

/// Values of a tensor in float64, or of a pair in float32.
fn values(file: &Partial, path: &Path, name: &str, run: &Run) -> Result<Vec<f64>> {
    let tensor = file.tensor(name)?;
    if tensor.shape != run.shape {
        let (found, expected) = (&tensor.shape, &run.shape);
        let reason = format!("`{name}` has shape {found:?}, expected {expected:?}");
        return Err(format_error(path, reason));
    }
    let read = |name: &str, width: usize| {
        let tensor = file.tensor(name)?;
        let mut bytes = vec![0; width * run.range.len()];
        file.read(&tensor, (width * run.range.start) as u64, &mut bytes)?;
        Ok::<_, Error>(bytes)
    };
    match tensor.dtype {
        Dtype::F64 => {
            let bytes = read(name, 8)?;
            let values = bytes.as_chunks::<8>().0.iter();
            Ok(values.map(|bytes| f64::from_le_bytes(*bytes)).collect())
        }
        Dtype::F32 => {
            // `alpha/mean/w` and `alpha/mean_low/w`.
            let low = low(name, &run.task);
            let pair = [read(name, 4)?, read(&low, 4)?];
            let [high, low] = pair.each_ref().map(|bytes| bytes.as_chunks::<4>().0.iter());
            let value = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
            Ok(high.zip(low).map(|(h, l)| value(h) + value(l)).collect())
        }
        other => Err(format_error(path, format!("`{name}` is of type {other:?}"))),
    }
}

/// What float32 rounded off stands under this name.
fn low(name: &str, task: &str) -> String {
    let task = encode(task).len() + 1;
    let (task, rest) = name.split_at(task);
    let (moment, rest) = rest.split_once('/').unwrap_or((rest, ""));
    format!("{task}{moment}_low/{rest}")
}
