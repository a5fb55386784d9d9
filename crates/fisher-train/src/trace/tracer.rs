//! Per-sample gradients of a whole batch from one recorded pass, of any model as it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use burn::module::ParamId;
use burn::tensor::{DType, Device, Tensor};
use fisher_core::gradient::{GradientBatch, SampleGradient};
use fisher_core::model::{Catalogue, Ties};
use fisher_core::read;

use super::execute::{Executed, execute};
use super::graph::Graph;
use super::recipe::Recipe;
use super::record::{caught, record};
use super::samples::{Places, Samples};
use crate::batch::{SampleBatch, SampleLoss, clustered};
use crate::error::{Error, Result};
use crate::gradients::{Captured, HELD, Rounding};
use crate::losses::SampleLosses;

/// A model made ready for traces.
#[derive(Debug, Clone)]
pub(crate) struct Tracer<M> {
    model: M,
    device: Device,
    parameters: HashMap<ParamId, Parameter>,
    rounding: Rounding,
}

#[derive(Debug, Clone)]
struct Parameter {
    path: String,
    /// The first axis and the product of all others.
    sides: [usize; 2],
    /// Whether it is a matrix, or more.
    matrix: bool,
}

impl<M: SampleLoss> Tracer<M> {
    /// Ready `model` for the gradients of the parameters at `paths`.
    pub(crate) fn new<'a>(model: &M, paths: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        // Ids tell parameters apart here: copies need their own.
        let model = &Ties::of(model)?.separate(model.clone());
        let catalogue = Catalogue::of(model)?;
        let mut parameters = HashMap::new();
        for path in paths {
            let parameter = catalogue.require(path)?;
            let shape = parameter.shape();
            if let Some(id) = parameter.id() {
                let parameter = Parameter {
                    path: path.to_owned(),
                    sides: [shape[0], shape[1..].iter().product()],
                    matrix: shape.len() > 1,
                };
                parameters.insert(id, parameter);
            }
        }
        let device = model.devices().first().cloned().unwrap_or_default();
        Ok(Self {
            model: model.valid(),
            device: device.without_autodiff(),
            rounding: Rounding::of_model(model),
            parameters,
        })
    }

    /// The gradients of a batch, whose samples have these ids.
    pub(crate) fn capture(&self, batch: &M::Batch, ids: &[String]) -> Result<Captured> {
        let Traced {
            losses,
            found,
            left,
        } = self.traced(batch, ids.len())?;
        let samples = losses.samples(ids)?.into_iter().enumerate();
        let samples = samples.map(|(index, sample)| clustered(batch, index, sample));
        let mut gradients = GradientBatch::new(samples.collect());
        for (path, gradient) in found {
            gradients.insert(path, gradient);
        }
        let all = || gradients.iter().map(|(_, gradient)| gradient);
        let dtypes = all().flat_map(SampleGradient::dtypes);
        let rounding = Rounding::of(dtypes.chain([losses.sums().dtype()]));
        let mut probes = vec![losses.sums().clone().cast(DType::F32)];
        probes.extend(all().flat_map(SampleGradient::probes));
        let probes = read(Tensor::cat(probes, 0))?;
        Ok(Captured {
            finite: probes.iter().all(|probe| probe.is_finite()),
            losses: read(losses.sums().clone())?,
            kind: losses.kind(),
            gradients,
            left,
            rounding: self.rounding.coarser(rounding),
        })
    }

    fn traced(&self, batch: &M::Batch, samples: usize) -> Result<Traced> {
        let untraced = |reason| Error::Untraced { reason };
        let start = Instant::now();
        let wanted: HashSet<ParamId> = self.parameters.keys().copied().collect();
        let trace = record(
            &self.model,
            &self.device,
            samples,
            &wanted,
            |model, mapper| model.sample_losses(&batch.map_samples(mapper)),
        )
        .map_err(untraced)?;
        let recorded = start.elapsed();
        let places = Places::follow(&trace.operations, trace.batch.iter().copied(), samples);
        let mixed = match places.of(trace.sums) {
            Samples::Mixed => places.mixed(),
            Samples::Summed => Some("the losses"),
            _ => None,
        };
        if let Some(operation) = mixed.map(str::to_owned) {
            return Err(Error::Mixed { operation });
        }
        let graph = Graph::new(&trace.operations, &places);
        let mut recipes = Vec::new();
        let mut left = BTreeMap::new();
        for (id, gradient) in &trace.gradients {
            let path = &self.parameters[id].path;
            match graph.recipe(*gradient) {
                Ok(recipe) => {
                    tracing::trace!(path, ?recipe, "planned");
                    recipes.push((*id, recipe));
                }
                Err(reason) => {
                    tracing::debug!(path, reason, "left to the loop");
                    left.insert(path.clone(), reason);
                }
            }
        }
        // Of those that are written out, the small ones first.
        let whole = |(id, recipe): &(ParamId, Recipe)| {
            let Parameter { sides, matrix, .. } = self.parameters[id];
            let [rows, columns] = sides;
            let factored = recipe.is_factored(sides, matrix);
            if factored {
                0
            } else {
                samples * rows * columns
            }
        };
        recipes.sort_by_key(whole);
        let mut held = 0;
        for recipe in &recipes {
            held += whole(recipe);
            if whole(recipe) > 0 && held > HELD {
                let reason = "its gradients are too many to hold for a batch";
                left.insert(self.parameters[&recipe.0].path.clone(), reason.into());
            }
        }
        recipes.retain(|(id, _)| !left.contains_key(&self.parameters[id].path));
        let planned = start.elapsed() - recorded;
        let executed = caught(|| {
            let executed = execute(trace, &recipes, &self.device, samples)?;
            Ok((executed.operations, self.summed(executed, samples)))
        });
        let ((done, all), (losses, mut found)) = executed.map_err(untraced)?;
        let executed = start.elapsed() - planned - recorded;
        tracing::debug!(?recorded, ?planned, ?executed, done, all, "traced a batch");
        found.retain(|path, _| !left.contains_key(path));
        Ok(Traced {
            losses,
            found,
            left,
        })
    }

    /// The gradients of all uses of each parameter together.
    fn summed(
        &self,
        executed: Executed,
        samples: usize,
    ) -> (SampleLosses, BTreeMap<String, SampleGradient>) {
        let mut uses: HashMap<ParamId, Vec<SampleGradient>> = HashMap::new();
        for (id, gradient) in executed.uses {
            uses.entry(id).or_default().push(gradient);
        }
        let found = self.parameters.iter().map(|(id, parameter)| {
            let uses = uses.remove(id).unwrap_or_default().into_iter();
            let sum = SampleGradient::sum(uses.map(|gradient| parameter.fit(gradient)));
            let sum = sum.unwrap_or_else(|| SampleGradient::Zero {
                samples,
                elements: parameter.sides.iter().product(),
                device: self.device.clone(),
            });
            (parameter.path.clone(), sum)
        });
        (executed.losses, found.collect())
    }
}

impl Parameter {
    /// A gradient in a form that a parameter of this shape can have.
    fn fit(&self, gradient: SampleGradient) -> SampleGradient {
        match gradient {
            SampleGradient::Rows { ids, delta, .. } => SampleGradient::Rows {
                ids,
                delta,
                table: self.sides[0],
            },
            SampleGradient::Outer {
                ref left,
                ref right,
            } if !self.matrix || [left.dims()[2], right.dims()[2]] != self.sides => {
                SampleGradient::full(gradient.to_full())
            }
            gradient => gradient,
        }
    }
}

/// What a trace gives of a batch.
struct Traced {
    losses: SampleLosses,
    found: BTreeMap<String, SampleGradient>,
    /// Parameters whose gradients a trace does not give, and why.
    left: BTreeMap<String, String>,
}
