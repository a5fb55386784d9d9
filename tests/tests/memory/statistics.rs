//! The memory that a batch takes on its way into statistics.

use burn::module::ParamGroup;
use burn::nn::{EmbeddingConfig, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use fisher_core::gradient::{GradientSink, SampleGradient};
use fisher_core::grouping::Scheme;
use fisher_core::sample::Sample;
use fisher_core::statistics::StatisticsConfig;
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
        let mut statistics = config.init(&model).expect("some");
        let side = Tensor::<3>::ones([32, 2, 1024], &device);
        let (left, right) = (side.clone(), side);
        let product = SampleGradient::Outer { left, right };
        let begun = statistics.begin("task", &samples(32));
        begun.expect("new samples");
        let put = statistics.put("weight", product);
        put.expect("factors of the parameter");
        statistics.commit().expect("finite squares");
    };
    alone(&name, || {
        let bytes = raised(work);
        println!("{} MiB", bytes / MIB);
        assert!(bytes < 100 * MIB);
    });
}

/// Means and M2 of 16 parameters are 256 MiB: to a file they are written one by one.
#[test]
fn a_file_is_written_one_tensor_at_a_time() {
    let work = || {
        let device = Device::flex();
        let layer = LinearConfig::new(1024, 1024).with_bias(false);
        let model: Vec<_> = (0..16)
            .map(|_| layer.init(&device.clone().autodiff()))
            .collect();
        let mut statistics = StatisticsConfig::new().init(&model).expect("some");
        statistics.begin("task", &samples(2)).expect("new samples");
        for layer in 0..16 {
            let side = Tensor::<3>::ones([2, 1, 1024], &device);
            let (left, right) = (side.clone(), side);
            let put = statistics.put(
                &format!("{layer}.weight"),
                SampleGradient::Outer { left, right },
            );
            put.expect("factors of the parameter");
        }
        statistics.commit().expect("finite squares");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("statistics.safetensors");
        let bytes = raised(|| statistics.save(&path).expect("a file"));
        println!("saving: {} MiB", bytes / MIB);
        assert!(bytes < 64 * MIB);
    };
    alone("statistics::a_file_is_written_one_tensor_at_a_time", work);
}

/// Pairs of positions would be 256 MiB in float32.
#[test]
fn a_lookup_needs_no_pairs_of_positions() {
    let work = || {
        let device = Device::flex();
        let model = EmbeddingConfig::new(1000, 16).init(&device.clone().autodiff());
        let mut statistics = StatisticsConfig::new().init(&model).expect("one");
        let ids = Tensor::<1, Int>::arange(0..8192, &device).remainder_scalar(1000);
        let delta = Tensor::<3>::ones([1, 8192, 16], &device);
        let rows = SampleGradient::Rows {
            ids: ids.reshape([1, 8192]),
            delta,
            table: 1000,
        };
        let begun = statistics.begin("task", &samples(1));
        begun.expect("a new sample");
        statistics.put("weight", rows).expect("rows of the table");
        statistics.commit().expect("finite squares");
    };
    alone("statistics::a_lookup_needs_no_pairs_of_positions", || {
        let bytes = raised(work);
        println!("{} MiB", bytes / MIB);
        assert!(bytes < 64 * MIB);
    });
}

/// Scores of a vocabulary are 200 MiB; what was looked up would be as much again, as would both in one piece.
#[test]
fn a_tied_table_needs_no_scores_of_its_own() {
    let work = || {
        let device = Device::flex();
        let (table, width, positions) = (50_000, 4, 64);
        let model = EmbeddingConfig::new(table, width).init(&device.clone().autodiff());
        let mut statistics = StatisticsConfig::new().init(&model).expect("one");
        let ids = Tensor::<1, Int>::arange(0..16 * positions as i64, &device).mul_scalar(48);
        let product = SampleGradient::Outer {
            left: Tensor::ones([16, positions, table], &device),
            right: Tensor::ones([16, positions, width], &device),
        };
        let lookup = SampleGradient::Rows {
            ids: ids.reshape([16, positions]),
            delta: Tensor::ones([16, positions, width], &device),
            table,
        };
        let bytes = raised(|| {
            let tied = SampleGradient::sum([product, lookup]).expect("two uses");
            let begun = statistics.begin("task", &samples(16));
            begun.expect("new samples");
            statistics.put("weight", tied).expect("of this shape");
            statistics.commit().expect("finite squares");
        });
        println!("{} MiB", bytes / MIB);
        assert!(bytes < 100 * MIB);
    };
    alone("statistics::a_tied_table_needs_no_scores_of_its_own", work);
}
