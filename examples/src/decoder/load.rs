//! Weights of a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fisher_core::{Catalogue, Parameter, Role};
use fisher_metrics::Weights;
use fisher_train::Names;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Checkpoint, Decoder, DecoderConfig, DecoderError};

/// Values and shapes, by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// Fill `decoder` with the tensors of `folder`.
pub(crate) fn load(
    folder: &Path,
    config: DecoderConfig,
    decoder: Decoder,
) -> Result<Checkpoint, DecoderError> {
    let mut tensors = BTreeMap::new();
    for file in files(folder)? {
        read(&file, &mut tensors)?;
    }
    let catalogue = Catalogue::of(&decoder).map_err(fisher_train::Error::from)?;
    let (mut names, mut own, mut theirs) = (Names::new(), BTreeMap::new(), BTreeMap::new());
    let prefixed = tensors.keys().any(|name| name.starts_with("transformer."));
    for parameter in catalogue.parameters() {
        let (name, transposed) = name_of(parameter, &config, prefixed);
        let problem = |problem: String| DecoderError::Tensor {
            name: name.clone(),
            problem,
        };
        let (shape, values) = tensors
            .remove(&name)
            .ok_or_else(|| problem("is not in the checkpoint".into()))?;
        let mut expected = parameter.shape().to_vec();
        if transposed {
            expected.reverse();
        }
        if shape != expected {
            let shapes = format!("has shape {shape:?}; config.json says {expected:?}");
            return Err(problem(shapes));
        }
        let weights = match (transposed, &*shape) {
            (true, &[rows, columns]) => {
                let across = |c: usize| (0..rows).map(move |r| r * columns + c);
                (0..columns).flat_map(across).map(|at| values[at]).collect()
            }
            _ => values.clone(),
        };
        own.insert(parameter.path().to_owned(), weights);
        theirs.insert(name.clone(), values);
        names = names.with(parameter.path(), name, transposed);
    }
    // Buffers, and the embedding written once more as the head it is tied to.
    let known = |name: &str| {
        let buffers = ["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias"];
        buffers.iter().any(|suffix| name.ends_with(suffix)) || name == "lm_head.weight"
    };
    if let Some(name) = tensors.keys().find(|name| !known(name)) {
        return Err(DecoderError::Tensor {
            name: name.clone(),
            problem: "is in the checkpoint, and the model that config.json describes has no use \
                      for it"
                .into(),
        });
    }
    Ok(Checkpoint {
        decoder: Weights::from(own).write(decoder),
        config,
        names,
        weights: Weights::from(theirs),
    })
}

/// The checkpoint's name of a parameter, and whether it lies the other way there.
fn name_of(parameter: &Parameter, config: &DecoderConfig, prefixed: bool) -> (String, bool) {
    // Burn's path begins with the variant of the enum.
    let path = parameter.path();
    let path = path.split_once('.').map_or(path, |(_, path)| path);
    let path = match path.rsplit_once('.') {
        Some((layer, "gamma")) => format!("{layer}.weight"),
        Some((layer, "beta")) => format!("{layer}.bias"),
        _ => path.to_owned(),
    };
    match config {
        // PyTorch's linear layers are [out, in].
        DecoderConfig::Llama(_) => {
            let prefix = if path.starts_with("lm_head") {
                ""
            } else {
                "model."
            };
            (format!("{prefix}{path}"), parameter.role() == Role::Matrix)
        }
        DecoderConfig::Gpt2(_) if prefixed => (format!("transformer.{path}"), false),
        DecoderConfig::Gpt2(_) => (path, false),
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, DecoderError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let fail = |reason: String| DecoderError::Read {
        path: index.clone(),
        reason,
    };
    let text = std::fs::read(&index).map_err(|e| fail(e.to_string()))?;
    let json: Value = serde_json::from_slice(&text).map_err(|e| fail(e.to_string()))?;
    let shards = json["weight_map"].as_object();
    let shards = shards.ok_or_else(|| fail("it has no `weight_map`".into()))?;
    let shards: BTreeSet<&str> = shards.values().filter_map(Value::as_str).collect();
    Ok(shards.into_iter().map(|shard| folder.join(shard)).collect())
}

fn read(path: &Path, into: &mut Tensors) -> Result<(), DecoderError> {
    let fail = |reason: String| DecoderError::Read {
        path: path.into(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(e.to_string()))?;
    for (name, view) in file.tensors() {
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F32 => {
                let numbers = data.as_chunks::<4>().0.iter();
                numbers.map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            Dtype::F16 => {
                let numbers = data.as_chunks::<2>().0.iter();
                numbers
                    .map(|b| half::f16::from_le_bytes(*b).to_f64())
                    .collect()
            }
            Dtype::BF16 => {
                let numbers = data.as_chunks::<2>().0.iter();
                numbers
                    .map(|b| half::bf16::from_le_bytes(*b).to_f64())
                    .collect()
            }
            // Masks and other buffers.
            Dtype::U8 | Dtype::BOOL | Dtype::I64 => Vec::new(),
            other => {
                return Err(DecoderError::Tensor {
                    name,
                    problem: format!("is of type {other:?}; supported are F32, F16 and BF16"),
                });
            }
        };
        into.insert(name, (view.shape().to_vec(), values));
    }
    Ok(())
}
