//! The operator.

use std::collections::BTreeMap;
use std::ops::Range;

use fisher_core::model::{Catalogue, Parameter};
use fisher_core::statistics::TaskStatistics;
use fisher_core::store::GradientStore;
use rayon::prelude::*;

use super::config::{InfluenceConfig, Inverse};
use super::exact::exact;
use super::report::InfluenceReport;
use crate::damping::Damping;
use crate::error::{Error, Result, check_argument};
use crate::pairs::{Rows, Slice, Work, bar, for_each_run};
use crate::report::{GradientSource, finite};

impl InfluenceConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless λ is finite and above 0.
    pub fn init(&self) -> Result<Influence> {
        let (Damping::Absolute(lambda) | Damping::Relative(lambda)) = self.damping;
        let fits = lambda > 0.0 && lambda.is_finite();
        check_argument(fits, "damping", "finite and above 0", lambda)?;
        Ok(Influence {
            config: self.clone(),
        })
    }
}

/// Scores of every training sample for every query: see [the room](super).
#[derive(Debug, Clone)]
pub struct Influence {
    pub(super) config: InfluenceConfig,
}

/// The least mean eigenvalue of a parameter that λ is a multiple of, as a share of that of all parameters: gradients that are nothing
/// but rounding are below.
const LEAST_SHARE: f64 = 1e-6;

/// λ never is 0.
const LEAST: f64 = 1e-100;

impl Influence {
    /// The influence of the samples of one task, `train`, on the losses of those of another, each in a store: the same one or two,
    /// so that the training samples' can be kept on disk. They may be the same task: then the diagonal is what samples do to
    /// themselves.
    ///
    /// With [`Inverse::Exact`] products of all training samples are held, *n*² numbers; else gradients of a few queries, as large as
    /// one parameter each.
    ///
    /// # Errors
    /// [`Error::TooFewSamples`] when there are fewer than two training samples, [`Error::NoSamples`] without queries;
    /// [`Error::OtherFisher`] when stores, and what is inverted, are of other weights or kinds; [`Error::Keys`] and [`Error::Sizes`] when what
    /// is inverted is of other parameters; [`Error::NotCollected`] when statistics have no elements; [`Error::Singular`] when λ is lost
    /// beside the Fisher; [`Error::OutOfRange`]; those of a pattern that matches nothing, and of reading a store.
    pub fn forward(
        &self,
        (train_store, train): (&GradientStore, &str),
        (query_store, queries): (&GradientStore, &str),
        inverse: Inverse,
    ) -> Result<InfluenceReport> {
        if train_store.samples(train).len() < 2 {
            return Err(Error::too_few_samples(train_store, train));
        }
        if query_store.samples(queries).is_empty() {
            return Err(Error::no_samples(queries));
        }
        same_store(train_store, query_store)?;
        let provenance = match &inverse {
            Inverse::Kronecker(kronecker) => Some(kronecker.provenance()),
            Inverse::Diagonal(statistics, _) => Some(statistics.provenance()),
            Inverse::Exact | Inverse::Identity => None,
        };
        if let Some(provenance) = provenance {
            same(
                "model",
                train_store.model().into(),
                provenance.model.clone(),
            )?;
            let kind = provenance.kind.to_string();
            same("kind", train_store.kind().to_string(), kind)?;
        }
        let catalogue = match &self.config.only {
            Some(group) => train_store.catalogue().filter(group)?,
            None => train_store.catalogue().clone(),
        };
        let work = Work::new(train_store.device(), self.config.memory);
        let of_train = Rows::of(train_store, &[train]);
        let (scores, lambdas) = match inverse {
            Inverse::Exact => {
                let of_queries = Rows::of(query_store, &[queries]);
                self.exact(&catalogue, &of_train, &of_queries, &work)?
            }
            other => {
                let of_queries = (query_store, queries);
                self.by_parameter(of_queries, &catalogue, &of_train, &other, &work)?
            }
        };
        for score in &scores {
            finite(*score, "a score of influence")?;
        }
        let ids = |store: &GradientStore, task: &str| {
            let samples = store.samples(task).iter();
            samples.map(|sample| sample.id().to_owned()).collect()
        };
        Ok(InfluenceReport::new(
            GradientSource::of(train_store),
            train_store.model().to_owned(),
            inverse.name(),
            [train, queries].map(str::to_owned),
            [ids(train_store, train), ids(query_store, queries)],
            lambdas,
            scores,
        ))
    }

    fn lambda(&self, trace: f64, eigenvalues: usize) -> f64 {
        match self.config.damping {
            Damping::Absolute(lambda) => lambda,
            Damping::Relative(factor) => (factor * trace / eigenvalues.max(1) as f64).max(LEAST),
        }
    }

