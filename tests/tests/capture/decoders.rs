//! Decoders of Hugging Face checkpoints: losses against the golden ones, and folders that are wrong.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use fisher_cli::models::{Checkpoint, Error, ModelConfig, Sequence, Sequences};
use fisher_cli::samples::{Reader, TaskFile, Text, batches};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{Golden, TASKS, folder};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use fisher_train::batch::{SampleBatch, SampleLoss};
use fisher_train::capture::check;
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const CASES: [&str; 5] = [
    "llama-gqa",
    "gpt2-fused",
    "llama-mqa",
    "qwen2-tied",
    "mistral-sharded",
];

fn load(folder: &Path, device: &Device) -> Result<Checkpoint, Error> {
    Checkpoint::load(folder, &device.clone().autodiff())
}

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn samples(checkpoint: &Checkpoint, task: &str) -> Vec<Sequence> {
    let reader = Reader::new(&checkpoint.config, &checkpoint.folder);
    let file = TaskFile {
        name: task.into(),
        path: checkpoint.folder.join(format!("{task}.jsonl")),
    };
    reader.read(&file).expect("samples").samples
}

/// Losses of all samples of a task by id, in batches of `tokens` tokens.
fn losses(
    checkpoint: &Checkpoint,
    task: &str,
    tokens: usize,
    device: &Device,
) -> BTreeMap<String, (f64, u64)> {
    let data = samples(checkpoint, task);
    let mut found = BTreeMap::new();
    for batch in batches(&data, tokens) {
        let batch = Sequences::new(&batch, &device.clone().autodiff());
        let losses = checkpoint.model.sample_losses(&batch);
        let sums = losses.sums().clone().inner().into_data();
        let sums = sums.iter::<f64>().zip(losses.tokens().expect("tokens"));
        let ids = (0..batch.len()).map(|index| batch.id(index).expect("an id"));
        found.extend(ids.zip(sums));
    }
    found
}

#[rstest]
fn losses_agree(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 64)] tokens: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let checkpoint = load(&folder(case), &device).expect("a checkpoint");
        for task in TASKS {
            let losses = losses(&checkpoint, task, tokens, &device);
            let expected = golden.expected(&format!("/tasks/{task}"));
            let ids = expected["ids"].as_array().expect("ids");
            assert_eq!(losses.len(), ids.len());
            for (i, id) in ids.iter().enumerate() {
                let (loss, tokens) = losses[&id.as_str().map_or(id.to_string(), Into::into)];
                assert_eq!(expected["tokens"][i], tokens);
                let expected = expected["loss_sum"][i].as_f64().expect("a loss");
                assert_close(
                    &format!("{case} {task} {id}"),
                    &[loss],
                    &[expected],
                    GOLDEN,
                    0.0,
                );
            }
        }
    }
}

/// One pass a batch gives the gradients of all parameters.
#[rstest]
fn decoders_are_traced(#[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let checkpoint = load(&folder(case), &device).expect("a checkpoint");
        let data = samples(&checkpoint, TASKS[0]);
        let batch = Sequences::new(&data[..3], &device.clone().autodiff());
        let checkup = check(&checkpoint.model, &batch).expect("a checkup");
        assert!(checkup.is_sound() && checkup.is_fast(), "{case}: {checkup}");
    }
}

/// Text needs a tokenizer: one that can be read, and a program that was built with them.
#[test]
fn a_tokenizer_that_cannot_be_had_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = || Text::read(folder.path()).expect_err("no tokenizer");
    assert!(told().contains("give `input_ids`"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("a file");
    let error = told();
    let built_without = error.contains("--features tokenizers");
    assert!(error.contains("cannot read") != built_without, "{error}");
    assert!(error.contains("tokenizer.json"), "{error}");
}

/// A copy of a golden folder.
fn copy(case: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder(case)).expect("a case") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    copy
}

/// Change the tensors of a copy: name to type, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn change(folder: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let own = |(name, view): (String, TensorView)| {
        (
            name,
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    let mut tensors: Tensors = file.tensors().into_iter().map(own).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (
            name,
            TensorView::new(*dtype, shape.clone(), data).expect("a tensor"),
        )
    });
    safetensors::serialize_to_file(views, None, &path).expect("weights");
}

#[test]
fn half_precision_becomes_float32() {
    let copy = copy("llama-gqa");
    // bfloat16 is the front half of a float32.
    change(copy.path(), |tensors| {
        for (dtype, _, data) in tensors.values_mut() {
            *dtype = Dtype::BF16;
            *data = data.chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
        }
    });
    let device = flex();
    let checkpoint = load(copy.path(), &device).expect("a checkpoint");
    let found = losses(&checkpoint, "alpha", 64, &device);
    change(copy.path(), |tensors| {
        for (dtype, _, data) in tensors.values_mut() {
            *dtype = Dtype::F32;
            *data = data
                .chunks_exact(2)
                .flat_map(|b| [0, 0, b[0], b[1]])
                .collect();
        }
    });
    let checkpoint = load(copy.path(), &device).expect("a checkpoint");
    assert_eq!(found, losses(&checkpoint, "alpha", 64, &device));
}

