//! The memory that joining files takes.

use std::path::PathBuf;

use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};
use fisher_core::gradient::{GradientSink, PerToken, SampleGradient};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use rstest::rstest;

use crate::{MIB, alone, raised};

/// Each file has 64 MiB of means and M2; in memory there are a few of these, however many files there are.
#[rstest]
#[case(2)]
#[case(6)]
fn files_are_joined_piece_by_piece(#[case] files: usize) {
    let case = if files == 2 { 1 } else { 2 };
    alone(
        &format!("joining::files_are_joined_piece_by_piece::case_{case}"),
        || {
            let folder = tempfile::tempdir().expect("a folder");
            let device = Device::flex();
            let model = LinearConfig::new(2048, 2048).with_bias(false);
            let model = model.init(&device.clone().autodiff());
            let save = |file: usize| -> PathBuf {
                let mut statistics = StatisticsConfig::new().init(&model).expect("one");
                let sample = Sample::new(file.to_string(), 1).expect("tokens");
                statistics.begin("task", &[sample]).expect("a new sample");
                let side = Tensor::<3>::ones([1, 1, 2048], &device);
                let (left, right) = (side.clone().mul_scalar(file as f32 + 1.0), side);
                let product = SampleGradient::Outer { left, right };
                statistics.put("weight", product).expect("factors");
                statistics.commit().expect("finite squares");
                let path = folder.path().join(file.to_string());
                statistics.save(&path).expect("a file");
                path
            };
            let paths: Vec<PathBuf> = (0..files).map(save).collect();
            let out = folder.path().join("joined");
            // What making them took at most does not count.
            std::fs::write("/proc/self/clear_refs", "5").expect("the peak begins anew");
            let bytes = raised(|| {
                Statistics::<PerToken>::join_files(&paths, &out, &device).expect("joined")
            });
            println!("{} MiB", bytes / MIB);
            assert!(bytes < 100 * MIB, "{} MiB", bytes / MIB);
            let joined: Statistics = Statistics::load(&out, &device).expect("a file");
            let moments = joined
                .task("task")
                .expect("it")
                .parameter("weight")
                .expect("it");
            let mean = moments
                .elementwise()
                .expect("elements")
                .read()
                .expect("read")
                .mean;
            let expected = (1..=files).map(|x| (x * x) as f64).sum::<f64>() / files as f64;
            assert!(
                mean.expect("means")
                    .iter()
                    .all(|m| (m - expected).abs() < 1e-12)
            );
        },
    );
}
