//! A model from a Hugging Face folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::{Param, ParamGroup};
use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, PathMapper, for_each_weight, hash_weights, map_paths};
use fisher_metrics::weights::Weights;
use safetensors::tensor::Dtype;

use super::config::ModelConfig;
use super::error::{Error, Result};
use super::families::Family;
use super::files::{self, Stored};
use super::folder::recognize;
use super::loading::{Loading, WeightType};
use super::names::{Named, Naming};
use super::shape::Output;
use super::transformer::Transformer;

/// A model with its weights, and what it is called.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// What config.json says.
    pub config: ModelConfig,
    /// The model.
    pub model: Transformer,
    /// The type of its weights.
    pub dtype: WeightType,
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
        for_each_weight(&self.model, |path, data| {
            if let Some(named) = self.naming.get(path) {
                let values = named.to_checkpoint(data.iter::<f64>().collect());
                weights.insert(named.name.clone(), values);
            }
        })?;
        Ok(weights.into())
    }

    /// [`hash_weights`] of the model.
    ///
    /// # Errors
    /// When the device does not give the weights.
    pub fn hash(&self) -> Result<String> {
        Ok(hash_weights(&self.model)?)
    }

    /// Read `config.json` and the weights of `folder` to `device`, which has autodiff. Weights become
    /// float32.
    ///
    /// # Errors
    /// Those of [`ModelConfig::read`]; [`Error::NoCheckpoint`], [`Error::Missing`], [`Error::Extra`],
    /// [`Error::Shape`] or [`Error::Type`] when the tensors are not those that config.json asks
    /// for; [`Error::Io`] or [`Error::Json`] when a file cannot be read.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        Self::load_with(folder, &Loading::default(), device)
    }

    /// Another folder's weights, in the type of these.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn like(&self, folder: &Path, device: &Device) -> Result<Self> {
        let loading = Loading {
            adapter: None,
            weights: self.dtype,
        };
        Self::load_with(folder, &loading, &device.clone().autodiff())
    }

    /// The same with an adapter, or in another type.
    ///
    /// # Errors
    /// As [`Checkpoint::load`]; [`Error::Adapter`] when the adapter is none of this model; [`Error::Rounded`],
    /// [`Error::Experts`] or [`Error::Device`] when files, model or device do not go with the type.
    pub fn load_with(folder: &Path, loading: &Loading, device: &Device) -> Result<Self> {
        let dtype = loading.weights;
        if !device.supports_dtype(DType::from(dtype)) {
            return Err(Error::Device {
                dtype: format!("{dtype:?}").to_lowercase(),
                device: format!("{device:?}"),
            });
        }
        recognize(folder)?;
        let config = ModelConfig::read(folder)?;
        let family = Family::of(&config.kind)?;
        if dtype == WeightType::BFloat16 && config.shape.experts.is_some() {
            return Err(Error::Experts);
        }
        let model = config.shape.init(device);
        let naming = Naming::of(&Catalogue::of(&model)?, family, &config);
        let mut tensors = files::tensors(folder)?;
        prefixed(&mut tensors, family);
        drop_buffers(&mut tensors, &naming, &config, family)?;
        check(&naming, &tensors)?;
        let mut model = filled(model, &naming, &tensors, dtype)?;
        let Some(adapter) = &loading.adapter else {
            return Self::of(folder, config, model, naming, None, dtype);
        };
        let factors = adapter.attach(&mut model, &naming, family.conv1d)?;
        let all = Naming::of(&Catalogue::of(&model)?, family, &config).adapted();
        let own = all.only(|path| path.contains(".lora."));
        check(&own, &factors)?;
        let mut model = filled(model, &own, &factors, dtype)?;
        if adapter.merged {
            for named in naming.iter() {
                let path = named.path.strip_suffix(".linear.weight");
                if let Some(projection) = path.and_then(|path| model.projection(path)) {
                    projection.absorb();
                }
            }
            return Self::of(folder, config, model, naming, None, dtype);
        }
        Self::of(folder, config, model, all, Some(own), dtype)
    }

    /// Where only its `own` parameters train, those are all that it is of.
    fn of(
        folder: &Path,
        config: ModelConfig,
        mut model: Transformer,
        naming: Naming,
        own: Option<Naming>,
        dtype: WeightType,
    ) -> Result<Self> {
        let mut catalogue = naming.names().catalogue(&model)?;
        if let Some(own) = &own {
            let names = own.iter().map(|named| named.name.clone()).collect();
            catalogue = catalogue.filter(&ParamGroup::from_paths(names))?;
            model = map_paths(model, &mut Freezer);
        }
        Ok(Self {
            folder: folder.into(),
            heads: naming.heads(&catalogue, &config)?,
            config,
            model,
            dtype,
            naming: own.unwrap_or(naming),
            catalogue,
        })
    }
}