#[test]
fn old_gpt2_files_have_no_prefix_and_have_buffers() {
    let copy = copy("gpt2-fused");
    let device = flex();
    let before = load(copy.path(), &device).expect("a checkpoint");
    change(copy.path(), |tensors| {
        let short = |name: String| name.trim_start_matches("transformer.").to_owned();
        let all = std::mem::take(tensors).into_iter();
        *tensors = all.map(|(name, tensor)| (short(name), tensor)).collect();
        let mask = (Dtype::U8, vec![1, 1, 2, 2], vec![1, 0, 1, 1]);
        tensors.insert("h.0.attn.bias".into(), mask);
        let embedding = tensors["wte.weight"].clone();
        tensors.insert("lm_head.weight".into(), embedding);
    });
    let after = load(copy.path(), &device).expect("a checkpoint");
    assert_eq!(after.naming, before.naming);
    assert_eq!(
        losses(&before, "alpha", 64, &device),
        losses(&after, "alpha", 64, &device)
    );
    change(copy.path(), |tensors| {
        let head = tensors.get_mut("lm_head.weight").expect("a head");
        head.2[3] ^= 1;
    });
    let error = load(copy.path(), &device).expect_err("another head");
    assert!(matches!(error, Error::NotTied { .. }), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let refused = |case: &str, how: fn(&mut Tensors)| {
        let copy = copy(case);
        change(copy.path(), how);
        load(copy.path(), &flex()).expect_err("refused")
    };
    let error = refused("llama-gqa", |tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight");
    });
    assert!(
        matches!(&error, Error::Missing { tensors } if tensors == name),
        "{error}"
    );
    let error = refused("llama-gqa", |tensors| {
        let tensor = tensors["model.norm.weight"].clone();
        tensors.insert("model.layers.2.norm.weight".into(), tensor);
    });
    assert!(
        matches!(&error, Error::Extra { tensors } if tensors == "model.layers.2.norm.weight"),
        "{error}"
    );
    let error = refused("llama-gqa", |tensors| {
        let tensor = tensors
            .get_mut("model.layers.1.mlp.up_proj.weight")
            .expect("it");
        tensor.1.reverse();
    });
    assert!(
        matches!(&error, Error::Shape { tensor, found, expected }
            if tensor == name && *found == [16, 24] && *expected == [24, 16]),
        "{error}"
    );
    let error = refused("llama-gqa", |tensors| {
        let tensor = tensors.get_mut("model.norm.weight").expect("it");
        *tensor = (Dtype::I8, vec![16], vec![0; 16]);
    });
    assert!(
        matches!(&error, Error::Type { tensor, .. } if tensor == "model.norm.weight"),
        "{error}"
    );
}

#[test]
fn files_that_are_cut_short_or_not_there_are_named() {
    let copy = copy("mistral-sharded");
    let second = copy.path().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&second).expect("a shard");
    std::fs::write(&second, &bytes[..bytes.len() - 8]).expect("a shard");
    let error = load(copy.path(), &flex()).expect_err("cut short");
    assert!(
        matches!(&error, Error::Json { path, .. } if *path == second),
        "{error}"
    );
    std::fs::remove_file(&second).expect("removed");
    let error = load(copy.path(), &flex()).expect_err("not there");
    assert!(
        matches!(&error, Error::Io { path, .. } if *path == second),
        "{error}"
    );
    std::fs::remove_file(copy.path().join("model.safetensors.index.json")).expect("removed");
    let error = load(copy.path(), &flex()).expect_err("no weights");
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
}

