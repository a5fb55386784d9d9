//! A decoder from a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, TensorData};
use burn_store::burn_pack::Tensor as Packed;
use burn_store::{
    FloatCastAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot, PyTorchToBurnAdapter,
    SafetensorsStore,
};
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, for_each_weight, hash_weights};
use fisher_metrics::weights::Weights;
use safetensors::tensor::Dtype;

use super::config::{Architecture, ModelConfig};
use super::error::{Error, Result};
use super::files::{self, Stored};
use super::folder::recognize;
use super::gpt2::Gpt2;
use super::llama::Llama;
use super::names::{HEAD, Naming};

/// A decoder.
#[derive(Debug, Clone)]
pub enum Model {
    /// LLaMA, Mistral, Qwen2.
    Llama(Llama),
    /// GPT-2.
    Gpt2(Gpt2),
}

/// A decoder with its weights, and what it is called.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// What config.json says.
    pub config: ModelConfig,
    /// The decoder, in float32.
    pub model: Model,
    /// What its parameters are called in the module and in the files.
    pub naming: Naming,
    /// Its parameters, as the files have them.
    pub catalogue: Catalogue,
    /// Where the heads are in those.
    pub heads: HeadLayout,
}

impl Checkpoint {
    /// The weights, in the files' names and orientation.
    ///
    /// # Errors
    /// When the device does not give them.
    pub fn weights(&self) -> Result<Weights> {
        let mut weights = BTreeMap::new();
        let mut take = |path: &str, data: TensorData| {
            if let Some(named) = self.naming.get(path) {
                let values = named.to_checkpoint(data.iter::<f64>().collect());
                weights.insert(named.name.clone(), values);
            }
        };
        match &self.model {
            Model::Llama(model) => for_each_weight(model, &mut take)?,
            Model::Gpt2(model) => for_each_weight(model, &mut take)?,
        }
        Ok(weights.into())
    }

    /// [`hash_weights`] of the decoder.
    ///
    /// # Errors
    /// When the device does not give the weights.
    pub fn hash(&self) -> Result<String> {
        Ok(match &self.model {
            Model::Llama(model) => hash_weights(model)?,
            Model::Gpt2(model) => hash_weights(model)?,
        })
    }

    /// Read `config.json` and the weights of `folder` to `device`, which has autodiff. Weights in
    /// half precision become float32.
    ///
    /// # Errors
    /// Those of [`ModelConfig::read`]; [`Error::NoCheckpoint`], [`Error::Missing`], [`Error::Extra`],
    /// [`Error::Shape`] or [`Error::Type`] when the tensors are not those that config.json asks
    /// for; [`Error::Io`], [`Error::Json`] or [`Error::Load`] when a file cannot be read.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        recognize(folder)?;
        let config = ModelConfig::read(folder)?;
        let tensors = files::tensors(folder)?;
        match config.architecture.clone() {
            Architecture::Llama(shape) => {
                let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32));
                Self::fill(
                    folder,
                    config,
                    shape.init(device),
                    tensors,
                    adapter,
                    Model::Llama,
                )
            }
            Architecture::Gpt2(shape) => {
                let adapter = Conv1dToBurn.chain(FloatCastAdapter::to(DType::F32));
                Self::fill(
                    folder,
                    config,
                    shape.init(device),
                    tensors,
                    adapter,
                    Model::Gpt2,
                )
            }
        }
    }

    fn fill<M: Module + ModuleSnapshot>(
        folder: &Path,
        config: ModelConfig,
        mut model: M,
        mut tensors: BTreeMap<String, Stored>,
        adapter: impl ModuleAdapter + Clone + 'static,
        wrap: impl FnOnce(M) -> Model,
    ) -> Result<Self> {
        let own = Catalogue::of(&model)?;
        let gpt2 = matches!(config.architecture, Architecture::Gpt2(_));
        let naming = Naming::of(&own, gpt2);
        let bare = gpt2 && !tensors.keys().any(|name| name.starts_with(PREFIX));
        if bare {
            let prefixed = |name: String| {
                if &*name == HEAD {
                    name
                } else {
                    format!("{PREFIX}{name}")
                }
            };
            tensors = tensors.into_iter().map(|(n, t)| (prefixed(n), t)).collect();
        }
        drop_buffers(&mut tensors, &own)?;
        check(&naming, &tensors)?;

        let files: BTreeSet<&PathBuf> = tensors.values().map(|stored| &stored.file).collect();
        let mut loaded = BTreeSet::new();
        for file in files {
            let fail = |reason: String| Error::Load {
                path: file.clone(),
                reason,
            };
            // What is missing from one file is in another; `check` has seen that all are there.
            let mut store = SafetensorsStore::from_file(file)
                .allow_partial(true)
                .with_from_adapter(adapter.clone());
            // A file may have copies of what the index takes from another.
            let here = naming
                .iter()
                .filter(|named| tensors[&named.name].file == *file);
            store = store.with_full_paths(here.map(|named| &*named.path));
            if bare {
                store = store.with_key_remapping(r"^(wte|wpe|h|ln_f)\.", format!("{PREFIX}$1."));
            }
            let result = model
                .load_from(&mut store)
                .map_err(|e| fail(e.to_string()))?;
            loaded.extend(result.applied);
        }
        let unfilled = naming.iter().find(|named| !loaded.contains(&named.path));
        if let Some(named) = unfilled {
            return Err(Error::Load {
                path: folder.into(),
                reason: format!("`{}` was not filled", named.name),
            });
        }
        let catalogue = naming.names().catalogue(&model)?;
        let [heads, kv_heads, width] = config.heads();
        let attention = AttentionConfig::new(heads)
            .with_kv_heads(Some(kv_heads))
            .with_d_k(Some(width))
            .with_d_v(Some(width));
        Ok(Self {
            folder: folder.into(),
            heads: HeadLayout::recognize(&catalogue, &attention)?,
            config,
            model: wrap(model),
            naming,
            catalogue,
        })
    }
}

