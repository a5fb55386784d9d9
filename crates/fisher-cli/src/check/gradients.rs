//! Whether gradients and losses are each sample's own.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use fisher_core::gradient::GradientBatch;
use fisher_core::model::{Catalogue, PathMapper, map_paths};
use fisher_core::read;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::{Checkup, Difference, PerSample, check};

use super::finding::{Finding, Judged};
use crate::measure::Result;
use crate::models::{Naming, Sequence, Sequences};
use crate::samples::{TaskData, batches};

/// Compare the gradients and losses of some samples in batches with the same samples alone.
///
/// # Errors
/// What the library refused: see [`fisher_train::capture::check`].
pub(super) fn gradients<M: SampleLoss<Batch = Sequences>>(
    model: &M,
    naming: &Naming,
    tasks: &[TaskData],
    longest: usize,
    batch_tokens: usize,
    device: &Device,
) -> Result<Vec<Finding>> {
    let tracked = device.clone().autodiff();
    let (mut in_batches, mut padded) = (Vec::new(), Vec::new());
    for task in tasks {
        for batch in pairs(task, batch_tokens) {
            in_batches.push(named(
                check(model, &Sequences::new(&batch, &tracked))?,
                naming,
            ));
        }
        if let Some(batch) = with_padding(task, longest) {
            padded.push(named(
                check(model, &Sequences::new(&batch, &tracked))?,
                naming,
            ));
        }
    }
    let mut findings = Vec::new();
    compared(
        &mut findings,
        &in_batches,
        ["batch: losses", "batch: gradients"],
        "in their batch",
    );
    compared(
        &mut findings,
        &padded,
        ["padding: losses", "padding: gradients"],
        "beside a longer one",
    );
    findings.extend(in_batches.first().map(engines));
    findings.extend(in_batches.first().and_then(unreached));
    findings.extend(underflow(&in_batches));
    let shortest = tasks.iter().flat_map(|task| &task.samples);
    if let Some(sample) = shortest.min_by_key(|sample| sample.tokens.len()) {
        findings.extend(rounded_weights(model, sample, &tracked)?);
    }
    Ok(findings)
}

