//! What memory a store takes.

use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::store::{GradientStoreConfig, Precision};

use crate::{alone, resident};

/// A push takes what `memory` allows and a few megabytes, not a multiple of its batch.
#[test]
fn a_push_takes_no_multiple_of_its_batch() {
    alone("store::a_push_takes_no_multiple_of_its_batch", measure);
}

fn measure() {
    // 16 samples of 2 M elements: 128 MB.
    const SAMPLES: usize = 16;
    const ELEMENTS: usize = 1 << 20;
    let batch_bytes = 4 * SAMPLES * 2 * ELEMENTS;
    let of = |path: &str, shape: [usize; 2]| {
        Parameter::new(path, shape, Role::Matrix, Orientation::InputOutput)
    };
    let parameters = vec![of("a", [1024, 1024]), of("b", [64, 16384])];
    let catalogue = Catalogue::new(parameters).expect("parameters");
    for precision in [Precision::Float32, Precision::Float16] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = GradientStoreConfig::new(0)
            .with_precision(precision)
            .with_folder(Some(folder.path().into()));
        let mut store = config.init_for(&catalogue, "m".into()).expect("a store");
        for round in 0..2 {
            let samples = (0..SAMPLES).map(|i| Sample::new(format!("{round}/{i}"), 1));
            let samples = samples.collect::<Result<Vec<_>, _>>().expect("tokens");
            let mut batch = GradientBatch::new(samples);
            for (path, value) in [("a", 0.5), ("b", -0.25)] {
                let gradient = Tensor::<2>::full([SAMPLES, ELEMENTS], value, &Device::flex());
                batch.insert(path, Gradient::token_sum(gradient));
            }
            // The peak begins anew from here.
            std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
            let before = resident("VmRSS:");
            store.push("t", &batch).expect("a push");
            let taken = resident("VmHWM:").saturating_sub(before);
            println!(
                "{precision:?}: {:.1} MB of a batch of {:.1} MB",
                taken as f64 / 1e6,
                batch_bytes as f64 / 1e6
            );
            assert!(
                taken < 24 << 20,
                "{taken} bytes for a batch of {batch_bytes}"
            );
        }
    }
}
