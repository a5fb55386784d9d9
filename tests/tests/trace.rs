//! Traces of unmodified models against the loop: every layer, every device.

use burn::tensor::Device;
use fisher_core::{HeadLayout, PerToken, StatisticsConfig};
use fisher_tests::agree::agree;
use fisher_tests::backend::Backend;
use fisher_tests::zoo::{
    Around, Attentions, Bare, Cached, Convolutions, Layer, Made, Norms, Pictures, Recurrences,
    Texts, Transformers,
};
use fisher_train::{Engine, SampleLoss};
use rstest::rstest;

/// All that is accumulated by traces is what the loop gives, and no parameter is left to the loop.
fn traced<M: SampleLoss>(model: &M, batches: &[M::Batch])
where
    M::Batch: Clone,
{
    let (config, heads) = (StatisticsConfig::new(), HeadLayout::none());
    agree::<_, PerToken>(model, &heads, batches, &config, Engine::Trace);
}

fn around<L: Layer>(layer: L, device: &Device) {
    let model = Around::init(layer, device);
    // Two shapes, and samples as many as other axes are long.
    let batches = [(3, 5), (8, 5)].map(|(count, length)| Texts::made_up(count, length, device));
    for batch in batches {
        traced(&model, &[batch]);
    }
}

#[rstest]
fn layers(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(
        "norms",
        "attentions",
        "norm first",
        "norm last",
        "cached",
        "recurrences",
        "bare",
        "adapters",
        "normalized"
    )]
    layer: &str,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = &device.autodiff();
    match layer {
        "norms" => around(Norms::init(device), device),
        "attentions" => around(Attentions::init(device), device),
        "norm first" => around(Transformers::init(true, device), device),
        "norm last" => around(Transformers::init(false, device), device),
        "cached" => around(Cached::init(device), device),
        "recurrences" => around(Recurrences::init(device), device),
        "bare" => around(Bare::init(5, device), device),
        "adapters" => around(Made::init(true, device), device),
        "normalized" => around(Made::init(false, device), device),
        other => panic!("no layer {other}"),
    }
}

#[rstest]
fn convolutions(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Convolutions::init(&device);
    traced(&model, &Pictures::made_up(5, &device).batches(3));
    traced(&model, &[Pictures::made_up(4, &device)]);
}
