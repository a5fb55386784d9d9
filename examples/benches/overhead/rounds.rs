//! Ways that take turns.

use std::time::Instant;

use burn::tensor::Device;

use crate::Outcome;
use crate::subject::Subject;
use crate::ways::{Way, runner};

/// What a way took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) way: Way,
    /// Seconds of the first batch.
    pub(crate) first: f64,
    /// Seconds of a batch, the median over rounds.
    pub(crate) seconds: f64,
    /// To the first of the ways in the same round, the median over rounds.
    pub(crate) ratio: f64,
    pub(crate) rounds: usize,
}

/// What each of `ways` takes for a batch.
pub(crate) fn measure<M: Subject>(
    model: &M,
    batch: &M::Batch,
    ways: &[Way],
    rounds: usize,
) -> Outcome<Vec<Taken>> {
    let mut runners = Vec::new();
    for &way in ways {
        runners.push(runner(way, model, batch)?);
    }
    let mut seconds = vec![Vec::new(); ways.len()];
    let mut first = vec![0.0; ways.len()];
    // Once to warm up; the loop is slow and steady enough for fewer rounds.
    for round in 0..=rounds {
        for turn in 0..ways.len() {
            // Not always behind the same one.
            let index = (turn + round) % ways.len();
            if ways[index] == Way::Loop && round > 3 {
                continue;
            }
            let start = Instant::now();
            runners[index]()?;
            model.devices().iter().try_for_each(Device::sync)?;
            let took = start.elapsed().as_secs_f64();
            match round {
                0 => first[index] = took,
                _ => seconds[index].push(took),
            }
        }
    }
    let taken = ways.iter().zip(&seconds).zip(first);
    let taken = taken.map(|((&way, times), first)| {
        let pairs = times.iter().zip(&seconds[0]);
        Taken {
            way,
            first,
            seconds: median(times.clone()),
            ratio: median(pairs.map(|(way, plain)| way / plain).collect()),
            rounds: times.len(),
        }
    });
    Ok(taken.collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => 0.5 * (values[middle - 1] + values[middle]),
    }
}
