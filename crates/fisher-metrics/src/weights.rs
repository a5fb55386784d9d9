//! The weights of a model, on the host.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use fisher_core::for_each_weight;

use crate::{Error, Result};

/// The float parameters of a model, flattened, by path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights(BTreeMap<String, Vec<f64>>);

impl From<BTreeMap<String, Vec<f64>>> for Weights {
    fn from(weights: BTreeMap<String, Vec<f64>>) -> Self {
        Self(weights)
    }
}

impl Weights {
    /// Read the weights of a module.
    ///
    /// # Errors
    /// [`fisher_core::Error::Device`] when the device does not give them.
    pub fn of<M: Module>(model: &M) -> Result<Self> {
        let mut weights = BTreeMap::new();
        for_each_weight(model, |path, data| {
            weights.insert(path.to_owned(), data.iter::<f64>().collect());
        })?;
        Ok(Self(weights))
    }

    /// Write the weights into a module: the parameters that are here, others stay.
    pub fn write<M: Module>(&self, model: M) -> M {
        model.map(&mut Writer {
            names: Vec::new(),
            weights: self,
            by_id: HashMap::new(),
        })
    }

    /// Paths and weights.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f64])> {
        self.0.iter().map(|(path, weights)| (&**path, &**weights))
    }

    /// The weights at `path`, which must be `elements` many.
    ///
    /// # Errors
    /// [`Error::Keys`] when there are none, [`Error::Sizes`] when there are more or fewer.
    pub fn get(&self, path: &str, elements: usize) -> Result<&[f64]> {
        let weights = self.0.get(path).ok_or_else(|| Error::Keys {
            key: path.into(),
            present: "the statistics or masks",
            absent: "the model",
        })?;
        if weights.len() != elements {
            return Err(Error::Sizes {
                key: path.into(),
                ours: elements,
                theirs: weights.len(),
            });
        }
        Ok(weights)
    }
}

struct Writer<'a> {
    names: Vec<String>,
    weights: &'a Weights,
    by_id: HashMap<ParamId, &'a Vec<f64>>,
}

impl ModuleMapper for Writer<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.names.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // Another use of a parameter that is tied goes with its first.
        if let Some(weights) = self.weights.0.get(&self.names.join(".")) {
            self.by_id.entry(param.id).or_insert(weights);
        }
        let Some(&weights) = self.by_id.get(&param.id) else {
            return param;
        };
        param.map(|tensor| {
            let data = TensorData::new(weights.clone(), tensor.shape());
            let new = Tensor::<D>::from_data(data, (&tensor.device(), tensor.dtype()));
            new.set_require_grad(tensor.is_require_grad())
        })
    }
}
