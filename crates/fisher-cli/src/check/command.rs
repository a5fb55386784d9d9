//! `fisher check`: look, judge, tell.

use burn::tensor::Device;

use super::args::CheckArgs;
use super::data::data;
use super::finding::{Finding, Findings, Judged};
use super::gradients::gradients;
use super::losses::losses;
use super::special::special_tokens;
use super::weights::weights;
use crate::measure::{Result, doing, write_out};
use crate::models::Checkpoint;
use crate::samples::{InputError, Reader, TaskData, there};
use crate::say::say;
use crate::words::count;

/// Samples of a task whose tokens are looked at.
const LOOKED: usize = 10_000;

/// Check a model and its tasks.
///
/// # Errors
/// What could not be read; and, when all was told, that something is wrong.
pub(crate) fn check(run: &CheckArgs) -> Result {
    run.tasks.iter().try_for_each(there)?;
    let device = run.device.device()?;
    let tracked = device.clone().autodiff();
    doing("reading the model");
    let checkpoint = Checkpoint::load_with(&run.model, &run.loaded.loading(), &tracked)?;
    doing("reading the samples");
    let reader = |skip_bad| Reader {
        skip_bad,
        samples: Some(LOOKED),
        ..Reader::new(&checkpoint.config, &run.model)
    };
    let tasks = run.tasks.iter().map(|file| match reader(true).read(file) {
        // Where no line is a sample, what is wrong with the first says more.
        Err(InputError::Empty { bad: 1.., .. }) => reader(false).read(file),
        read => read,
    });
    let tasks = tasks.collect::<std::result::Result<Vec<_>, _>>()?;
    let found = look(run, &checkpoint, &tasks, &device)?;
    let json = serde_json::to_string_pretty(&found)?;
    if run.json {
        say!("{json}");
    } else {
        say!("{}", found.to_string().trim_end());
    }
    if let Some(path) = &run.out {
        write_out(path, &json)?;
    }
    let (wrong, all) = (found.count(Judged::Wrong), found.findings.len());
    if wrong > 0 {
        return Err(format!("not fit to be measured: {wrong} of {all} tests").into());
    }
    if !run.json {
        let warnings = match found.count(Judged::Warning) {
            0 => "nothing was found".into(),
            n => count(n, "warning"),
        };
        let untested = match found.count(Judged::Untested) {
            0 => String::new(),
            n => format!("; not tested: {n} of {all}"),
        };
        say!("\nFit to be measured, by what was tested: {warnings}{untested}.");
    }
    Ok(())
}

fn look(
    run: &CheckArgs,
    checkpoint: &Checkpoint,
    tasks: &[TaskData],
    device: &Device,
) -> Result<Findings> {
    doing("looking at every weight");
    let mut findings = weights(&checkpoint.model, &checkpoint.naming)?;
    let broken = findings
        .iter()
        .any(|finding| finding.judged == Judged::Wrong);
    findings.extend(data(tasks, LOOKED, &special_tokens(&run.model)));
    let few: Vec<TaskData> = tasks
        .iter()
        .map(|task| spread(task, run.samples as usize))
        .collect();
    let (losses, said) = losses(checkpoint, &few, run.batch_tokens, device)?;
    findings.extend(said);
    if broken {
        let said = "weights that are no numbers have no gradients to compare";
        findings.push(Finding::new("batch: gradients", Judged::Untested, said));
    } else {
        findings.extend(gradients(checkpoint, &few, run.batch_tokens, device)?);
    }
    let outcomes = checkpoint.config.outcomes();
    let verdict = findings.iter().map(|finding| finding.judged).max();
    Ok(Findings {
        model: run.model.display().to_string(),
        verdict: verdict.unwrap_or(Judged::Untested),
        outcomes,
        uniform_loss: outcomes.uniform_loss(),
        tasks: losses,
        findings,
    })
}

/// Some of the samples of a task, evenly spread over the file.
fn spread(task: &TaskData, count: usize) -> TaskData {
    let all = task.samples.len();
    let few = count.min(all);
    let places = (0..few).map(|k| k * all / few);
    let (samples, ids) = places
        .map(|at| (task.samples[at].clone(), task.ids[at].clone()))
        .unzip();
    TaskData {
        name: task.name.clone(),
        samples,
        ids,
        bad: Vec::new(),
        forms: task.forms.clone(),
    }
}
