//! The loop: one backward pass per sample, exact for any module.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, GradientCheckpointingStrategy, Gradients, Tensor};
use fisher_core::gradient::{GradientBatch, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::model::{Catalogue, Ties};

use crate::batch::{SampleBatch, SampleLoss, clustered};
use crate::error::{Error, Result};

/// A model made ready for per-sample gradients.
///
/// Dropout, noise and the batch statistics of batch norms are off while gradients stay on
/// (Burn's `valid()` would take the gradients away too). Parameters that are not asked for are
/// frozen, so nothing is computed for them. The model is taken as it is when this is made, and stays
/// as it is.
#[derive(Debug, Clone)]
pub struct PerSample<M> {
    model: M,
    /// Id to path of the parameters asked for.
    paths: HashMap<ParamId, String>,
}

/// What the backward pass of one sample gives.
#[derive(Debug, Clone)]
pub struct LoopGradient {
    /// The gradients: a batch of one sample. A parameter that the loss does not reach is [`SampleGradient::Zero`].
    pub gradients: GradientBatch,
    /// `L_i`.
    pub loss: f64,
    /// Of which Fisher they are.
    pub kind: FisherKind,
    /// The parameters that the loss did not reach.
    pub unreached: Vec<String>,
}

impl<M: SampleLoss> PerSample<M> {
    /// Ready `model` for the gradients of the parameters at `paths`.
    ///
    /// # Errors
    /// [`fisher_core::Error::UnknownParameter`] when the model does not have one of them, or has
    /// it frozen.
    pub fn new<'a>(model: &M, paths: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        // Ids tell parameters apart here: copies need their own.
        let model = &Ties::of(model)?.separate(model.clone());
        let catalogue = Catalogue::of(model)?;
        let paths = paths.into_iter().map(|path| {
            let id = catalogue.require(path)?.id();
            Ok(id.map(|id| (id, path.to_owned())))
        });
        let paths = paths.filter_map(fisher_core::Result::transpose);
        let paths: HashMap<ParamId, String> = paths.collect::<fisher_core::Result<_>>()?;
        let model = deterministic(model, |id| paths.contains_key(&id));
        Ok(Self { model, paths })
    }

    /// The gradient of the sample at `index` of `batch`.
    ///
    /// # Errors
    /// [`fisher_core::Error::NoActiveTokens`] when none of its labels counts, [`Error::Label`] when
    /// one is no class, [`Error::NoGraph`] when its loss depends on no parameter, [`Error::Losses`] when the model
    /// does not give one loss for it.
    ///
    /// # Panics
    /// When the batch has no such sample.
    pub fn gradient(&self, batch: &M::Batch, index: usize) -> Result<LoopGradient> {
        let id = batch.id(index).unwrap_or_else(|| index.to_string());
        self.of(batch, index, id)
    }

    /// The copy that gradients are taken of.
    pub(crate) fn model(&self) -> &M {
        &self.model
    }

    /// The gradients of all uses of a parameter, summed: sum first, square after. Each is `[1, elements]`, as
    /// `cast` gives it. And the elements and device of parameters that have none.
    pub(crate) fn take(
        &self,
        mut gradients: Gradients,
        cast: impl Fn(Tensor<2>) -> Tensor<2>,
    ) -> (
        BTreeMap<String, Tensor<2>>,
        BTreeMap<String, (usize, Device)>,
    ) {
        let mut taker = Taker {
            paths: &self.paths,
            gradients: &mut gradients,
            cast,
            found: BTreeMap::new(),
            unreached: BTreeMap::new(),
        };
        self.model.visit(&mut taker);
        let (found, mut unreached) = (taker.found, taker.unreached);
        unreached.retain(|path, _| !found.contains_key(path));
        (found, unreached)
    }

    pub(crate) fn of(&self, batch: &M::Batch, index: usize, id: String) -> Result<LoopGradient> {
        let losses = self.model.sample_losses(&batch.sample(index));
        let samples = losses.samples(std::slice::from_ref(&id))?.into_iter();
        let samples = samples
            .map(|sample| clustered(batch, index, sample))
            .collect();
        let loss = losses.sums().clone().sum();
        if !loss.is_tracked() {
            return Err(Error::NoGraph { sample: id });
        }
        let (found, unreached) = self.take(loss.backward(), |gradient| gradient);
        let loss: f64 = loss.try_into_scalar().map_err(fisher_core::Error::device)?;
        let mut batch = GradientBatch::new(samples);
        let names = unreached.keys().cloned().collect();
        let found = found.into_iter();
        let found = found.map(|(path, gradient)| (path, SampleGradient::full(gradient)));
        let zeros = unreached.into_iter().map(|(path, (elements, device))| {
            let zero = SampleGradient::Zero {
                samples: 1,
                elements,
                device,
            };
            (path, zero)
        });
        for (path, gradient) in found.chain(zeros) {
            batch.insert(path, gradient);
        }
        Ok(LoopGradient {
            gradients: batch,
            loss,
            kind: losses.kind(),
            unreached: names,
        })
    }
}

/// A copy of the model as it is evaluated, with gradients only for the parameters `wanted`.
///
/// [`Module::valid`] puts dropout, noise and batch statistics off, brings running statistics up to date (Burn
/// keeps them one update behind) and gives the copy its own: those of a clone are the model's, and
/// would move on when it is trained. The autodiff that it takes away is given back.
pub(crate) fn deterministic<M: Module>(model: &M, wanted: impl Fn(ParamId) -> bool) -> M {
    let mut autodiff = Autodiff::default();
    model.visit(&mut autodiff);
    let strategies = autodiff.0;
    model.valid().map(&mut Deterministic { strategies, wanted })
}

/// How parameters on an autodiff device checkpoint activations.
#[derive(Default)]
struct Autodiff(HashMap<ParamId, GradientCheckpointingStrategy>);

impl ModuleVisitor for Autodiff {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let strategy = param.val().gradient_checkpointing_strategy();
        self.0.extend(strategy.map(|strategy| (param.id, strategy)));
    }
}

struct Deterministic<F> {
    strategies: HashMap<ParamId, GradientCheckpointingStrategy>,
    wanted: F,
}

impl<F: Fn(ParamId) -> bool> ModuleMapper for Deterministic<F> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(&strategy) = self.strategies.get(&param.id) else {
            return param;
        };
        // Autodiff, and gradients where they were before.
        let param = param.train();
        let param = param.map(|tensor| tensor.with_gradient_checkpointing_strategy(strategy));
        if !param.is_require_grad() || (self.wanted)(param.id) {
            return param;
        }
        param.set_require_grad(false)
    }
}

struct Taker<'a, F> {
    paths: &'a HashMap<ParamId, String>,
    gradients: &'a mut Gradients,
    cast: F,
    found: BTreeMap<String, Tensor<2>>,
    unreached: BTreeMap<String, (usize, Device)>,
}

impl<F: Fn(Tensor<2>) -> Tensor<2>> ModuleVisitor for Taker<'_, F> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(path) = self.paths.get(&param.id) else {
            return;
        };
        let tensor = param.val();
        let elements = tensor.shape().num_elements();
        match tensor.grad_remove(self.gradients) {
            Some(gradient) => {
                let gradient = (self.cast)(gradient.reshape([1, elements]));
                let sum = match self.found.remove(path) {
                    Some(other) => other + gradient,
                    None => gradient,
                };
                self.found.insert(path.clone(), sum);
            }
            None => {
                let device = tensor.device().without_autodiff();
                self.unreached.insert(path.clone(), (elements, device));
            }
        }
    }
}
