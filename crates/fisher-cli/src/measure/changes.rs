//! What other weights cost the tasks, measured.

use std::path::Path;

use burn::tensor::Device;
use fisher_core::clusters::cluster_numbers;
use serde::Serialize;

use super::collect::losses_of;
use super::mean::mean_with_interval;
use super::outcome::Result;
use crate::models::Checkpoint;
use crate::samples::TaskData;

/// By how much the losses of a task's samples rise where other weights take the place of those of its
/// own model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The task.
    pub task: String,
    /// The weights: `merged`, or `other` for the other task's model's.
    pub weights: &'static str,
    /// Samples of the task.
    pub samples: usize,
    /// The mean over samples of the rise of the loss per active token, in nats.
    pub mean: f64,
    /// Its 95 % interval, paired by sample, over clusters where samples name them; `None` for fewer than
    /// two.
    pub interval: Option<[f64; 2]>,
}

impl Change {
    fn of(data: &TaskData, weights: &'static str, [own, with]: [&[f64]; 2]) -> Result<Self> {
        let rises = own.iter().zip(with).zip(&data.samples);
        let rises = rises.map(|((own, with), sample)| (with - own) / sample.active() as f64);
        let rises: Vec<f64> = rises.collect();
        let documents = data.samples.iter().map(|sample| sample.document.as_deref());
        let (mean, interval) = mean_with_interval(&rises, &cluster_numbers(documents))?;
        Ok(Self {
            task: data.name.clone(),
            weights,
            samples: rises.len(),
            mean,
            interval,
        })
    }
}

/// Evaluate every task with its own model, the other's and the merged one; the latter two are in
/// folders, and loaded one after the other.
///
/// # Errors
/// When a model cannot be read, or a loss is not had.
pub fn changes(
    first: &Checkpoint,
    [second, merged]: [&Path; 2],
    data: &[TaskData; 2],
    tokens: usize,
    device: &Device,
) -> Result<Vec<Change>> {
    let losses = |model: &Checkpoint| -> Result<[Vec<f64>; 2]> {
        let of = |task: &TaskData| losses_of(model, task, tokens, device);
        Ok([of(&data[0])?, of(&data[1])?])
    };
    let load = |folder| first.like(folder, device);
    let first = losses(first)?;
    let second = losses(&load(second)?)?;
    let merged = losses(&load(merged)?)?;
    let mut changes = Vec::new();
    for (task, own, other) in [(0, &first, &second), (1, &second, &first)] {
        for (weights, of) in [("merged", &merged), ("other", other)] {
            let pair = [&own[task][..], &of[task]];
            changes.push(Change::of(&data[task], weights, pair)?);
        }
    }
    Ok(changes)
}
