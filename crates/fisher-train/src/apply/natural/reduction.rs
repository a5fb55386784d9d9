//! What a step was predicted to do to the loss.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use fisher_core::model::{Place, PlaceVisitor, visit_places};
use fisher_core::read;

use super::curvature::RunningFisher;
use crate::error::{Error, Result};

/// The weights of a module, flattened, by path.
pub(super) type Weights = BTreeMap<String, Tensor<1>>;

/// The weights of a module, also of what does not train.
pub(super) fn weights<M: Module>(module: &M) -> Result<Weights> {
    struct Visitor(Weights);
    impl PlaceVisitor for Visitor {
        type Error = Error;

        fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
            let weights = param.val().inner();
            let elements = weights.dims().iter().product::<usize>();
            self.0.insert(place.path, weights.reshape([elements]));
            Ok(())
        }
    }
    let mut visitor = Visitor(Weights::new());
    visit_places(module, &mut visitor)?;
    Ok(visitor.0)
}

/// `gᵀ δ + ½ δᵀ F δ` for the step δ between two sets of weights, where gradients were `gradients`.
pub(super) fn predicted(
    fisher: &RunningFisher,
    gradients: &Weights,
    [before, after]: [&Weights; 2],
) -> Result<f64> {
    let mut change = 0.0;
    for (path, gradient) in gradients {
        let missing = || Error::no_fisher(path);
        let block = fisher.block(path).ok_or_else(missing)?;
        let after = after.get(path).ok_or_else(missing)?.clone();
        let step = after - before.get(path).ok_or_else(missing)?.clone();
        let linear = (gradient.clone() * step.clone()).sum();
        change += read(linear)?[0] + 0.5 * read(block.square(step))?[0];
    }
    Ok(change)
}
