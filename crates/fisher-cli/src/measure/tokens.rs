//! Samples token by token: what each label loses, and where its gradient lies.

use burn::tensor::Device;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_train::capture::CaptureConfig;
use fisher_train::labels::IGNORE;
use serde::Serialize;
use serde_json::Value;

use super::args::MeasureArgs;
use super::outcome::Result;
use super::per_token::PerToken;
use super::progress::Progress;
use crate::models::{Checkpoint, Sequence, Sequences};
use crate::samples::{TaskData, Text, batches};

/// The file, in a run's folder.
pub const TOKENS: &str = "tokens.json";
/// Layers and heads that are named of each token.
const NAMED: usize = 3;

/// A sample, token by token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleTokens {
    /// The task.
    pub task: String,
    /// The sample's id, as it was written.
    pub id: Value,
    /// Its tokens, in order.
    pub tokens: Vec<TokenRow>,
}

/// A token of a sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenRow {
    /// The token.
    pub token: i64,
    /// What it stands for, where there is a tokenizer.
    pub text: Option<String>,
    /// What its prediction loses; `None` where it is not to be predicted.
    #[serde(flatten)]
    pub label: Option<LabelRow>,
}

/// What a label loses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LabelRow {
    /// The loss of this label alone, in nats.
    pub loss: f64,
    /// The norm of its gradient, over the parameters that are measured.
    pub gradient_norm: f64,
    /// The layers with the largest shares of the squared norm.
    pub layers: Vec<Share>,
    /// The attention heads likewise; a key/value head counts to the query heads that share it in equal parts.
    pub heads: Vec<Share>,
}

/// A share of a squared norm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Share {
    /// Of what.
    pub name: String,
    /// From 0 to 1.
    pub share: f64,
}

/// A sample for each label that counts: the same tokens, and no other label. Their losses and gradients add up to those of the
/// sample.
pub fn tokens_of(sample: &Sequence) -> Vec<Sequence> {
    let counts = |at: &usize| sample.labels[*at] != IGNORE;
    let places = (1..sample.labels.len()).filter(counts);
    let only = |at: usize| {
        let mut labels = vec![IGNORE; sample.labels.len()];
        labels[at] = sample.labels[at];
        Sequence {
            id: at.to_string(),
            document: None,
            tokens: sample.tokens.clone(),
            labels,
            class: None,
        }
    };
    places.map(only).collect()
}

/// Look at the samples asked for token by token, by the labels of the data.
///
/// # Errors
/// What the library refused.
pub fn per_token(
    checkpoint: &Checkpoint,
    data: &[TaskData],
    run: &MeasureArgs,
    device: &Device,
) -> Result<Vec<SampleTokens>> {
    let text = Text::read(&run.model).ok();
    let heads = &checkpoint.heads;
    let params = run.params.of(&checkpoint.catalogue, heads)?;
    let params = params.ok_or("--params none leaves nothing to measure")?;
    let catalogue = checkpoint.catalogue.filter(&params)?;
    let config = StatisticsConfig::new()
        .with_elementwise(false)
        .with_grouped(false);
    let fresh = || config.init_for(&catalogue, heads, String::new(), device);
    let paths: Vec<String> = fresh()?.paths().map(str::to_owned).collect();
    let names = checkpoint.naming.names();
    let paths = paths.iter().map(String::as_str);
    let mut capture = CaptureConfig::new().init_named(&checkpoint.model, paths, &names)?;
    let tracked = device.clone().autodiff();
    let chosen = chosen(data, &run.per_token);
    let passes = chosen.iter().map(|(task, at)| passes(&task.samples[*at]));
    let mut progress = Progress::new("token by token", passes.sum::<usize>() as u64);
    let mut found = Vec::new();
    for (task, at) in chosen {
        let sample = &task.samples[at];
        let mut labels = Vec::new();
        for batch in batches(&tokens_of(sample), run.tokens(checkpoint)) {
            let mut statistics: Statistics = fresh()?;
            let passed = batch.iter().map(|label| label.tokens.len());
            let passed = passed.sum::<usize>() as u64;
            let batch = Sequences::new(&batch, &tracked);
            let outcomes = capture.accumulate(&batch, TASK, &mut statistics)?;
            let losses = outcomes.iter().filter_map(|outcome| outcome.loss);
            labels.extend(
                losses
                    .zip(rows(&statistics)?)
                    .map(|(loss, row)| LabelRow { loss, ..row }),
            );
            progress.advance(passed);
        }
        let pieces = text.as_ref().map(|text| text.pieces(&sample.tokens));
        let mut labels = labels.into_iter();
        let tokens = sample
            .tokens
            .iter()
            .enumerate()
            .map(|(at, &token)| TokenRow {
                token,
                text: pieces.as_ref().map(|pieces| pieces[at].clone()),
                label: (at > 0 && sample.labels[at] != IGNORE)
                    .then(|| labels.next())
                    .flatten(),
            });
        found.push(SampleTokens {
            task: task.name.clone(),
            id: task.ids[at].clone(),
            tokens: tokens.collect(),
        });
    }
    progress.finish();
    Ok(found)
}

