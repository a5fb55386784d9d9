//! Contributions whose means are known.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use rand::RngExt;
use rand::rngs::StdRng;

/// Of the standard normal distribution.
pub(crate) fn normal(rng: &mut StdRng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Lognormal of mean 1 and coefficient of variation `cv`.
pub(crate) fn lognormal(cv: f64, rng: &mut StdRng) -> f64 {
    let variance = (1.0 + cv * cv).ln();
    (variance.sqrt() * normal(rng) - variance / 2.0).exp()
}

/// Exponential of mean 1.
pub(crate) fn exponential(rng: &mut StdRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// Statistics of task `t` whose layers have one element each and these contributions,
/// `[layers][samples]`.
pub(crate) fn statistics(layers: &[Vec<f64>], clusters: Option<&[usize]>) -> Statistics {
    let device = Device::flex();
    let path = |k: usize| format!("layers.{k}.w");
    let parameter = |k| Parameter::new(path(k), [1], Role::Vector, Orientation::InputOutput);
    let catalogue = Catalogue::new((0..layers.len()).map(parameter).collect()).expect("paths");
    let config = StatisticsConfig::new().with_grouped(false);
    let statistics = config.init_for(&catalogue, &HeadLayout::none(), "m".into(), &device);
    let mut statistics: Statistics = statistics.expect("statistics");
    let samples = (0..layers[0].len()).map(|i| {
        let sample = Sample::new(i.to_string(), 1).expect("a token");
        match clusters {
            Some(clusters) => sample.with_cluster(clusters[i].to_string()),
            None => sample,
        }
    });
    let mut batch = GradientBatch::new(samples.collect());
    for (k, contributions) in layers.iter().enumerate() {
        let roots: Vec<f64> = contributions.iter().map(|c| c.sqrt()).collect();
        let data = TensorData::new(roots, [layers[0].len(), 1]);
        let gradient = Tensor::<2>::from_data(data, (&device, DType::F64));
        batch.insert(path(k), Gradient::token_sum(gradient));
    }
    statistics.push("t", batch).expect("contributions");
    statistics
}