/// With parameters under the names of the checkpoint.
fn named(mut checkup: Checkup, naming: &Naming) -> Checkup {
    let name = |path: &str| {
        naming
            .get(path)
            .map_or(path, |named| &named.name)
            .to_owned()
    };
    if let Some(engines) = &mut checkup.engines {
        engines.what = name(&engines.what);
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

fn compared(
    findings: &mut Vec<Finding>,
    checkups: &[Checkup],
    [losses, gradients]: [&'static str; 2],
    where_from: &str,
) {
    let samples: usize = checkups.iter().map(|checkup| checkup.samples).sum();
    let Some(bound) = checkups
        .iter()
        .map(|checkup| checkup.rounding)
        .reduce(f64::max)
    else {
        let said = "it needs two samples of a task, and room for a longer one";
        findings.push(Finding::new(losses, Judged::Untested, said));
        return;
    };
    let worst = |of: fn(&Checkup) -> Option<&Difference>| {
        let found = checkups.iter().filter_map(of);
        found.max_by(|a, b| a.relative.total_cmp(&b.relative))
    };
    let said = |found: &Difference, what: &str| {
        format!(
            "{what} of {samples} samples {where_from} against each alone, relative; most in `{}` of `{}`",
            found.what, found.sample
        )
    };
    if let Some(found) = worst(|checkup| Some(&checkup.batch)) {
        let said = said(found, "losses");
        findings.push(Finding::bounded(
            losses,
            [found.relative, bound],
            Judged::Wrong,
            said,
        ));
    }
    match worst(|checkup| checkup.engines.as_ref()) {
        Some(found) => {
            let said = said(found, "gradients by one pass");
            findings.push(Finding::bounded(
                gradients,
                [found.relative, bound],
                Judged::Wrong,
                said,
            ));
        }
        None => findings.push(Finding::new(
            gradients,
            Judged::Untested,
            "one pass over a batch gives none: they come from the loop, each alone",
        )),
    }
    let differ: Vec<&str> = checkups
        .iter()
        .flat_map(|c| &c.tokens)
        .map(String::as_str)
        .collect();
    if !differ.is_empty() {
        let said = format!(
            "other active tokens {where_from} than alone: {}",
            differ.join(", ")
        );
        findings.push(Finding::new(losses, Judged::Wrong, said));
    }
    let none: Vec<&str> = checkups
        .iter()
        .flat_map(|c| &c.not_finite)
        .map(String::as_str)
        .collect();
    if !none.is_empty() {
        let said = format!("NaN or infinite: {}", none.join(", "));
        findings.push(Finding::new(gradients, Judged::Wrong, said));
    }
}

fn engines(checkup: &Checkup) -> Finding {
    let all = checkup.parameters;
    if let Some(operation) = &checkup.mixed {
        let said = format!(
            "samples seem to depend on each other: a sum over all of them goes into {operation}"
        );
        return Finding::new("engine", Judged::Wrong, said);
    }
    match checkup.by_loop.iter().next() {
        None => {
            let said = format!("one pass a batch gives the gradients of all {all} parameters");
            Finding::new("engine", Judged::Fine, said)
        }
        Some((path, reason)) => {
            let left = checkup.by_loop.len();
            let said = format!(
                "{left} of {all} parameters go by the loop, which is slow: `{path}`, since {reason}"
            );
            Finding::new("engine", Judged::Warning, said)
        }
    }
}

fn unreached(checkup: &Checkup) -> Option<Finding> {
    let paths = &checkup.unreached;
    (!paths.is_empty()).then(|| {
        let said = format!("no loss depends on {}: their Fisher is 0", paths.join(", "));
        Finding::new("reach", Judged::Warning, said)
    })
}

fn underflow(checkups: &[Checkup]) -> Option<Finding> {
    let most = checkups
        .iter()
        .map(|checkup| checkup.underflow)
        .reduce(f64::max)?;
    let said = "the share of gradient elements other than 0 whose square float32 does not hold (only devices without float64 square in it)";
    Some(Finding::bounded(
        "range",
        [most, 0.01],
        Judged::Warning,
        said,
    ))
}

/// How far the gradient of a sample moves when the weights are rounded to a type.
fn rounded_weights<M: SampleLoss<Batch = Sequences>>(
    model: &M,
    sample: &Sequence,
    device: &Device,
) -> Result<Vec<Finding>> {
    let batch = Sequences::new(std::slice::from_ref(sample), device);
    let gradient = |model: &M| -> Result<GradientBatch> {
        let catalogue = Catalogue::of(model)?;
        let paths = catalogue.parameters().iter().map(|p| p.path());
        Ok(PerSample::new(model, paths)?.gradient(&batch, 0)?.gradients)
    };
    let before = gradient(model)?;
    let mut findings = Vec::new();
    for (test, name, dtype) in [
        ("weights as bfloat16", "bfloat16", DType::BF16),
        ("weights as float16", "float16", DType::F16),
    ] {
        let after = gradient(&map_paths(model.clone(), &mut Cast(dtype)))?;
        let (mut distance, mut size) = (0.0, 0.0);
        for (path, own) in before.iter() {
            let Some(other) = after.get(path) else {
                continue;
            };
            let [own, other] = [read(own.to_full())?, read(other.to_full())?];
            size += own.iter().map(|g| g * g).sum::<f64>();
            let pairs = own.iter().zip(&other);
            distance += pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        }
        let off = if distance > 0.0 {
            (distance / size).sqrt()
        } else {
            0.0
        };
        let id = &sample.id;
        let said = if off == 0.0 {
            format!(
                "the gradient of `{id}` stays as it is: the weights are {name} already, or hold no more"
            )
        } else {
            format!(
                "the gradient of `{id}` moves by this part of its norm when weights are rounded to {name}, arithmetic still in float32"
            )
        };
        findings.push(Finding::bounded(test, [off, 0.25], Judged::Warning, said));
    }
    Ok(findings)
}

/// Rounds weights to a type and back.
struct Cast(DType);

impl PathMapper for Cast {
    fn map<const D: usize>(&mut self, _path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let device = tensor.device();
            let data = tensor.to_data();
            let own = data.dtype();
            let data = data.convert_dtype(self.0).convert_dtype(own);
            Tensor::<D>::from_data(data, (&device, own))
                .detach()
                .set_require_grad(tracked)
        })
    }
}