/// What every parameter of a GPT-2 begins with; some files leave it out.
const PREFIX: &str = "transformer.";

/// Tensors in old files that are no weights: causal masks, wave lengths; and an output head that
/// repeats the embedding it is tied to.
fn drop_buffers(tensors: &mut BTreeMap<String, Stored>, catalogue: &Catalogue) -> Result<()> {
    let buffer = |name: &str| {
        [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    tensors.retain(|name, _| !buffer(name));
    if catalogue.get(HEAD).is_some() {
        return Ok(());
    }
    let Some(head) = tensors.remove(HEAD) else {
        return Ok(());
    };
    let names = ["model.embed_tokens.weight", "transformer.wte.weight"];
    let Some((name, embedding)) = names.iter().find_map(|name| tensors.get_key_value(*name)) else {
        return Ok(()); // `check` tells that there is none
    };
    if head.read()? == embedding.read()? {
        Ok(())
    } else {
        Err(Error::NotTied {
            embedding: name.clone(),
        })
    }
}

/// Every tensor there, none more, all of the right shape and of a float type.
fn check(naming: &Naming, tensors: &BTreeMap<String, Stored>) -> Result<()> {
    let wanted: BTreeSet<&str> = naming.iter().map(|named| &*named.name).collect();
    let missing = wanted.iter().filter(|name| !tensors.contains_key(**name));
    let missing: Vec<&str> = missing.copied().collect();
    if !missing.is_empty() {
        return Err(Error::Missing {
            tensors: few(&missing),
        });
    }
    let extra = tensors.keys().map(String::as_str);
    let extra: Vec<&str> = extra.filter(|name| !wanted.contains(name)).collect();
    if !extra.is_empty() {
        return Err(Error::Extra {
            tensors: few(&extra),
        });
    }
    for named in naming.iter() {
        let stored = &tensors[&named.name];
        if stored.shape != named.shape {
            return Err(Error::Shape {
                tensor: named.name.clone(),
                found: stored.shape.clone(),
                expected: named.shape.clone(),
            });
        }
        if !matches!(
            stored.dtype,
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64
        ) {
            return Err(Error::Type {
                tensor: named.name.clone(),
                found: format!("{:?}", stored.dtype),
            });
        }
    }
    Ok(())
}

/// The first names, and how many more there are.
fn few(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// As [`PyTorchToBurnAdapter`], but for linear layers that are `Conv1D` in the file.
#[derive(Debug, Clone)]
struct Conv1dToBurn;

impl ModuleAdapter for Conv1dToBurn {
    fn adapt(&self, tensor: Packed, context: ModuleContext<'_>) -> Packed {
        match context.module_type() {
            Some("Struct:Linear") if tensor.name != HEAD => tensor,
            _ => PyTorchToBurnAdapter.adapt(tensor, context),
        }
    }

    fn get_alternative_param_name(&self, parameter: &str, module: &str) -> Option<String> {
        PyTorchToBurnAdapter.get_alternative_param_name(parameter, module)
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}
