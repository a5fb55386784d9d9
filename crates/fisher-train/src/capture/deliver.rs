//! A batch that came by a trace, into statistics and store.

use burn::tensor::Tensor;
use fisher_core::{
    ContributionUnit, Error as CoreError, Gradient, GradientBatch, Prepared, Sample, TokenSum,
};

use super::sink::Destination;
use crate::error::Result;
use crate::gradients::{Captured, Factors};

/// What became of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its id.
    pub id: String,
    /// Its active tokens.
    pub tokens: u64,
    /// `L_i`; `None` when the sample was skipped.
    pub loss: Option<f64>,
    /// The parameters that its loss did not reach; by traces, that no loss of the batch did.
    pub unreached: Vec<String>,
}

/// What the store is to keep of a batch, before the statistics count it. A gradient that is not
/// finite is inside: the loop has to tell whose it is.
pub(super) fn prepare<C: ContributionUnit>(
    captured: &Captured,
    task: &str,
    into: &mut Destination<C>,
) -> Result<Result<Option<Prepared>, CoreError>> {
    let Destination {
        store: Some(store),
        statistics,
        ..
    } = into
    else {
        return Ok(Ok(None));
    };
    let samples = &captured.samples;
    let kept = captured.factors.iter();
    let kept = kept.filter_map(|(path, factors)| {
        let elements = store.catalogue().get(path)?.elements(); // else only the statistics want it
        Some((path, factors, elements))
    });
    let kept: Vec<_> = kept.collect();
    let gradient = |factors: &Option<Factors>, elements| {
        Gradient::<TokenSum>::token_sum(match factors {
            Some(factors) => factors.whole(),
            None => Tensor::zeros([samples.len(), elements], statistics.device()),
        })
    };
    if samples.iter().all(|s| store.contains(task, s.id())) {
        let mut batch = GradientBatch::new(samples.clone());
        for (path, factors, elements) in kept {
            batch.insert(path, gradient(factors, elements));
        }
        store.compare(task, &batch)?;
        return Ok(Ok(None));
    }
    // A parameter at a time: all of them, for all samples, are many times the model.
    let mut prepared = store.begin(task, samples)?;
    for (path, factors, elements) in kept {
        match store.put(&mut prepared, path, &gradient(factors, elements)) {
            Err(error @ CoreError::NonFinite { .. }) => return Ok(Err(error)),
            put => put?,
        }
    }
    Ok(Ok(Some(prepared)))
}

/// A batch into statistics and store.
pub(super) fn stream<C: ContributionUnit>(
    captured: Captured,
    prepared: Option<Prepared>,
    task: &str,
    ghost: bool,
    into: &mut Destination<C>,
) -> Result<Vec<Outcome>> {
    let Captured {
        samples,
        losses,
        factors,
        ..
    } = captured;
    let unreached = factors.iter().filter(|(_, factors)| factors.is_none());
    let unreached: Vec<String> = unreached.map(|(path, _)| path.clone()).collect();
    if let Some(aside) = &mut into.aside {
        aside.begin(task, &samples);
    }
    let mut stream = into.statistics.stream(task, samples.clone())?;
    for (path, factors) in factors {
        if let (Some(aside), Some(factors)) = (&mut into.aside, &factors) {
            aside.take(task, &samples, &path, factors);
        }
        match (stream.wanted(&path), factors) {
            (None, _) => {} // only the store wants it
            (Some(_), None) => stream.zeros(&path)?,
            (Some(_), Some(factors)) => {
                let way = factors.push(&path, ghost, &mut stream)?;
                tracing::trace!(parameter = path, ?way, "accumulated");
            }
        }
    }
    stream.finish()?;
    if let Some(aside) = &mut into.aside {
        aside.end(task, &samples)?;
    }
    into.commit(prepared)?;
    let outcome = |(sample, loss): (Sample, f64)| Outcome {
        id: sample.id().into(),
        tokens: sample.tokens(),
        loss: Some(loss),
        unreached: unreached.clone(),
    };
    Ok(samples.into_iter().zip(losses).map(outcome).collect())
}
