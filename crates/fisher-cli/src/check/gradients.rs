//! Whether gradients and losses are each sample's own.

use burn::tensor::Device;
use fisher_train::capture::{Checkup, Difference, check};

use super::finding::{Finding, Judged};
use super::rounding::rounding;
use super::weights::few;
use crate::measure::{Progress, Result, doing};
use crate::models::{Checkpoint, Naming, Sequence, Sequences};
use crate::samples::{TaskData, batches};

/// Compare the gradients and losses of some samples in batches with the same samples alone.
///
/// # Errors
/// What the library refused: see [`fisher_train::capture::check`].
pub(super) fn gradients(
    checkpoint: &Checkpoint,
    tasks: &[TaskData],
    batch_tokens: usize,
    device: &Device,
) -> Result<Vec<Finding>> {
    let (model, longest) = (&checkpoint.model, checkpoint.config.longest.tokens);
    let tracked = device.clone().autodiff();
    let (mut in_batches, mut padded) = (Vec::new(), Vec::new());
    let batches = tasks.iter().map(|task| {
        let padded = with_padding(task, longest);
        (&*task.name, pairs(task, batch_tokens), padded)
    });
    let batches: Vec<_> = batches.collect();
    let tokens = |batch: &[Sequence]| batch.iter().map(|s| s.tokens.len() as u64).sum::<u64>();
    let all = batches
        .iter()
        .flat_map(|(_, pairs, padded)| pairs.iter().chain(padded));
    let all = all.map(|batch| tokens(batch)).sum();
    doing("gradients in batches and alone");
    let mut progress = Progress::new("gradients", all);
    let mut looked = |task: &str, batch: &[Sequence]| -> Result<Checkup> {
        let found = check(model, &Sequences::new(batch, &tracked))?;
        progress.advance(tokens(batch));
        Ok(named(found, task, &checkpoint.naming))
    };
    for (task, pairs, with_padding) in &batches {
        for batch in pairs {
            in_batches.push(looked(task, batch)?);
        }
        if let Some(batch) = with_padding {
            padded.push(looked(task, batch)?);
        }
    }
    progress.finish();
    let mut findings = Vec::new();
    compared(
        &mut findings,
        &in_batches,
        ["batch: losses", "batch: gradients"],
        "in a batch of their task",
        "it needs two samples of a task that differ",
    );
    compared(
        &mut findings,
        &padded,
        ["padding: losses", "padding: gradients"],
        "in a batch with padding",
        "it needs a sample that is shorter than the model takes",
    );
    let all: Vec<Checkup> = in_batches.into_iter().chain(padded).collect();
    findings.extend(engines(&all));
    findings.extend(unreached(&all));
    findings.extend(underflow(&all));
    let samples = tasks.iter().flat_map(|task| {
        let samples = task.samples.iter();
        samples.map(|sample| (&*task.name, sample))
    });
    if let Some(shortest) = samples.min_by_key(|(_, sample)| sample.tokens.len()) {
        doing("gradients of rounded weights");
        findings.extend(rounding(model, shortest, &tracked)?);
    }
    Ok(findings)
}

/// With parameters under the names of the checkpoint, and samples with their task's.
fn named(mut checkup: Checkup, task: &str, naming: &Naming) -> Checkup {
    let name = |path: &str| {
        naming
            .get(path)
            .map_or(path, |named| &named.name)
            .to_owned()
    };
    let of_task = |sample: &str| format!("{task}: {sample}");
    if let Some(engines) = &mut checkup.engines {
        engines.what = name(&engines.what);
    }
    let differences = std::iter::once(&mut checkup.batch).chain(&mut checkup.engines);
    for difference in differences.filter(|of| !of.sample.is_empty()) {
        difference.sample = of_task(&difference.sample);
    }
    for samples in [&mut checkup.tokens, &mut checkup.not_finite] {
        samples
            .iter_mut()
            .for_each(|sample| *sample = of_task(sample));
    }
    checkup.unreached = checkup.unreached.iter().map(|path| name(path)).collect();
    let by_loop = std::mem::take(&mut checkup.by_loop).into_iter();
    checkup.by_loop = by_loop.map(|(path, why)| (name(&path), why)).collect();
    checkup
}

/// Batches of at least two samples.
fn pairs(task: &TaskData, batch_tokens: usize) -> Vec<Vec<Sequence>> {
    let mut all = batches(&task.samples, batch_tokens);
    let shortest = all.first().and_then(|batch| batch.first()).cloned();
    for batch in &mut all {
        if let ([one], Some(shortest)) = (&**batch, &shortest)
            && one != shortest
        {
            batch.push(shortest.clone());
        }
    }
    all.retain(|batch| batch.len() > 1);
    all
}

