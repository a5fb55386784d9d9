//! A plan from what a run offers.

use std::collections::BTreeMap;

use burn::tensor::Device;

use super::args::{Distinctions, PlanArgs};
use super::bits::bits;
use super::choose::{Choice, choose};
use super::rank::rank;
use super::resolve::{Resolution, resolve};
use super::scored::Scored;
use super::source::Source;
use super::ties::tie_groups;
use super::uniform::{uniform, uniform_name};
use super::verify::{Comparison, verify};
use super::words::{Costs, Made, Row};
use crate::measure::{Result, doing, mean_with_interval};
use crate::models::Checkpoint;
use crate::samples::Reader;

/// Score matrices, tell them apart, choose their levels, and measure what that does.
///
/// # Errors
/// Whatever kept it from being made, in words.
pub(super) fn make(
    run: &PlanArgs,
    source: &Source,
    checkpoint: Option<&Checkpoint>,
    device: &Device,
) -> Result<Made> {
    let (kind, [asked, reference], scored) = scored(run, source, checkpoint)?;
    doing("telling scores apart by the samples");
    let resolution = resolve(&scored, run.seed)?;
    let singles: Vec<Vec<usize>> = (0..scored.items.len()).map(|at| vec![at]).collect();
    let groups = match run.distinctions {
        Distinctions::Resolved => tie_groups(&scored.scores, &resolution.ranks),
        Distinctions::All => singles.clone(),
    };
    let sizes: u64 = scored.items.iter().map(|item| item.size).sum();
    let budget = (asked * sizes as f64 + 1e-6).floor() as u64;
    let lowest = || {
        let lowest = scored.items.iter();
        let lowest = lowest.map(|item| item.levels[0] as f64 * item.size as f64);
        let lowest = lowest.sum::<f64>() / sizes as f64;
        format!("a budget of {asked} is below the lowest levels, {lowest} on average")
    };
    let chosen = choose(&scored.items, &groups, budget).ok_or_else(lowest)?;
    let alone = choose(&scored.items, &singles, budget).ok_or_else(lowest)?;
    let uniform = uniform(&scored.items, budget).ok_or_else(lowest)?;
    let mut plans = vec![
        ("plan".into(), levels(&scored, &chosen.levels)),
        (uniform_name(asked), levels(&scored, &uniform)),
    ];
    if alone.levels != chosen.levels {
        plans.push(("every difference".into(), levels(&scored, &alone.levels)));
    }
    let measured = match checkpoint {
        Some(checkpoint) => measured(run, checkpoint, &plans, device)?,
        None => Vec::new(),
    };
    let whole = match kind {
        "rank" => whole(source)?,
        _ => 0.0,
    };
    Ok(Made {
        kind,
        budget: [asked, chosen.spent as f64 / sizes as f64],
        reference,
        distinctions: run.distinctions,
        group_size: (kind == "bits").then_some(run.group_size as usize),
        tasks: source.tasks.clone(),
        by: resolution.by,
        rows: rows(&scored, &resolution, &groups, &chosen, &alone),
        costs: Costs {
            plan: chosen.cost,
            uniform: scored.cost(&uniform),
            all: alone.cost,
            bound: alone.bound,
            whole,
            less: less(&scored, &chosen.levels, &uniform)?,
        },
        measured,
    })
}

/// What is planned, the budget for each weight or matrix, the level that scores are of, and the scores.
fn scored(
    run: &PlanArgs,
    source: &Source,
    checkpoint: Option<&Checkpoint>,
) -> Result<(&'static str, [f64; 2], Scored)> {
    if let Some(reference) = run.rank {
        return Ok(("rank", [reference.into(); 2], rank(source, reference)?));
    }
    let asked = run.bits.ok_or("give --bits or --rank")?;
    let checkpoint = checkpoint.ok_or("--bits rounds weights: give their --model")?;
    let mut widths = run.widths.clone();
    widths.sort_unstable();
    widths.dedup();
    let mut below = widths.iter().rev();
    let below = below.find(|width| f64::from(**width) <= asked);
    let reference = *below.or(widths.first()).ok_or("give some --widths")?;
    let weights = checkpoint.weights()?;
    let group = run.group_size as usize;
    let scored = bits(source, &weights, &widths, group, reference)?;
    Ok(("bits", [asked, reference.into()], scored))
}

fn levels(scored: &Scored, at: &[usize]) -> BTreeMap<String, u32> {
    let items = scored.names.iter().zip(&scored.items).zip(at);
    items
        .map(|((name, item), &at)| (name.clone(), item.levels[at]))
        .collect()
}

/// The interval of what a choice is predicted to cost less another, paired by sample.
fn less(scored: &Scored, chosen: &[usize], other: &[usize]) -> Result<Option<[f64; 2]>> {
    let totals = scored.totals(chosen).zip(scored.totals(other));
    let Some((sums, (ours, theirs))) = scored.samples.as_ref().zip(totals) else {
        return Ok(None);
    };
    let differences: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
    let (_, interval) = mean_with_interval(&differences, &sums.clusters)?;
    Ok(interval)
}

fn measured(
    run: &PlanArgs,
    checkpoint: &Checkpoint,
    plans: &[(String, BTreeMap<String, u32>)],
    device: &Device,
) -> Result<Vec<Comparison>> {
    let reader = Reader {
        samples: run.samples,
        ..Reader::new(&checkpoint.config, &checkpoint.folder)
    };
    let group = run.group_size as usize;
    let of = run.verify.iter().map(|file| {
        let data = reader.read(file)?;
        verify(checkpoint, plans, group, &data, run.batch_tokens, device)
    });
    of.collect()
}

/// tr F of all matrices.
fn whole(source: &Source) -> Result<f64> {
    let traces = source.matrices.iter().map(|matrix| {
        let elements = source.elements(matrix.path())?;
        Ok(elements.mean.iter().sum::<f64>())
    });
    traces.sum()
}

fn rows(
    scored: &Scored,
    resolution: &Resolution,
    groups: &[Vec<usize>],
    chosen: &Choice,
    alone: &Choice,
) -> Vec<Row> {
    let tie = |at: usize| groups.iter().position(|group| group.contains(&at));
    let row = |at: usize| Row {
        name: scored.names[at].clone(),
        level: scored.items[at].levels[chosen.levels[at]],
        alone: scored.items[at].levels[alone.levels[at]],
        score: scored.scores[at],
        interval: resolution.intervals[at].map(|i| [i.lower, i.upper]),
        ranks: [resolution.ranks[at].best, resolution.ranks[at].worst],
        tie: tie(at).unwrap_or_default(),
        split: chosen.split.contains(&at),
        cost: scored.items[at].costs[chosen.levels[at]],
    };
    (0..scored.items.len()).map(row).collect()
}
