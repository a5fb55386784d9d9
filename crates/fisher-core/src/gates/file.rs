//! Gate scores as one `.safetensors` file.
//!
//! | name | shape | |
//! |---|---|---|
//! | `{task}/mean/{quantity}`, `{task}/m2/{quantity}` | `[gates]` | of `first_order`, `fisher` and `predicted` |
//! | `{task}/products` | `[samples, gates]` | `(g_i · θ)_G`, where they are kept |
//! | `{task}/samples` | `[bytes]` | JSON, as in a file of statistics |
//!
//! All numbers are float64. The metadata's only entry, `fisher_gates`, is JSON: `schema`, `writer`, `provenance`, `sets`
//! (what the gates are on, in order), `rows`, `tasks` (samples counted) and `sha256`, as in a file of statistics.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, TensorData};
use serde::{Deserialize, Serialize};

use super::moments::Moments;
use super::scores::GateScores;
use super::set::GateSet;
use super::task::{GateQuantity, TaskGates};
use crate::container::{Contents, Source, WRITER, encode, floats, write};
use crate::error::{Result, format_error};
use crate::provenance::Provenance;
use crate::sample::{SampleRecord, Seen};

/// The version of the file format that this library writes. It reads all versions up to it.
pub const GATES_VERSION: u64 = 1;

const METADATA: &str = "fisher_gates";

#[derive(Serialize, Deserialize)]
struct Metadata {
    schema: u64,
    writer: String,
    provenance: Provenance,
    sets: Vec<GateSet>,
    rows: usize,
    tasks: BTreeMap<String, u64>,
    sha256: String,
}

impl GateScores {
    /// Write them to `path`, atomically.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be written, [`Error::Header`](crate::Error::Header) when
    /// the names of the gates are too long for a header.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut tensors = BTreeMap::new();
        for (name, task) in &self.tasks {
            let task_name = encode(name);
            for (moments, quantity) in task.moments.iter().zip(GateQuantity::ALL) {
                for (what, values) in [("mean", &moments.mean), ("m2", &moments.m2)] {
                    let key = format!("{task_name}/{what}/{}", quantity.name());
                    tensors.insert(key, TensorData::new(values.clone(), [task.gates]).into());
                }
            }
            if let Some(products) = &task.products {
                let shape = [products.len() / task.gates, task.gates];
                let products = TensorData::new(products.clone(), shape);
                tensors.insert(format!("{task_name}/products"), products.into());
            }
            let samples = serde_json::to_vec(task.samples());
            let samples = samples.map_err(|e| format_error(path, e))?;
            let length = samples.len();
            let samples = TensorData::from_bytes_vec(samples, [length], DType::U8);
            tensors.insert(format!("{task_name}/samples"), samples.into());
        }
        let counts = self.tasks.iter();
        let metadata = Metadata {
            schema: GATES_VERSION,
            writer: WRITER.into(),
            provenance: self.provenance.clone(),
            sets: self.sets.clone(),
            rows: self.limit,
            tasks: counts.map(|(name, t)| (name.clone(), t.count())).collect(),
            sha256: String::new(),
        };
        write(path, METADATA, &tensors, metadata, |m| &mut m.sha256)
    }

    /// Read them from `path`, bit for bit.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the file cannot be read; [`Error::Format`](crate::Error::Format),
    /// [`Error::Checksum`](crate::Error::Checksum) or [`Error::Version`](crate::Error::Version) when it is not a whole
    /// file of gates of a version that is known.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = Contents::open(path, METADATA)?;
        file.check_version(1..=GATES_VERSION)?;
        let metadata: Metadata = file.metadata()?;
        let views = file.tensors(&metadata.sha256)?;
        let mut scores = Self {
            provenance: metadata.provenance,
            sets: metadata.sets,
            limit: metadata.rows,
            tasks: BTreeMap::new(),
        };
        let gates = scores.gates();
        for (name, count) in metadata.tasks {
            let task = read_task(&encode(&name), count, gates, &views);
            let task = task.map_err(|reason| format_error(path, reason))?;
            scores.tasks.insert(name, task);
        }
        Ok(scores)
    }
}

fn read_task(
    name: &str,
    count: u64,
    gates: usize,
    views: &BTreeMap<String, Source>,
) -> Result<TaskGates, String> {
    let find = |key: String| views.get(&key).ok_or(format!("no `{key}`"));
    let samples = find(format!("{name}/samples"))?.bytes();
    let samples = samples.map_err(|e| e.to_string())?;
    let samples: Vec<SampleRecord> = serde_json::from_slice(&samples).map_err(|e| e.to_string())?;
    let counted = samples.iter().filter(|s| s.skipped.is_none()).count();
    if counted as u64 != count {
        return Err(format!("`{name}` has {counted} samples and counts {count}"));
    }
    let (samples, twice) = Seen::of(samples);
    if twice > 0 {
        return Err(format!("`{name}` has {twice} samples twice"));
    }
    let columns = |what: &str, quantity: GateQuantity| {
        let key = format!("{name}/{what}/{}", quantity.name());
        let view = find(key.clone())?;
        floats(&key, view, &[gates])
    };
    let mut moments = Vec::new();
    for quantity in GateQuantity::ALL {
        moments.push(Moments {
            count,
            mean: columns("mean", quantity)?,
            m2: columns("m2", quantity)?,
        });
    }
    let moments = moments.try_into();
    let key = format!("{name}/products");
    let products = views
        .get(&key)
        .map(|view| floats(&key, view, &[counted, gates]));
    Ok(TaskGates {
        gates,
        samples,
        moments: moments.map_err(|_| "other quantities".to_owned())?,
        products: products.transpose()?,
    })
}
