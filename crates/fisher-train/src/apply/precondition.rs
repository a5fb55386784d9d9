//! The step of an optimizer on gradients that something is done to first, parameter by parameter.

use burn::module::{Module, Param};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use fisher_core::model::{Place, PlaceVisitor, Ties, visit_places};

use crate::error::{Error, Result};

/// What is done to the gradient of a parameter.
pub(super) trait Precondition {
    fn forward<const D: usize>(&mut self, path: &str, gradient: Tensor<D>) -> Result<Tensor<D>>;
}

/// The gradients of a module, each once.
pub(super) fn preconditioned<M: Module>(
    module: &M,
    gradients: GradientsParams,
    with: &mut impl Precondition,
) -> Result<GradientsParams> {
    of_separate(&ties(module)?.separate(module.clone()), gradients, with)
}

/// One step of `optimizer` on them.
pub(super) fn step<M: Module>(
    optimizer: &mut ModuleOptimizer,
    rate: impl Into<ModuleLearningRate>,
    module: M,
    gradients: GradientsParams,
    with: &mut impl Precondition,
) -> Result<M> {
    let ties = ties(&module)?;
    let module = ties.separate(module);
    let gradients = of_separate(&module, gradients, with)?;
    Ok(ties.rejoin(optimizer.step(rate, module, gradients)))
}

/// The gradients of a module in which ids tell parameters apart.
fn of_separate<M: Module>(
    module: &M,
    gradients: GradientsParams,
    with: &mut impl Precondition,
) -> Result<GradientsParams> {
    let mut visitor = Visitor {
        with,
        gradients,
        done: GradientsParams::new(),
    };
    visit_places(module, &mut visitor)?;
    Ok(visitor.done)
}

/// Which parameters are tied.
pub(super) fn ties<M: Module>(module: &M) -> Result<Ties> {
    let ties = Ties::of(module)?;
    if let Some([first, second]) = ties.clash() {
        return Err(Error::SharedId {
            first: first.into(),
            second: second.into(),
        });
    }
    Ok(ties)
}

struct Visitor<'a, P> {
    with: &'a mut P,
    gradients: GradientsParams,
    done: GradientsParams,
}

impl<P: Precondition> PlaceVisitor for Visitor<'_, P> {
    type Error = Error;

    fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
        // Absent where it is frozen, not reached, or another use of a parameter that is done.
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let done = self.with.forward(&place.path, gradient)?;
            self.done.register(param.id, done);
        }
        Ok(())
    }
}
