//! The memory that a batch takes on its way into statistics.

use burn::module::ParamGroup;
use burn::nn::{EmbeddingConfig, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_core::{HeadLayout, Sample, Scheme, Statistics, StatisticsConfig};
use rstest::rstest;

use crate::{MIB, alone, raised};

fn samples(count: usize) -> Vec<Sample> {
    let sample = |i| Sample::new(format!("{i}"), 1).expect("tokens");
    (0..count).map(sample).collect()
}

/// Gradients of the batch would be 128 MiB in float32 and 256 MiB in float64.
#[rstest]
#[case::buckets(Scheme::Buckets { size: 1000 })]
#[case::custom(Scheme::Custom { ids: (0..1 << 20).map(|e| e % 777).collect() })]
fn scattered_groups_need_no_gradients(#[case] scheme: Scheme) {
    let case = match scheme {
        Scheme::Buckets { .. } => "case_1_buckets",
        _ => "case_2_custom",
    };
    let name = format!("statistics::scattered_groups_need_no_gradients::{case}");
    let work = || {
        let device = Device::flex();
        let model = LinearConfig::new(1024, 1024).with_bias(false);
        let config = StatisticsConfig::new()
            .with_elementwise(false)
            .with_schemes(vec![(ParamGroup::all(), scheme)]);
        let model = model.init(&device.clone().autodiff());
        let mut statistics: Statistics = config.init(&model).expect("some");
        let side = Tensor::<3>::ones([32, 2, 1024], &device);
        let mut stream = statistics.stream("task", samples(32)).expect("new samples");
        let pushed = stream.product("weight", side.clone(), side, true);
        pushed.expect("factors of the parameter");
        stream.finish().expect("finite squares");
    };
    alone(&name, || {
        let bytes = raised(work);
        println!("{} MiB", bytes / MIB);
        assert!(bytes < 100 * MIB);
    });
}

/// Pairs of positions would be 256 MiB in float32.
#[test]
fn a_lookup_needs_no_pairs_of_positions() {
    let work = || {
        let device = Device::flex();
        let model = EmbeddingConfig::new(1000, 16).init(&device.clone().autodiff());
        let heads = HeadLayout::none();
        let mut statistics: Statistics = StatisticsConfig::new()
            .init_with_heads(&model, &heads)
            .expect("one");
        let ids = Tensor::<1, Int>::arange(0..8192, &device).remainder_scalar(1000);
        let delta = Tensor::<3>::ones([1, 8192, 16], &device);
        let mut stream = statistics.stream("task", samples(1)).expect("a new sample");
        let pushed = stream.lookup("weight", ids.reshape([1, 8192]), delta);
        pushed.expect("rows of the table");
        stream.finish().expect("finite squares");
    };
    alone("statistics::a_lookup_needs_no_pairs_of_positions", || {
        let bytes = raised(work);
        println!("{} MiB", bytes / MIB);
        assert!(bytes < 64 * MIB);
    });
}