    fn exact(
        &self,
        catalogue: &Catalogue,
        train: &Rows,
        queries: &Rows,
        work: &Work,
    ) -> Result<Scores> {
        let model = [Slice::new(
            "the model".into(),
            catalogue.parameters().iter().map(whole),
        )];
        let bar = bar(self.config.progress, "influence", 3);
        let of_train = work.gram(&model, train, |_, _| 1.0)?.swap_remove(0);
        bar.inc(1);
        let across = work.products(&model, queries, train)?.swap_remove(0);
        bar.inc(1);
        let (scores, lambda) = exact(&of_train, &across, &train.tokens, |trace| {
            self.lambda(trace, train.len())
        })?;
        bar.finish_and_clear();
        Ok((scores, BTreeMap::from([("the model".into(), lambda)])))
    }

    /// `(F + λ)⁻¹ g_j` of some queries over one parameter after the other, and the products of these with training samples.
    fn by_parameter(
        &self,
        (store, queries): (&GradientStore, &str),
        catalogue: &Catalogue,
        train: &Rows,
        inverse: &Inverse,
        work: &Work,
    ) -> Result<Scores> {
        let (count, n) = (store.samples(queries).len(), train.len());
        let mut scores = vec![0.0; count * n];
        let mut lambdas = BTreeMap::new();
        let bar = bar(
            self.config.progress,
            "influence",
            catalogue.parameters().len(),
        );
        for parameter in catalogue.parameters() {
            let (path, elements) = (parameter.path(), parameter.elements());
            let diagonal = match inverse {
                Inverse::Diagonal(statistics, task) => {
                    Some(diagonal(statistics.task(task)?, path, elements)?)
                }
                _ => None,
            };
            let lambda = match inverse {
                Inverse::Kronecker(kronecker) => {
                    let trace = kronecker.block(path)?.eigenvalues().iter().sum::<f64>();
                    let least = LEAST_SHARE * kronecker.mean_eigenvalue() * elements as f64;
                    self.lambda(trace.max(least), elements)
                }
                _ => self.lambda(diagonal.iter().flatten().sum(), elements),
            };
            let weigh = |query: usize| -> Result<Vec<f64>> {
                let row = store.row(queries, query, path, 0..elements)?;
                let g: Vec<f64> = row.iter().map(|&g| f64::from(g)).collect();
                Ok(match (inverse, &diagonal) {
                    (Inverse::Kronecker(kronecker), _) => {
                        kronecker.apply(path, &g, |s| 1.0 / (s + lambda))?
                    }
                    (_, Some(fisher)) => {
                        let pairs = g.iter().zip(fisher);
                        pairs.map(|(g, fisher)| g / (fisher + lambda)).collect()
                    }
                    _ => g,
                })
            };
            let slice = [Slice::new(path.into(), [whole(parameter)])];
            let at_once = work.at_once(8 * elements).clamp(1, count);
            for first in (0..count).step_by(at_once) {
                let last = count.min(first + at_once);
                let weighed = (first..last).map(weigh).collect::<Result<Vec<_>>>()?;
                let scores = &mut scores[first * n..last * n];
                for_each_run(&slice, train, work.bytes, |_, row, at, run| {
                    let pairs = scores.par_chunks_mut(n).zip(&weighed);
                    pairs.for_each(|(scores, weighed)| {
                        let terms = weighed[at..at + run.len()].iter().zip(run);
                        scores[row] += terms.map(|(w, &g)| w * f64::from(g)).sum::<f64>();
                    });
                })?;
            }
            if !matches!(inverse, Inverse::Identity) {
                lambdas.insert(path.to_owned(), lambda);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok((scores, lambdas))
    }
}

/// `[queries, training]`, and what was added to F by what it was added to.
type Scores = (Vec<f64>, BTreeMap<String, f64>);

fn whole(parameter: &Parameter) -> (String, Vec<Range<usize>>) {
    let all = std::iter::once(0..parameter.elements());
    (parameter.path().to_owned(), all.collect())
}

fn same(what: &'static str, ours: String, theirs: String) -> Result<()> {
    if ours == theirs {
        return Ok(());
    }
    Err(Error::OtherFisher { what, ours, theirs })
}

/// Whether gradients of two stores are of the same weights.
fn same_store(ours: &GradientStore, theirs: &GradientStore) -> Result<()> {
    same("model", ours.model().into(), theirs.model().into())?;
    same("kind", ours.kind().to_string(), theirs.kind().to_string())?;
    let paths = |store: &GradientStore| {
        let paths = store.catalogue().parameters().iter();
        paths
            .map(|p| p.path().to_owned())
            .collect::<Vec<_>>()
            .join(", ")
    };
    same("parameters", paths(ours), paths(theirs))
}

/// F of every element.
fn diagonal(task: &TaskStatistics, path: &str, elements: usize) -> Result<Vec<f64>> {
    let not_collected = || {
        Error::not_collected(
            "elements of a parameter",
            "collect them (`StatisticsConfig::elementwise_only`), or choose parameters that have them (`InfluenceConfig::only`)",
        )
    };
    let welford = task
        .parameter(path)?
        .elementwise()
        .ok_or_else(not_collected)?;
    let fisher = welford.read_mean()?.ok_or_else(not_collected)?;
    if fisher.len() != elements {
        return Err(Error::sizes(path, fisher.len(), elements));
    }
    Ok(fisher)
}
