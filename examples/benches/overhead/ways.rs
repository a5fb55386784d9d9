//! Ways to collect, and what they are held against.

use burn::module::ParamGroup;
use clap::ValueEnum;
use fisher_core::factors::FactorsConfig;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, hash_weights};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::curvature::kronecker::Kronecker;
use fisher_train::capture::{Capture, CaptureConfig, Engine};
use fisher_train::sketch::SketchConfig;

use crate::Outcome;
use crate::subject::Subject;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Way {
    /// Forward and backward of the batch
    Plain,
    /// One backward pass per sample
    Loop,
    /// What gives all gradients, by a trace, and nothing made of it
    Factors,
    /// Mean of all elements by a trace
    Mean,
    /// Mean and variance of all elements by a trace
    Elementwise,
    /// Groups by a trace, from gradients
    Grouped,
    /// Groups by a trace, by whatever is cheaper
    Ghost,
    /// Second moments of inputs and output gradients, for KFAC
    Kronecker,
    /// Eigenvectors of the factors of a batch, on the host, without a pass
    Eigenvectors,
    /// Corrected eigenvalues in these, for EKFAC
    Corrections,
    /// Attention gradients into the store
    Store,
    /// Random signs
    Sketch,
}

impl Way {
    /// Those of `asked`, or all where none are, that a model has: `Plain` always, and first.
    pub(crate) fn of<M: Subject>(asked: &[Self]) -> Vec<Self> {
        let ways = Self::value_variants().iter().copied();
        let ways = ways.filter(|way| {
            let is_asked = asked.is_empty() || asked.contains(way);
            (is_asked || *way == Self::Plain) && (*way != Self::Store || M::HEADS.is_some())
        });
        ways.collect()
    }
}

pub(crate) type Runner<'a> = Box<dyn FnMut() -> Outcome + 'a>;

/// One way, ready to take the batch again and again.
pub(crate) fn runner<'a, M: Subject>(
    way: Way,
    model: &'a M,
    batch: &'a M::Batch,
) -> Outcome<Runner<'a>> {
    Ok(match way {
        Way::Plain => {
            // With dropout, where the model has it.
            Box::new(move || {
                let loss = model.sample_losses(batch).sums().clone().mean();
                let _gradients = loss.backward();
                Ok(())
            })
        }
        Way::Kronecker | Way::Eigenvectors | Way::Corrections => {
            let empty = FactorsConfig::new().init(model)?;
            let paths: Vec<String> = empty
                .parameters()
                .map(|(path, _)| path.to_owned())
                .collect();
            let mut capture = CaptureConfig::new()
                .with_engine(Engine::Trace)
                .init(model, paths.iter().map(String::as_str))?;
            if way == Way::Kronecker {
                return Ok(Box::new(move || {
                    capture.accumulate(batch, "task", &mut empty.clone())?;
                    Ok(())
                }));
            }
            let mut factors = empty;
            capture.accumulate(batch, "task", &mut factors)?;
            if way == Way::Eigenvectors {
                return Ok(Box::new(move || {
                    let _kfac = Kronecker::of(&factors, "task")?;
                    Ok(())
                }));
            }
            let kfac = Kronecker::of(&factors, "task")?;
            let mut corrections = kfac.corrections(&model.devices()[0])?;
            let mut batch = batch.clone();
            Box::new(move || {
                M::ids(&mut batch).iter_mut().for_each(|id| id.push('+'));
                capture.accumulate(&batch, "task", &mut corrections)?;
                Ok(())
            })
        }
        Way::Sketch => {
            let sketch = SketchConfig::new().init()?;
            Box::new(move || {
                let one = batch.clone();
                sketch.collect::<M, fisher_core::gradient::PerToken>(model, [one])?;
                Ok(())
            })
        }
        Way::Store => {
            let attention = ParamGroup::from_predicate("mha");
            let catalogue = Catalogue::of(model)?.filter(&attention)?;
            let config = StatisticsConfig::new()
                .with_elementwise(false)
                .with_attention(M::HEADS.map(AttentionConfig::new));
            let layout = config.heads(&catalogue)?;
            let weights = hash_weights(model)?;
            let device = model.devices()[0].clone();
            let empty: Statistics = config.init_for(&catalogue, &layout, weights, &device)?;
            let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
            let mut capture = CaptureConfig::new()
                .with_engine(Engine::Trace)
                .init(model, paths)?;
            Box::new(move || {
                let mut statistics = empty.clone();
                let store = GradientStoreConfig::new(usize::MAX).with_only(Some(attention.clone()));
                let mut store = store.init(model)?;
                capture.accumulate(batch, "task", (&mut statistics, &mut store))?;
                Ok(())
            })
        }
        Way::Factors => {
            let catalogue = Catalogue::of(model)?;
            let paths: Vec<&str> = catalogue.parameters().iter().map(|p| p.path()).collect();
            let smallest = catalogue.parameters().iter().min_by_key(|p| p.elements());
            let one = ParamGroup::from_path(smallest.ok_or("no parameters")?.path());
            let device = model.devices()[0].clone();
            let config = StatisticsConfig::new();
            let empty: Statistics = config.init_for(
                &catalogue.filter(&one)?,
                &HeadLayout::none(),
                hash_weights(model)?,
                &device,
            )?;
            let mut capture = CaptureConfig::new()
                .with_engine(Engine::Trace)
                .init(model, paths)?;
            Box::new(move || {
                let mut statistics = empty.clone();
                capture.accumulate(batch, "task", &mut statistics)?;
                Ok(())
            })
        }
        _ => {
            let config = StatisticsConfig::new()
                .with_elementwise(!matches!(way, Way::Grouped | Way::Ghost))
                .with_variance(way != Way::Mean)
                .with_grouped(matches!(way, Way::Grouped | Way::Ghost))
                .with_ghost(way != Way::Grouped)
                .with_attention(M::HEADS.map(AttentionConfig::new));
            let mut statistics = config.init(model)?;
            let paths: Vec<String> = statistics.paths().map(str::to_owned).collect();
            let engine = match way {
                Way::Loop => Engine::Loop,
                _ => Engine::Trace,
            };
            let mut capture: Capture<M> = CaptureConfig::new()
                .with_engine(engine)
                .init(model, paths.iter().map(String::as_str))?;
            let mut batch = batch.clone();
            // On and on, as in a collection: a sample counts once in statistics.
            Box::new(move || {
                M::ids(&mut batch).iter_mut().for_each(|id| id.push('+'));
                capture.accumulate(&batch, "task", &mut statistics)?;
                Ok(())
            })
        }
    })
}
