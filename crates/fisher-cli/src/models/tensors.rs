//! The weights of a decoder, parameter by parameter.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use fisher_core::model::{Place, PlaceVisitor, visit_places};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use super::error::{Error, Result};
use super::families::Family;
use super::files::{self, Stored};
use super::load::Checkpoint;
use super::names::Named;

/// Reads the weights of a decoder in the files' names and orientation: one parameter when it is asked
/// for, and none before.
pub struct WeightReader<'a>(HashMap<&'a str, (&'a Named, Read)>);

/// Brings a parameter's values to the host.
type Read = Box<dyn Fn() -> fisher_core::Result<TensorData>>;

impl Checkpoint {
    /// What reads the weights.
    pub fn reader(&self) -> WeightReader<'_> {
        let mut handles = Handles(Vec::new());
        let Ok(()) = visit_places(&self.model.valid(), &mut handles);
        let readers = handles.0.into_iter().filter_map(|(path, read)| {
            let named = self.naming.get(&path)?;
            Some((&*named.name, (named, read)))
        });
        WeightReader(readers.collect())
    }
}

impl WeightReader<'_> {
    /// The weights called `name`.
    ///
    /// # Errors
    /// [`UnknownParameter`](fisher_core::Error::UnknownParameter) when there are none;
    /// [`Device`](fisher_core::Error::Device) when the device does not give them.
    pub fn read(&self, name: &str) -> fisher_core::Result<Vec<f64>> {
        let found = self.0.get(name);
        let (named, read) = found.ok_or_else(|| fisher_core::Error::UnknownParameter {
            parameter: name.into(),
            known: "those of the model".into(),
        })?;
        let values = read()?.iter::<f64>().collect();
        Ok(named.to_checkpoint(values))
    }
}

/// What reads each parameter, by its path in the module.
struct Handles(Vec<(String, Read)>);

impl PlaceVisitor for Handles {
    type Error = Infallible;

    fn visit<const D: usize>(
        &mut self,
        place: Place,
        param: &Param<Tensor<D>>,
    ) -> std::result::Result<(), Infallible> {
        let (value, path) = (param.val(), place.path.clone());
        let read = move || {
            let data = value.clone().try_into_data();
            let named = |e| fisher_core::Error::device(format!("parameter `{path}`: {e}"));
            data.map_err(named)
        };
        self.0.push((place.path, Box::new(read)));
        Ok(())
    }
}

/// A file of weights.
#[derive(Debug)]
pub(crate) struct TensorFile {
    /// Its name in the folder.
    pub(crate) name: String,
    /// What its header says beside its tensors.
    pub(crate) metadata: HashMap<String, String>,
    /// Its tensors, by the names that they have there.
    pub(crate) tensors: BTreeMap<String, Stored>,
}

impl TensorFile {
    /// The files of a folder, with the tensors that are taken from each.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub(crate) fn of(folder: &Path) -> Result<Vec<Self>> {
        let mut files: BTreeMap<PathBuf, BTreeMap<String, Stored>> = BTreeMap::new();
        for (name, stored) in files::tensors(folder)? {
            let tensors = files.entry(stored.file.clone()).or_default();
            tensors.insert(name, stored);
        }
        let file = |(path, tensors): (PathBuf, _)| {
            let name = path.file_name().unwrap_or_default();
            Ok(Self {
                name: name.to_string_lossy().into_owned(),
                metadata: metadata(&path)?,
                tensors,
            })
        };
        files.into_iter().map(file).collect()
    }
}

/// The text that a header holds.
fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    let read = || {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut json = Vec::new();
        file.take(u64::from_le_bytes(length))
            .read_to_end(&mut json)?;
        Ok(json)
    };
    let json = read().map_err(|e| Error::io(path, e))?;
    let header: Metadata = serde_json::from_slice(&json).map_err(|e| Error::json(path, e))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

impl Checkpoint {
    /// The parameter that a tensor of this name is in the files of such a model; the embedding, where it
    /// is an output head that repeats it. `None` for what is no parameter.
    pub(crate) fn parameter(&self, tensor: &str) -> Option<&str> {
        let family = Family::of(&self.config.kind).ok()?;
        let mut names = vec![tensor.to_owned(), family.prefixed(tensor)];
        if family.is_head(tensor) {
            names.push(family.name("embedding.weight", self.config.shape.order));
        }
        let mut found = names.iter().filter_map(|name| self.catalogue.get(name));
        found.next().map(|parameter| parameter.path())
    }
}

impl Stored {
    /// Its values.
    ///
    /// # Errors
    /// When the file cannot be read, or is not of a float type.
    pub(crate) fn values(&self) -> Result<Vec<f64>> {
        let bytes = self.read()?;
        let values = match self.dtype {
            Dtype::F64 => numbers(&bytes, f64::from_le_bytes),
            Dtype::F32 => numbers(&bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => numbers(&bytes, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => numbers(&bytes, |b| bf16::from_le_bytes(b).to_f64()),
            other => {
                let reason = format!("a tensor is of type {other:?}");
                return Err(Error::json(&self.file, reason));
            }
        };
        Ok(values)
    }

    /// Values as its type has them, rounded to the nearest.
    pub(crate) fn encode(&self, values: &[f64]) -> Vec<u8> {
        let values = values.iter();
        match self.dtype {
            Dtype::F64 => values.flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => values
                .flat_map(|x| f16::from_f64(*x).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .flat_map(|x| bf16::from_f64(*x).to_le_bytes())
                .collect(),
            _ => values.flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        }
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|b| number(*b))
        .collect()
}
