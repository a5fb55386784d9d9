//! Losses: the first thing to see that a model is loaded right.

use burn::tensor::Device;

use super::finding::{Finding, Judged};
use super::task_loss::TaskLoss;
use crate::measure::{Result, doing, losses_of};
use crate::models::{Checkpoint, Outcomes};
use crate::samples::TaskData;
use crate::words::count;

/// The losses of the samples of each task, and what they say.
///
/// # Errors
/// When the device does not give them.
pub(super) fn losses(
    checkpoint: &Checkpoint,
    tasks: &[TaskData],
    batch_tokens: usize,
    device: &Device,
) -> Result<(Vec<TaskLoss>, Vec<Finding>)> {
    const TEST: &str = "loss";
    let outcomes = checkpoint.config.outcomes();
    let (mut all, mut findings) = (Vec::new(), Vec::new());
    for task in tasks {
        doing(&format!("losses of {}", task.name));
        let losses = losses_of(checkpoint, task, batch_tokens, device)?;
        let active: Vec<usize> = task.samples.iter().map(|s| s.active()).collect();
        let each = || losses.iter().zip(&active).map(|(loss, t)| loss / *t as f64);
        let loss = losses.iter().sum::<f64>() / active.iter().sum::<usize>() as f64;
        let name = &task.name;
        findings.push(
            match task
                .samples
                .iter()
                .zip(&losses)
                .find(|(_, l)| !l.is_finite())
            {
                Some((sample, loss)) => {
                    let said = format!("{name}: sample `{}` has a loss of {loss}", sample.id);
                    Finding::new(TEST, Judged::Wrong, said)
                }
                None => {
                    let bound = outcomes.uniform_loss();
                    let said = format!("{name}: {}", against(outcomes, loss, losses.len()));
                    Finding::bounded(TEST, [loss, bound], Judged::Warning, said)
                }
            },
        );
        all.push(TaskLoss {
            task: name.clone(),
            samples: losses.len(),
            tokens: task.samples.iter().map(|s| s.tokens.len()).sum(),
            active: active.iter().sum(),
            loss,
            perplexity: loss.exp(),
            least: each().fold(f64::INFINITY, f64::min),
            most: each().fold(f64::NEG_INFINITY, f64::max),
        });
    }
    Ok((all, findings))
}

/// How the loss of so many samples is beside that of equal probabilities.
fn against(outcomes: Outcomes, loss: f64, samples: usize) -> String {
    let [of, each] = outcomes.words();
    let samples = count(samples, "sample");
    if loss <= outcomes.uniform_loss() {
        return format!("{samples} not above ln({of}), on average, in nats a {each}");
    }
    let cause = match outcomes {
        Outcomes::Tokens(_) => "labels shifted",
        Outcomes::Classes(_) => "classes in another order",
    };
    format!(
        "{samples} above ln({of}), on average, in nats a {each}: worse than equal probabilities for all; other \
         weights, another tokenizer, {cause}?"
    )
}
