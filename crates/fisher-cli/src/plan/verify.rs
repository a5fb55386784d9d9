//! What rounding does, measured.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::clusters::cluster_numbers;
use fisher_core::model::{Catalogue, Parameter, PathMapper, map_paths};
use serde::Serialize;

use super::round::Rounding;
use crate::measure::{Result, doing, losses_of, mean_with_interval};
use crate::models::{Checkpoint, Naming};
use crate::samples::TaskData;

/// By how much the loss of a task's samples rises.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rise {
    /// Of which plan: its name, or `a - b` for what `a` costs more than `b`, sample by sample.
    pub of: String,
    /// Nats a token, the mean over samples.
    pub mean: f64,
    /// Its 95 % interval, paired by sample, over clusters where samples name them; `None` for fewer than two.
    pub interval: Option<[f64; 2]>,
}

/// What plans were measured to cost a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The task.
    pub task: String,
    /// Its samples.
    pub samples: usize,
    /// Nats a token before anything is rounded.
    pub loss: f64,
    /// The rise by each plan, and what the first plan costs more than each other.
    pub rises: Vec<Rise>,
}

/// Round the matrices of a model by each of some plans (a name, and bits by tensor), and measure the loss of a task's samples.
///
/// # Errors
/// When the device does not give losses.
pub fn verify(
    checkpoint: &Checkpoint,
    plans: &[(String, BTreeMap<String, u32>)],
    group: usize,
    task: &TaskData,
    tokens: usize,
    device: &Device,
) -> Result<Comparison> {
    let losses = |checkpoint: &Checkpoint| -> Result<Vec<f64>> {
        let losses = losses_of(checkpoint, task, tokens, device)?.into_iter();
        let samples = task.samples.iter();
        Ok(losses
            .zip(samples)
            .map(|(loss, s)| loss / s.active() as f64)
            .collect())
    };
    let name = &task.name;
    doing(&format!("{name}: losses of the model as it is"));
    let before = losses(checkpoint)?;
    let clusters = cluster_numbers(task.samples.iter().map(|s| s.document.as_deref()));
    let rise = |of: String, from: &[f64], to: &[f64]| -> Result<Rise> {
        let rises: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        let (mean, interval) = mean_with_interval(&rises, &clusters)?;
        Ok(Rise { of, mean, interval })
    };
    let mut rises = Vec::new();
    let mut after = Vec::new();
    for (plan, bits) in plans {
        doing(&format!("{name}: losses of the model rounded, {plan}"));
        let with = losses(&rounded(checkpoint, bits, group)?)?;
        rises.push(rise(plan.clone(), &before, &with)?);
        after.push(with);
    }
    if let (Some(((first, _), others)), Some((with_first, with))) =
        (plans.split_first(), after.split_first())
    {
        for ((other, _), with) in others.iter().zip(with) {
            rises.push(rise(format!("{first} - {other}"), with, with_first)?);
        }
    }
    Ok(Comparison {
        task: task.name.clone(),
        samples: before.len(),
        loss: before.iter().sum::<f64>() / before.len() as f64,
        rises,
    })
}

/// The model with its matrices rounded; what has no bits stays as it is.
fn rounded(
    checkpoint: &Checkpoint,
    bits: &BTreeMap<String, u32>,
    group: usize,
) -> Result<Checkpoint> {
    let mut rounded = checkpoint.clone();
    let naming = &checkpoint.naming;
    let own = Catalogue::of(&checkpoint.model)?;
    let mut round = Round {
        own,
        naming,
        bits,
        group,
    };
    rounded.model = map_paths(checkpoint.model.clone(), &mut round);
    Ok(rounded)
}

/// Rounds parameters where they lie.
struct Round<'a> {
    own: Catalogue,
    naming: &'a Naming,
    bits: &'a BTreeMap<String, u32>,
    group: usize,
}

impl PathMapper for Round<'_> {
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let bits = self
            .naming
            .get(path)
            .and_then(|named| self.bits.get(&named.name));
        let axis = self.own.get(path).and_then(Parameter::input_axis);
        let (Some(&bits), Some(axis)) = (bits, axis) else {
            return param;
        };
        let rounding = Rounding {
            bits,
            group: self.group,
        };
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let shape = tensor.dims();
            let values: Vec<f64> = tensor.to_data().iter::<f64>().collect();
            let values = rounding.of(&values, [shape[0], shape[1]], axis);
            let data = TensorData::new(values, shape);
            let values = Tensor::<D>::from_data(data, (&tensor.device(), tensor.dtype()));
            values.detach().set_require_grad(tracked)
        })
    }
}