/// Tokens of all passes over a sample, one for each label that counts.
pub(super) fn passes(sample: &Sequence) -> usize {
    sample.active() * sample.tokens.len()
}

/// What a sample's labels are counted as.
const TASK: &str = "tokens";

/// Each sample that was asked for, once.
pub(super) fn chosen<'a>(data: &'a [TaskData], which: &[PerToken]) -> Vec<(&'a TaskData, usize)> {
    let wanted = |at: usize, sample: &Sequence| {
        which.iter().any(|which| match which {
            PerToken::First(count) => at < *count,
            PerToken::Id(id) => sample.id == *id,
        })
    };
    let all = data.iter().flat_map(|task| {
        let samples = task.samples.iter().enumerate();
        samples
            .filter(|(at, sample)| wanted(*at, sample))
            .map(move |(at, _)| (task, at))
    });
    all.collect()
}

/// Norm, layers and heads of each label of a batch; with no loss yet.
fn rows(statistics: &Statistics) -> Result<Vec<LabelRow>> {
    let task = statistics.task(TASK)?;
    let totals = statistics.totals();
    let layers = task.layer_units().ok_or("labels of a sample are units")?;
    let heads = task
        .head_units()
        .map(|units| units.sums)
        .unwrap_or_default();
    let layer_names: Vec<String> = totals.layers().to_vec();
    let head_names = totals.heads().iter();
    let head_names: Vec<String> = head_names
        .map(|key| format!("{} head {}", key.attention, key.head))
        .collect();
    let row = |(at, layers): (usize, &Vec<f64>)| {
        let square: f64 = layers.iter().sum();
        LabelRow {
            loss: 0.0,
            gradient_norm: square.sqrt(),
            layers: largest(&layer_names, layers, square),
            heads: largest(
                &head_names,
                heads.get(at).map_or(&[], Vec::as_slice),
                square,
            ),
        }
    };
    Ok(layers.sums.iter().enumerate().map(row).collect())
}

fn largest(names: &[String], values: &[f64], whole: f64) -> Vec<Share> {
    let mut shares: Vec<Share> = names
        .iter()
        .zip(values)
        .filter(|(_, value)| **value > 0.0)
        .map(|(name, value)| Share {
            name: name.clone(),
            share: value / whole,
        })
        .collect();
    shares.sort_by(|a, b| b.share.total_cmp(&a.share));
    shares.truncate(NAMED);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_that_counts_is_a_sample() {
        let sample = Sequence {
            id: "a".into(),
            document: None,
            tokens: vec![5, 6, 7, 8],
            labels: vec![5, IGNORE, 7, 8],
            class: None,
        };
        let found = tokens_of(&sample);
        let labels: Vec<_> = found.iter().map(|s| s.labels.clone()).collect();
        assert_eq!(
            labels,
            [[IGNORE, IGNORE, 7, IGNORE], [IGNORE, IGNORE, IGNORE, 8]]
        );
        assert!(
            found
                .iter()
                .all(|s| s.active() == 1 && s.tokens == sample.tokens)
        );
    }
}