#[rstest]
#[case("llama-gqa", json!({"model_type": "mamba"}), "mamba")]
#[case("llama-gqa", json!({"rope_scaling": {"rope_type": "spiral", "factor": 8.0}}), "rope_scaling.rope_type")]
#[case("llama-gqa", json!({"rope_scaling": {"factor": 4.0}}), "rope_scaling.factor")]
#[case("llama-gqa", json!({"rope_scaling": "linear"}), "rope_scaling")]
#[case("llama-gqa", json!({"rope_scaling": {"type": 1}}), "rope_scaling.type")]
#[case("llama-gqa", json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_parameters.short_factor")]
#[case("llama-gqa", json!({"is_causal": false}), "is_causal")]
#[case("llama-gqa", json!({"residual_multiplier": 0.5}), "residual_multiplier")]
#[case("llama-gqa", json!({"attention_bias": 1}), "attention_bias")]
#[case("llama-gqa", json!({"model_type": "gemma3", "rope_scaling": {"type": 1}}), "gemma3")]
#[case("llama-gqa", json!({"quantization_config": {"bits": 4}}), "quantization_config")]
#[case("llama-gqa", json!({"hidden_act": "snake"}), "hidden_act")]
#[case("llama-gqa", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor")]
#[case("llama-gqa", json!({"num_key_value_heads": 3}), "num_key_value_heads")]
#[case("llama-gqa", json!({"hidden_size": null}), "hidden_size")]
#[case("llama-gqa", json!({"vocab_size": "many"}), "vocab_size")]
#[case("gpt2-fused", json!({"activation_function": "snake"}), "activation_function")]
#[case("gpt2-fused", json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx")]
#[case("gpt2-fused", json!({"n_head": 5}), "n_head")]
#[case("families/qwen2-sliding", json!({"max_window_layers": "2"}), "max_window_layers")]
#[case("families/qwen2-sliding", json!({"max_window_layers": -1}), "max_window_layers")]
#[case("families/qwen2_moe", json!({"max_window_layers": 1.5}), "max_window_layers")]
#[case("families/qwen2_moe", json!({"mlp_only_layers": [0, "1"]}), "mlp_only_layers")]
#[case("families/qwen3_moe", json!({"mlp_only_layers": 1}), "mlp_only_layers")]
#[case("families/qwen3_moe", json!({"mlp_only_layers": [-1]}), "mlp_only_layers")]
#[case("families/roberta", json!({"pad_token_id": "1"}), "pad_token_id")]
#[case("families/roberta", json!({"pad_token_id": null}), "pad_token_id")]
#[case("families/roberta", json!({"pad_token_id": -1}), "pad_token_id")]
#[case("families/roberta", json!({"pad_token_id": 31}), "pad_token_id")]
#[case("families/roberta", json!({"pad_token_id": u64::MAX}), "pad_token_id")]
#[case("families/bert", json!({"id2label": ["no", "yes"]}), "id2label")]
#[case("families/bert", json!({"architectures": "BertForSequenceClassification"}), "architectures")]
fn what_is_not_supported_is_named(#[case] case: &str, #[case] with: Value, #[case] field: &str) {
    let text = std::fs::read_to_string(folder(case).join("config.json")).expect("a config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let fields = with.as_object().expect("fields").clone();
    config.as_object_mut().expect("fields").extend(fields);
    let error = ModelConfig::parse(&config)
        .expect_err("refused")
        .to_string();
    assert!(error.contains(&format!("`{field}`")), "{error}");
}

/// Numbers from 0 and lists of them are taken as they are.
#[test]
fn layers_are_counted_from_zero() {
    let parse = |case: &str, field: &str, value: Value| {
        let text = std::fs::read_to_string(folder(case).join("config.json")).expect("a config");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config[field] = value;
        ModelConfig::parse(&config).expect("supported").shape
    };
    let dense = |value| {
        let shape = parse("families/qwen3_moe", "mlp_only_layers", value);
        let layers = shape.layers.iter();
        layers.map(|layer| !layer.experts).collect::<Vec<bool>>()
    };
    let none = dense(json!([]));
    assert_eq!(dense(Value::Null), none);
    let first = dense(json!([0]));
    assert!(first[0] && !none[0] && first[1..] == none[1..], "{none:?}");
    let config = folder("families/qwen2-sliding").join("config.json");
    let text = std::fs::read_to_string(config).expect("a config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    // Without it windows begin at `max_window_layers`.
    config["layer_types"] = Value::Null;
    config["max_window_layers"] = 0.into();
    let shape = ModelConfig::parse(&config).expect("supported").shape;
    assert!(shape.layers.iter().all(|layer| layer.window.is_some()));
    let roberta = parse("families/roberta", "pad_token_id", json!(0));
    assert_eq!(roberta.embedding.positions, Some([32, 1]));
}

/// What is refused is the field that the file has, under whichever of its names.
#[rstest]
#[case("num_attention_heads", "hidden_size")]
#[case("n_head", "n_embed")]
fn a_width_that_heads_do_not_divide_is_named(#[case] heads: &str, #[case] width: &str) {
    let config = json!({"model_type": "bloom", "vocab_size": 23, "num_hidden_layers": 2, heads: 5, width: 16});
    let error = ModelConfig::parse(&config)
        .expect_err("refused")
        .to_string();
    assert!(error.contains(&format!("`{heads}` is 5")), "{error}");
    let divisor = format!("a divisor of {width} = 16");
    assert!(error.contains(&divisor), "{error}");
}

#[rstest]
#[case(json!({"sliding_window": 16}), Some(16))]
#[case(json!({"sliding_window": null}), None)]
#[case(json!({}), Some(4096))]
fn windows_are_those_of_transformers(#[case] with: Value, #[case] window: Option<usize>) {
    let text = std::fs::read_to_string(folder("mistral-sharded").join("config.json"));
    let mut config: Value = serde_json::from_str(&text.expect("a config")).expect("JSON");
    let config = config.as_object_mut().expect("fields");
    config.remove("sliding_window");
    config.extend(with.as_object().expect("fields").clone());
    let config = ModelConfig::parse(&Value::Object(config.clone())).expect("supported");
    let layers = &config.shape.layers;
    assert!(
        layers.iter().all(|layer| layer.window == window),
        "{layers:?}"
    );
}
