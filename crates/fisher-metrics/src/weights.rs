//! The weights of a model, on the host.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use fisher_core::model::{PathMapper, Ties, for_each_weight, map_paths, places};

use crate::error::{Error, Result};

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

    /// Write the weights into a module: the parameters that are here, others stay. What is tied to
    /// a parameter and has no weights of its own here goes with it; copies do not (see [`Ties`]).
    ///
    /// # Errors
    /// [`Error::Keys`] or [`Error::Sizes`] when the module does not have one of the parameters,
    /// [`fisher_core::Error::Copies`] when a copy cannot be told from a tie.
    pub fn write<M: Module>(&self, model: M) -> Result<M> {
        let shapes = shapes(&model);
        for (path, weights) in &self.0 {
            let shape = shapes
                .get(path)
                .ok_or_else(|| Error::keys(path.clone(), "the weights", "the model"))?;
            let elements = shape.iter().product();
            if weights.len() != elements {
                return Err(Error::sizes(path.clone(), weights.len(), elements));
            }
        }
        let values = with_ties(&model, &self.0)?;
        Ok(combine(model, values, Operation::Replace))
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
        let weights = self
            .0
            .get(path)
            .ok_or_else(|| Error::keys(path, "the statistics or masks", "the model"))?;
        if weights.len() != elements {
            return Err(Error::sizes(path, elements, weights.len()));
        }
        Ok(weights)
    }
}

/// The shapes of a module's float parameters, by path.
pub(crate) fn shapes<M: Module>(model: &M) -> BTreeMap<String, Vec<usize>> {
    let places = places(model).into_iter();
    places.map(|place| (place.path, place.shape)).collect()
}

/// What `values` has for each path of a module, its ties included.
pub(crate) fn with_ties<'a, M: Module>(
    model: &M,
    values: &'a BTreeMap<String, Vec<f64>>,
) -> Result<HashMap<String, &'a [f64]>> {
    let ties = Ties::of(model)?;
    let mut all = HashMap::new();
    for (path, of_path) in values {
        let tied = ties.tied_with(path)?.into_iter();
        for path in tied.filter(|path| !values.contains_key(*path)) {
            all.entry(path.to_owned()).or_insert(&**of_path);
        }
        all.insert(path.clone(), of_path);
    }
    Ok(all)
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    Replace,
    Multiply,
    Add,
}

/// Combine parameters, by path, with values of their size; nothing else changes.
///
/// # Panics
/// When a size differs.
pub(crate) fn combine<M: Module>(model: M, values: HashMap<String, &[f64]>, with: Operation) -> M {
    map_paths(model, &mut Combine { values, with })
}

struct Combine<'a> {
    values: HashMap<String, &'a [f64]>,
    with: Operation,
}

impl PathMapper for Combine<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(values) = self.values.get(path) else {
            return param;
        };
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let data = TensorData::new(values.to_vec(), tensor.shape());
            // From its device: what Burn does about checkpoints of gradients is written there.
            let values = Tensor::<D>::from_data(data, (&tensor.device(), tensor.dtype()));
            let combined = match self.with {
                Operation::Replace => values,
                Operation::Multiply => tensor.detach() * values,
                Operation::Add => tensor.detach() + values,
            };
            combined.detach().set_require_grad(tracked)
        })
    }
}
