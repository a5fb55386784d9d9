//! Models merged tensor by tensor.

use std::collections::BTreeMap;
use std::path::Path;

use fisher_tests::golden::folder;
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::program::Case;

/// The case's model with its weights in another type, in a folder of its own.
fn converted(case: &mut Case, dtype: Dtype) {
    let folder = case.out.path().join("converted");
    std::fs::create_dir_all(&folder).expect("a folder");
    for entry in std::fs::read_dir(&case.model).expect("a model") {
        let from = entry.expect("a file").path();
        let name = from.file_name().expect("a name").to_owned();
        let bytes = std::fs::read(&from).expect("a file");
        if from.extension().is_none_or(|end| end != "safetensors") {
            std::fs::write(folder.join(name), bytes).expect("a file");
            continue;
        }
        if name.to_string_lossy().starts_with("expected") {
            continue;
        }
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensors: Vec<_> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let values = view.data().chunks_exact(4);
                let values = values.map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes")));
                let bytes: Vec<u8> = match dtype {
                    // The leading half of a float32.
                    Dtype::BF16 => values
                        .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                        .collect(),
                    Dtype::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
                    _ => view.data().to_vec(),
                };
                (name, view.shape().to_vec(), bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(dtype, shape.clone(), bytes).expect("a tensor");
            (name.clone(), view)
        });
        let about = [("format".to_owned(), "pt".to_owned())].into();
        let bytes = safetensors::serialize(views, Some(about)).expect("safetensors");
        std::fs::write(folder.join(name), bytes).expect("a file");
    }
    case.model = folder.display().to_string();
}

/// Type, shape and bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// By file, what its tensors are and hold.
fn tensors(folder: &Path) -> BTreeMap<String, BTreeMap<String, Stored>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a model") {
        let path = entry.expect("a file").path();
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if !name.ends_with(".safetensors") || name.starts_with("expected") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let of = |(name, view): (String, TensorView)| {
            (
                name,
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        };
        files.insert(name, file.tensors().into_iter().map(of).collect());
    }
    files
}

/// A model merged with itself is itself: to the last bit, in its types, files and index, whatever the
/// Fishers are brought to.
#[rstest]
fn a_model_merged_with_itself_is_itself(
    #[values("mistral-sharded", "gpt2-fused", "qwen2-tied")] name: &str,
    #[values(Dtype::F32, Dtype::BF16, Dtype::F64)] dtype: Dtype,
    #[values("none", "norm")] scale: &str,
) {
    let mut case = Case::new(name);
    converted(&mut case, dtype);
    let more = [
        "--phases",
        "1,7",
        "--merge-with",
        &case.model,
        "--merge-scale",
        scale,
    ];
    case.run("out", &more).expect("a run");
    let merged = Path::new(&case.folder("out")).join("merged");
    assert!(tensors(&merged) == tensors(Path::new(&case.model)));
    for file in ["config.json", "model.safetensors.index.json"] {
        let [ours, theirs] =
            [&merged, Path::new(&case.model)].map(|f| std::fs::read(f.join(file)).ok());
        assert_eq!(ours, theirs, "{file}");
    }
    let report = case.report("out");
    for change in report["merge_measured"].as_array().expect("a list") {
        assert_eq!(change["mean"].as_f64(), Some(0.0), "{change}");
    }
}

/// What the Fishers are brought to matters, and is told.
#[test]
fn fishers_are_brought_to_one_scale() {
    let case = Case::new("llama-gqa");
    let other = case.further();
    let merged = |scale: &str| {
        let more = [
            "--phases",
            "1,7",
            "--merge-with",
            &other,
            "--merge-scale",
            scale,
        ];
        case.run(scale, &more).expect("a run");
        assert_eq!(case.report(scale)["merge"]["scale"], scale);
        tensors(&Path::new(&case.folder(scale)).join("merged"))
    };
    let [none, trace, norm] = ["none", "trace", "norm"].map(merged);
    assert!(none != trace && trace != norm && none != norm);
    let costs = |scale: &str| -> Vec<f64> {
        let report = case.report(scale);
        let costs = report["ewc"].as_object().expect("costs").values();
        costs.filter_map(Value::as_f64).collect()
    };
    // What the other model would cost is by F as it is.
    assert_eq!(costs("none"), costs("trace"));
}

/// An adapter is no model to merge with: it is told what it is and what makes one of it, before anything is measured.
#[test]
fn an_adapter_is_not_merged_with() {
    let case = Case::new("llama-gqa");
    let adapter = folder("families").join("llama-lora/adapters/query-value");
    assert!(!adapter.join("config.json").exists());
    let adapter = adapter.display().to_string();
    let error = case.run("out", &["--phases", "1,7", "--merge-with", &adapter]);
    let error = error.expect_err("no model");
    for said in [
        &adapter,
        "is an adapter (PEFT)",
        "not a model",
        "merge_and_unload",
    ] {
        assert!(error.contains(said), "{error}");
    }
    let out = Path::new(&case.folder("out")).to_owned();
    assert!(!out.join("statistics.safetensors").exists() && !out.join("merged").exists());
}