/// The shortest sample of a task, and beside it itself with the longest appended, as far as the model goes.
fn with_padding(task: &TaskData, longest: usize) -> Option<Vec<Sequence>> {
    let shortest = task.samples.iter().min_by_key(|s| s.tokens.len())?;
    let last = task.samples.iter().max_by_key(|s| s.tokens.len())?;
    let join = |of: fn(&Sequence) -> &Vec<i64>| -> Vec<i64> {
        let all = of(shortest).iter().chain(of(last));
        all.copied().take(longest).collect()
    };
    let beside = Sequence {
        id: format!("{} and {}", shortest.id, last.id),
        document: None,
        tokens: join(|s| &s.tokens),
        labels: join(|s| &s.labels),
        class: last.class,
    };
    let longer = beside.tokens.len() > shortest.tokens.len() && beside.active() > 0;
    longer.then(|| vec![shortest.clone(), beside])
}

/// The worst differences of samples beside others and alone, and what has no number.
fn compared(
    findings: &mut Vec<Finding>,
    checkups: &[Checkup],
    [losses, gradients]: [&'static str; 2],
    where_from: &str,
    needed: &str,
) {
    let samples: usize = checkups.iter().map(|checkup| checkup.samples).sum();
    let Some(bound) = checkups
        .iter()
        .map(|checkup| checkup.rounding)
        .reduce(f64::max)
    else {
        findings.push(Finding::new(losses, Judged::Untested, needed));
        return;
    };
    let worst = |of: fn(&Checkup) -> Option<&Difference>| {
        let found = checkups.iter().filter_map(of);
        found.max_by(|a, b| a.relative.total_cmp(&b.relative))
    };
    let bounded = |test, found: &Difference, what: &str, samples: usize| {
        let most = match &*found.sample {
            "" => String::new(),
            sample => format!("; most in `{}` of sample `{sample}`", found.what),
        };
        let said =
            format!("{what} of {samples} samples {where_from} against each alone, relative{most}");
        Finding::bounded(test, [found.relative, bound], Judged::Wrong, said)
    };
    if let Some(found) = worst(|checkup| Some(&checkup.batch)) {
        findings.push(bounded(losses, found, "losses", samples));
    }
    let by_one_pass = checkups.iter().filter(|c| c.engines.is_some());
    let by_one_pass = by_one_pass.map(|checkup| checkup.samples).sum();
    findings.push(match worst(|checkup| checkup.engines.as_ref()) {
        Some(found) => bounded(gradients, found, "gradients by one pass", by_one_pass),
        None => {
            let said = "one pass over a batch gives none: they come from the loop, each alone";
            Finding::new(gradients, Judged::Untested, said)
        }
    });
    let wrong = |test, what: &str, of: fn(&Checkup) -> &Vec<String>| {
        let all: Vec<&str> = checkups.iter().flat_map(of).map(String::as_str).collect();
        let said = format!("{what}: {}", all.join(", "));
        (!all.is_empty()).then(|| Finding::new(test, Judged::Wrong, said))
    };
    let other = format!("other active tokens {where_from} than alone");
    findings.extend(wrong(losses, &other, |checkup| &checkup.tokens));
    findings.extend(wrong(gradients, "NaN or infinite", |c| &c.not_finite));
}

/// By which way gradients come, in the batch that is worst for it.
fn engines(checkups: &[Checkup]) -> Option<Finding> {
    const TEST: &str = "engine";
    if let Some(operation) = checkups.iter().find_map(|c| c.mixed.as_ref()) {
        let said = format!(
            "samples seem to depend on each other: a sum over all of them goes into {operation}"
        );
        return Some(Finding::new(TEST, Judged::Wrong, said));
    }
    let slowest = checkups.iter().max_by_key(|c| c.by_loop.len())?;
    let all = slowest.parameters;
    let batches = match checkups.len() {
        1 => "the batch".into(),
        n => format!("each of {n} batches"),
    };
    Some(match slowest.by_loop.iter().next() {
        None => {
            let said =
                format!("one pass over {batches} gave the gradients of all {all} parameters");
            Finding::new(TEST, Judged::Fine, said)
        }
        Some((path, reason)) => {
            let left = slowest.by_loop.len();
            let said = format!(
                "{left} of {all} parameters go by the loop, which is slow: `{path}`, since {reason}"
            );
            Finding::new(TEST, Judged::Warning, said)
        }
    })
}

/// Parameters that no loss of any batch depends on.
fn unreached(checkups: &[Checkup]) -> Option<Finding> {
    let (first, others) = checkups.split_first()?;
    let nowhere = |path: &&String| others.iter().all(|other| other.unreached.contains(path));
    let paths: Vec<String> = first.unreached.iter().filter(nowhere).cloned().collect();
    let samples: usize = checkups.iter().map(|checkup| checkup.samples).sum();
    (!paths.is_empty()).then(|| {
        let said = format!(
            "none of {samples} losses depends on {}: F is 0 there, as far as samples are like these",
            few(&paths)
        );
        Finding::new("reach", Judged::Warning, said)
    })
}

fn underflow(checkups: &[Checkup]) -> Option<Finding> {
    let most = checkups
        .iter()
        .map(|checkup| checkup.underflow)
        .reduce(f64::max)?;
    let said = "of the gradient elements other than 0 the share whose square float32 does not hold, most in a batch (only devices without float64 square in it)";
    Some(Finding::bounded(
        "range",
        [most, 0.01],
        Judged::Warning,
        said,
    ))
}
