//! Factors as one `.safetensors` file.
//!
//! | name | shape | |
//! |---|---|---|
//! | `{task}/first/{path}` | `[side, side]` or `[side]` | sums of the first axis |
//! | `{task}/others/{path}` | the same | of all others |
//! | `{task}/samples` | `[bytes]` | JSON, as in a file of statistics |
//!
//! All numbers are float64. The metadata's only entry, `fisher_factors`, is JSON: `schema`, `writer`, `provenance`, `positions`,
//! `layouts` (shapes and sides of parameters), `tasks` (samples counted, and of every parameter in which form its gradients came and
//! how many inputs were summed over) and `sha256`, as in a file of statistics.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use serde::{Deserialize, Serialize};

use super::block::{Block, Form, Layout};
use super::collector::Factors;
use super::positions::Positions;
use super::second::Second;
use super::task::TaskFactors;
use crate::container::{Contents, Source, WRITER, encode, floats, write};
use crate::error::{Result, format_error};
use crate::provenance::Provenance;
use crate::sample::{SampleRecord, Seen};

/// The version of the file format that this library writes. It reads all versions up to it.
pub const FACTORS_VERSION: u64 = 1;

const METADATA: &str = "fisher_factors";

/// What tensors of the two sides are called.
const SIDES: [&str; 2] = ["first", "others"];

#[derive(Serialize, Deserialize)]
struct Metadata {
    schema: u64,
    writer: String,
    provenance: Provenance,
    positions: Positions,
    layouts: BTreeMap<String, Layout>,
    tasks: BTreeMap<String, TaskMetadata>,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct TaskMetadata {
    count: u64,
    /// By path.
    parameters: BTreeMap<String, (Option<Form>, f64)>,
}

impl Factors {
    /// Write them to `path`, atomically.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be written, [`Error::Header`](crate::Error::Header) when
    /// names are too long for a header.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut tensors = BTreeMap::new();
        let mut tasks = BTreeMap::new();
        for (name, task) in &self.tasks {
            let task_name = encode(name);
            for (parameter, block) in &task.blocks {
                for (side, sums) in SIDES.iter().zip(&block.sums) {
                    let shape = match sums {
                        Second::Matrix { side, .. } => vec![*side; 2],
                        Second::Diagonal(sums) => vec![sums.len()],
                    };
                    let values = TensorData::new(sums.values().to_vec(), shape);
                    tensors.insert(format!("{task_name}/{side}/{parameter}"), values.into());
                }
            }
            let samples = serde_json::to_vec(task.samples());
            let samples = samples.map_err(|e| format_error(path, e))?;
            let length = samples.len();
            let samples = TensorData::from_bytes_vec(samples, [length], DType::U8);
            tensors.insert(format!("{task_name}/samples"), samples.into());
            let blocks = task.blocks.iter();
            let parameters = blocks.map(|(path, of)| (path.clone(), (of.form, of.inputs)));
            let of_task = TaskMetadata {
                count: task.count,
                parameters: parameters.collect(),
            };
            tasks.insert(name.clone(), of_task);
        }
        let metadata = Metadata {
            schema: FACTORS_VERSION,
            writer: WRITER.into(),
            provenance: self.provenance.clone(),
            positions: self.positions,
            layouts: self.layouts.clone(),
            tasks,
            sha256: String::new(),
        };
        write(path, METADATA, &tensors, metadata, |m| &mut m.sha256)
    }

    /// Read them from `path`, bit for bit.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be read; [`Error::Format`](crate::Error::Format),
    /// [`Error::Checksum`](crate::Error::Checksum) or [`Error::Version`](crate::Error::Version) when it is not a whole
    /// file of factors of a version that is known.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Contents::open(path, METADATA)?;
        file.check_version(1..=FACTORS_VERSION)?;
        let metadata: Metadata = file.metadata()?;
        let views = file.tensors(&metadata.sha256)?;
        let mut factors = Self {
            provenance: metadata.provenance,
            positions: metadata.positions,
            layouts: metadata.layouts,
            tasks: BTreeMap::new(),
            pending: None,
        };
        for (name, of_task) in metadata.tasks {
            let task = read_task(&encode(&name), of_task, &factors.layouts, &views);
            let task = task.map_err(|reason| format_error(path, reason))?;
            factors.tasks.insert(name, task);
        }
        Ok(factors)
    }
}

fn read_task(
    name: &str,
    metadata: TaskMetadata,
    layouts: &BTreeMap<String, Layout>,
    views: &BTreeMap<String, Source>,
) -> Result<TaskFactors, String> {
    let find = |key: &str| views.get(key).ok_or(format!("no `{key}`"));
    let samples = find(&format!("{name}/samples"))?.bytes();
    let samples = samples.map_err(|e| e.to_string())?;
    let samples: Vec<SampleRecord> = serde_json::from_slice(&samples).map_err(|e| e.to_string())?;
    let counted = samples.iter().filter(|s| s.skipped.is_none()).count();
    let TaskMetadata { count, parameters } = metadata;
    if counted as u64 != count {
        return Err(format!("`{name}` has {counted} samples and counts {count}"));
    }
    let (samples, twice) = Seen::of(samples);
    if twice > 0 {
        return Err(format!("`{name}` has {twice} samples twice"));
    }
    if !parameters.keys().eq(layouts.keys()) {
        return Err(format!("`{name}` is of other parameters"));
    }
    let mut blocks = BTreeMap::new();
    for (path, layout) in layouts {
        let (form, inputs) = parameters[path];
        let read = |at: usize, side: usize| -> Result<Second, String> {
            let key = format!("{name}/{}/{path}", SIDES[at]);
            let view = find(&key)?;
            Ok(if layout.diagonal[at] {
                Second::Diagonal(floats(&key, view, &[side])?)
            } else {
                let sums = floats(&key, view, &[side; 2])?;
                Second::Matrix { side, sums }
            })
        };
        let sides = layout.checked_sides();
        let [first, others] = sides.ok_or_else(|| format!("`{path}` has no shape"))?;
        let sums = [read(0, first)?, read(1, others)?];
        if !(sums.iter().all(Second::is_sound) && inputs.is_finite() && inputs >= 0.0) {
            return Err(format!("the sums of `{path}` are no sums of squares"));
        }
        let block = Block {
            form,
            input_first: layout.input_first,
            sums,
            inputs,
        };
        blocks.insert(path.clone(), block);
    }
    Ok(TaskFactors {
        samples,
        count,
        blocks,
    })
}
