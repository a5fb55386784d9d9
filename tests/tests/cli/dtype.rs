//! Weights that stay in bfloat16.

use std::path::Path;

use burn::tensor::Device;
use fisher_cli::models::{Checkpoint, Loading, Sequences, WeightType};
use fisher_core::statistics::{ParameterStatistics, Statistics, StatisticsConfig};
use fisher_tests::golden::folder;
use fisher_train::capture::check;
use fisher_train::collect::CollectorConfig;
use rstest::rstest;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::families::{TASKS, samples};

/// A model's folder with its weights cut to bfloat16, which is the front half of a float32.
fn cut(folder: &Path) -> TempDir {
    let copy = TempDir::new().expect("a folder");
    let to = |name: &str| copy.path().join(name);
    std::fs::copy(folder.join("config.json"), to("config.json")).expect("a copy");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let cut: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let front = tensor.data().chunks_exact(4).flat_map(|b| [b[2], b[3]]);
            (name.to_owned(), tensor.shape().to_vec(), front.collect())
        })
        .collect();
    let views = cut.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), data);
        (name, view.expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, &to("model.safetensors")).expect("weights");
    copy
}

fn load(folder: &Path, weights: WeightType, device: &Device) -> Result<Checkpoint, String> {
    let loading = Loading {
        weights,
        ..Default::default()
    };
    let checkpoint = Checkpoint::load_with(folder, &loading, &device.clone().autodiff());
    checkpoint.map_err(|e| e.to_string())
}

/// `F` of every element, by parameter.
fn fisher(checkpoint: &Checkpoint, data: &Path, device: &Device) -> Vec<(String, Vec<f64>)> {
    let hash = checkpoint.hash().expect("a hash");
    let statistics = StatisticsConfig::new();
    let statistics = statistics.init_for(&checkpoint.catalogue, &checkpoint.heads, hash, device);
    let mut statistics: Statistics = statistics.expect("statistics");
    let collector = CollectorConfig::new().with_progress(false).init();
    let collector = collector.expect("a collector");
    let collector = collector.with_names(checkpoint.naming.names());
    let samples = samples(&data.join("alpha.jsonl"));
    let tracked = device.clone().autodiff();
    let batches = || samples.chunks(4).map(|of| Sequences::new(of, &tracked));
    for batch in batches() {
        let checkup = check(&checkpoint.model, &batch).expect("a checkup");
        assert!(checkup.is_sound() && checkup.is_fast(), "{checkup}");
    }
    collector
        .collect_batches(&checkpoint.model, TASKS[0], batches(), &mut statistics)
        .expect("a collection");
    let parameters = statistics.task(TASKS[0]).expect("a task").parameters();
    let of = |(path, parameter): (&str, &ParameterStatistics)| {
        let elements = parameter.elementwise().expect("elements");
        let moments = elements.read().expect("moments");
        (path.to_owned(), moments.mean.expect("means"))
    };
    parameters.map(of).collect()
}

fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

/// F is what it is in float32 but for the digits that bfloat16 lacks, in one traced pass: no farther than twice
/// what PyTorch's is (by `golden/bfloat16.py`).
#[rstest]
#[case("llama-rope-llama3", 0.1507)]
#[case("gemma2", 0.0136)]
#[case("gpt_neox", 0.0111)]
#[case("bloom", 0.0103)]
#[case("olmo2", 0.0554)]
#[case("phi3", 0.0289)]
fn families_compute_in_bfloat16(#[case] case: &str, #[case] torch: f64) {
    let device = Device::flex();
    let data = folder("families").join(case);
    let folder = cut(&data);
    let of = |weights| {
        let checkpoint = load(folder.path(), weights, &device).expect("a model");
        fisher(&checkpoint, &data, &device)
    };
    let (single, half) = (of(WeightType::Float32), of(WeightType::BFloat16));
    let all = norm(single.iter().flat_map(|(_, of)| of.iter().copied()));
    let mut apart = 0.0;
    for ((path, single), (other, half)) in single.iter().zip(&half) {
        assert_eq!(path, other);
        apart += norm(single.iter().zip(half).map(|(s, h)| s - h)).powi(2);
    }
    let apart = apart.sqrt() / all;
    println!("{case}: {apart:.4} of the norm of F");
    // It is not float32 either.
    assert!(apart > 1e-4 && apart < 2.0 * torch, "{case}: {apart}");
}

#[test]
fn experts_are_not_chosen_in_bfloat16() {
    let folder = cut(&folder("families").join("qwen3_moe"));
    let error = load(folder.path(), WeightType::BFloat16, &Device::flex()).expect_err("experts");
    assert!(error.contains("experts are chosen"), "{error}");
}

#[test]
fn weights_that_would_be_rounded_are_refused() {
    let folder = folder("families").join("gemma2");
    let error = load(&folder, WeightType::BFloat16, &Device::flex()).expect_err("float32");
    assert!(
        error.contains("of type F32 and would be rounded to bfloat16")
            && error.contains("leave --dtype out"),
        "{error}"
    );
}
