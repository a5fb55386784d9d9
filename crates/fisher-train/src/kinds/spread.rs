//! How far draws of labels carry, beside samples.

use std::collections::HashMap;

use fisher_core::sample::Sample;
use fisher_core::statistics::SampleTraces;
use fisher_metrics::kinds::{KindRatio, PairMoments};
use serde::{Deserialize, Serialize};

/// The error that draws of labels leave in a Monte-Carlo Fisher, beside that of the samples.
///
/// The mean of `K` draws of sample `i` has, given the sample, the variance `V_i / K`, with `V_i` the variance of its
/// contribution over draws. So of the variance of `F` over `n` samples, `(1/n²) Σ_i V_i / K` is of the draws; the standard error
/// over samples, with clusters of them taken whole, holds both. More draws make the one smaller, more samples both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawSpread {
    /// `K`.
    pub draws: usize,
    /// `n`: samples that were collected now, those of a checkpoint not among them.
    pub samples: u64,
    /// Of the traces of layers.
    pub layers: Vec<DrawError>,
    /// Of the traces of heads.
    pub heads: Vec<DrawError>,
}

/// The error of a trace, and of the draws in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawError {
    /// The layer, or the attention layer and the head.
    pub name: String,
    /// `F`.
    pub mean: f64,
    /// Its standard error over samples, draws included and clusters taken whole; `None` for fewer than two clusters.
    pub standard_error: Option<f64>,
    /// What is of the draws: how far `F` is from the exact one of the same samples. `None` for a single draw.
    pub of_draws: Option<f64>,
    /// What draws are of the variance of `F`, from 0 to about 1. (They are two estimates: it may come out above 1.)
    pub share: Option<f64>,
}

/// Sums over samples of what their draws came to.
#[derive(Debug, Clone)]
pub(crate) struct Spread {
    draws: usize,
    layers: Vec<(String, Cell)>,
    heads: Vec<(String, Cell)>,
    compared: bool,
    /// Numbers of the clusters that samples name.
    clusters: HashMap<String, usize>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    /// Of the mean over draws, and of what the data's labels contribute.
    pair: PairMoments,
    /// `Σ_i V_i`
    within: f64,
}

impl Spread {
    pub(crate) fn new(draws: usize, layers: Vec<String>, heads: Vec<String>) -> Self {
        let cells = |names: Vec<String>| names.into_iter().map(|name| (name, Cell::default()));
        Self {
            draws,
            layers: cells(layers).collect(),
            heads: cells(heads).collect(),
            compared: false,
            clusters: HashMap::new(),
        }
    }

    /// Take in some samples: their draws, and what the labels of the data contribute, where that is known.
    pub(crate) fn add(
        &mut self,
        samples: &[&Sample],
        draws: &[SampleTraces],
        data: Option<&SampleTraces>,
    ) {
        self.compared |= data.is_some();
        let numbers = samples.iter().map(|sample| {
            let name = sample.cluster()?.to_owned();
            let next = self.clusters.len();
            Some(*self.clusters.entry(name).or_insert(next))
        });
        let numbers: Vec<Option<usize>> = numbers.collect();
        add(&mut self.layers, &numbers, draws, data, |of| &of.layers);
        add(&mut self.heads, &numbers, draws, data, |of| &of.heads);
    }

    /// What was seen; `None` where that is nothing.
    pub(crate) fn read(&self) -> Option<DrawSpread> {
        let samples = self.layers.first()?.1.pair.samples();
        let error = |(name, cell): &(String, Cell)| {
            let n = samples as f64;
            let variance = cell.pair.covariance(1, 1);
            let of_draws = cell.within / (self.draws as f64 * n * n);
            let of_draws = (self.draws > 1).then_some(of_draws);
            let share = variance.zip(of_draws).filter(|(all, _)| *all > 0.0);
            DrawError {
                name: name.clone(),
                mean: cell.pair.mean(1),
                standard_error: variance.map(f64::sqrt),
                of_draws: of_draws.map(f64::sqrt),
                share: share.map(|(all, draws)| draws / all),
            }
        };
        (samples > 0).then(|| DrawSpread {
            draws: self.draws,
            samples,
            layers: self.layers.iter().map(error).collect(),
            heads: self.heads.iter().map(error).collect(),
        })
    }

    /// The labels of the data against those drawn, over the same samples, where they were compared.
    pub(crate) fn ratio(&self) -> Option<KindRatio> {
        let layers = self
            .layers
            .iter()
            .map(|(name, cell)| (name.clone(), &cell.pair));
        self.compared.then(|| KindRatio::paired(layers))
    }
}

/// Take in some samples' layers, or heads.
fn add(
    cells: &mut [(String, Cell)],
    clusters: &[Option<usize>],
    draws: &[SampleTraces],
    data: Option<&SampleTraces>,
    of: impl Fn(&SampleTraces) -> &Vec<Vec<f64>>,
) {
    for (sample, cluster) in clusters.iter().enumerate() {
        for (at, (_, cell)) in cells.iter_mut().enumerate() {
            let values = draws.iter().map(|draw| of(draw)[sample][at]);
            let values: Vec<f64> = values.collect();
            let count = values.len() as f64;
            let mean = values.iter().sum::<f64>() / count;
            let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
            if count > 1.0 {
                cell.within += squares / (count - 1.0);
            }
            let data = data.map_or(0.0, |data| of(data)[sample][at]);
            cell.pair.push([data, mean], *cluster);
        }
    }
}