/// Leaves gradients to adapters alone.
struct Freezer;

impl PathMapper for Freezer {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let trains = path.contains(".lora.");
        param.set_require_grad(trains)
    }
}

/// A module with the tensors of files in the place of the parameters that `naming` names.
fn filled(
    model: Transformer,
    naming: &Naming,
    tensors: &BTreeMap<String, Stored>,
    dtype: WeightType,
) -> Result<Transformer> {
    let mut filler = Filler {
        naming,
        tensors,
        dtype,
        error: None,
    };
    let model = map_paths(model, &mut filler);
    filler.error.map_or(Ok(model), Err)
}

/// Puts the tensors of files in the place of a module's parameters.
struct Filler<'a> {
    naming: &'a Naming,
    tensors: &'a BTreeMap<String, Stored>,
    dtype: WeightType,
    error: Option<Error>,
}

impl PathMapper for Filler<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let named = self.naming.get(path);
        let read = named.map(|named| values(named, &self.tensors[&named.name], self.dtype));
        match read {
            Some(Ok(values)) => {
                let data = TensorData::new(values, param.lazy_shape());
                let dtype = DType::from(self.dtype);
                let tensor = Tensor::from_data(data, (&param.lazy_device(), dtype));
                let id = param.id;
                param.transform_for_load(tensor, id)
            }
            Some(Err(error)) => {
                self.error.get_or_insert(error);
                param
            }
            None => param,
        }
    }
}

/// The values of a tensor in the module's order, as float32.
fn values(named: &Named, stored: &Stored, wanted: WeightType) -> Result<Vec<f32>> {
    let dtype = match stored.dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F64 => DType::F64,
        other => {
            return Err(Error::Type {
                tensor: named.name.clone(),
                found: format!("{other:?}"),
            });
        }
    };
    if wanted == WeightType::BFloat16 && dtype != DType::BF16 {
        return Err(Error::Rounded {
            tensor: named.name.clone(),
            found: format!("{:?}", stored.dtype),
        });
    }
    let data = TensorData::from_bytes_vec(stored.read()?, stored.shape.clone(), dtype);
    Ok(named.to_module(data.iter::<f32>().collect()))
}

/// Give names the prefix that some files leave out.
fn prefixed(tensors: &mut BTreeMap<String, Stored>, family: &Family) {
    if tensors.keys().any(|name| name.starts_with(family.first())) {
        return;
    }
    let bare = std::mem::take(tensors);
    let all = bare
        .into_iter()
        .map(|(name, tensor)| (family.prefixed(&name), tensor));
    *tensors = all.collect();
}

/// Tensors that are no weights: causal masks, wave lengths, numbers of positions; and an output head
/// that repeats the embedding it is tied to, or stands for it.
fn drop_buffers(
    tensors: &mut BTreeMap<String, Stored>,
    naming: &Naming,
    config: &ModelConfig,
    family: &Family,
) -> Result<()> {
    const BUFFERS: [&str; 6] = [
        ".attn.bias",
        ".attention.bias",
        ".masked_bias",
        ".rotary_emb.inv_freq",
        "embeddings.position_ids",
        ".embed_positions.position_ids",
    ];
    tensors.retain(|name, _| !BUFFERS.iter().any(|end| name.ends_with(end)));
    if !matches!(config.shape.output, Output::NextToken { tied: true, .. }) {
        return Ok(());
    }
    let name = family.name("head.weight", config.shape.order);
    let Some(head) = tensors.remove(&name) else {
        return Ok(());
    };
    let Some(embedding) = naming.get("embedding.weight") else {
        return Ok(());
    };
    match tensors.get(&embedding.name) {
        None => {
            tensors.insert(embedding.name.clone(), head);
            Ok(())
        }
        Some(stored) if stored.read()? == head.read()? => Ok(()),
        Some(_) => Err(Error::NotTied {
            head: name,
            embedding: embedding.name.clone(),
        }),
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
