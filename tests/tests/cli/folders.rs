//! Folders of models that are none, shards that disagree, and what a run leaves in its own folder.

use std::path::Path;

use fisher_cli::Cli;
use fisher_cli::models::Checkpoint;
use fisher_tests::backend::Backend;
use fisher_tests::golden::folder;
use rstest::rstest;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

fn load(path: &Path) -> Result<Checkpoint, String> {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    Checkpoint::load(path, &device).map_err(|e| e.to_string())
}

/// A folder with these files.
fn with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, bytes).expect("a file");
    }
    folder
}

const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
const PAGE: &str = "<!doctype html><title>404</title>";

#[rstest]
#[case(&[], "has no config.json", "save_pretrained")]
#[case(&[("config.json", LFS)], "config.json is a git-LFS pointer", "git lfs pull")]
#[case(&[("config.json", "{}"), ("model.safetensors", LFS)], "model.safetensors is a git-LFS pointer", "git lfs pull")]
#[case(&[("config.json", "{}"), ("model.safetensors", PAGE)], "is a web page", "download it again")]
#[case(&[("config.json", "{}"), ("model.safetensors", "")], "is empty", "download")]
#[case(&[("config.json", "{}"), ("pytorch_model.bin", "PK")], "another format (pytorch_model.bin)", "save_pretrained")]
#[case(&[("config.json", "{}"), ("model.pt", "PK")], "(model.pt)", "save_pretrained")]
#[case(&[("config.json", "{}"), ("tf_model.h5", "x")], "(tf_model.h5)", "save_pretrained")]
#[case(&[("config.json", "{}"), ("model.Q4.gguf", "GGUF")], "as GGUF", "gguf_file")]
#[case(&[("model.Q4.gguf", "GGUF")], "has GGUF", "gguf_file")]
#[case(&[("config.json", "{}")], "no weights", "download them")]
#[case(&[("config.json", "{}"), ("weights.safetensors", "x")], "has neither", "rename it")]
#[case(&[("config.json", "{}"), ("model-00001-of-00002.safetensors", "x")], "without model.safetensors.index.json", "the index")]
#[case(&[("config.json", "{}"), ("model.safetensors.index.json", PAGE)], "is a web page", "download")]
#[case(&[("adapter_config.json", "{\"base_model_name_or_path\": \"org/base\"}")], "an adapter (PEFT) of org/base", "this one as --adapter")]
#[case(&[("consolidated.00.pth", "PK"), ("params.json", "{}")], "as Meta publishes", "convert_llama_weights_to_hf")]
#[case(&[("checkpoint-5/config.json", "{}"), ("checkpoint-9/config.json", "{}")], "has no config.json", "checkpoint-9")]
fn what_is_no_checkpoint_is_named(
    #[case] files: &[(&str, &str)],
    #[case] what: &str,
    #[case] advice: &str,
) {
    let folder = with(files);
    let error = load(folder.path()).expect_err("no checkpoint");
    assert!(error.contains(what) && error.contains(advice), "{error}");
}

#[test]
fn paths_that_are_no_folder_are_named() {
    let here = with(&[
        ("config.json", "{}"),
        ("model.safetensors", "x"),
        ("x.gguf", "GGUF"),
    ]);
    for (path, what) in [
        (
            "HuggingFaceTB/SmolLM2-135M".into(),
            "hf download HuggingFaceTB/SmolLM2-135M --local-dir",
        ),
        ("gpt2".into(), "hf download gpt2"),
        (here.path().join("model.safetensors"), "give its folder"),
        (here.path().join("x.gguf"), "GGUF"),
        (here.path().join("other"), "is not there"),
        ("./no/such/folder".into(), "is not there"),
    ] {
        let error = load(&path).expect_err(what);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn the_hubs_cache_leads_to_its_snapshot() {
    let cache = with(&[
        ("models--org--name/refs/main", "b2"),
        ("models--org--name/snapshots/a1/config.json", "{}"),
        ("models--org--name/snapshots/b2/config.json", "{}"),
        ("models--org--none/blobs/x", ""),
    ]);
    let model = cache.path().join("models--org--name");
    let newest = model.join("snapshots/b2").display().to_string();
    for (path, found) in [
        (model.clone(), &newest),
        (model.join("snapshots"), &newest),
        (cache.path().to_owned(), &newest),
    ] {
        let error = load(&path).expect_err("a cache");
        assert!(error.contains("cache of the Hugging Face hub"), "{error}");
        assert!(error.contains(found), "{error}");
    }
    assert!(!load(&model).expect_err("a cache").contains("a1"));
}

/// A copy of the golden case with two shards, whose files and index may be changed.
struct Shards {
    folder: TempDir,
}

impl Shards {
    fn new() -> Self {
        let to = tempfile::tempdir().expect("a folder");
        let entries = std::fs::read_dir(folder("mistral-sharded")).expect("a case");
        for path in entries.map(|entry| entry.expect("a file").path()) {
            let name = path.file_name().expect("a name");
            if name.to_string_lossy().starts_with("model") || name == "config.json" {
                std::fs::copy(&path, to.path().join(name)).expect("a copy");
            }
        }
        Self { folder: to }
    }

    fn index(&self) -> Value {
        let path = self.folder.path().join("model.safetensors.index.json");
        serde_json::from_slice(&std::fs::read(path).expect("an index")).expect("JSON")
    }

    fn write_index(&self, index: &Value) {
        let path = self.folder.path().join("model.safetensors.index.json");
        std::fs::write(path, index.to_string()).expect("an index");
    }

    /// Put a tensor, changed, into a shard under a name.
    fn plant(&self, from: &str, tensor: &str, into: &str, name: &str) {
        let read = |file: &str| std::fs::read(self.folder.path().join(file)).expect("a shard");
        let (source, target) = (read(from), read(into));
        let of = |bytes| SafeTensors::deserialize(bytes).expect("safetensors");
        let planted = of(&source);
        let planted = planted.tensor(tensor).expect("a tensor");
        let changed: Vec<u8> = planted
            .data()
            .chunks_exact(4)
            .flat_map(|b| (f32::from_le_bytes(b.try_into().expect("4 bytes")) + 1.0).to_le_bytes())
            .collect();
        let view =
            TensorView::new(planted.dtype(), planted.shape().to_vec(), &changed).expect("a tensor");
        let there = of(&target);
        let mut tensors: Vec<(String, TensorView)> = there
            .tensors()
            .into_iter()
            .filter(|(known, _)| known != name)
            .collect();
        tensors.push((name.into(), view));
        let bytes = safetensors::serialize(tensors, None).expect("safetensors");
        std::fs::write(self.folder.path().join(into), bytes).expect("a shard");
    }
}

/// A tensor is the one of the shard that the index names, whatever else shards have.
#[test]
fn the_index_decides() {
    let shards = Shards::new();
    let index = shards.index();
    let map = index["weight_map"].as_object().expect("a map");
    let weights = |shards: &Shards| {
        load(shards.folder.path())
            .expect("a model")
            .weights()
            .expect("weights")
    };
    let before = weights(&shards);
    // One of each shard, copied into the other; the last file read must not win, nor the first.
    let files: std::collections::BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    assert_eq!(files.len(), 2);
    for file in &files {
        let other = files.iter().find(|other| *other != file).expect("another");
        let (tensor, _) = map.iter().find(|(_, of)| **of == **file).expect("a tensor");
        shards.plant(file, tensor, other, tensor);
        shards.plant(file, tensor, other, "model.unheard.of");
    }
    assert!(before.iter().eq(weights(&shards).iter()));

    // A tensor that its shard does not have, though another does.
    let (tensor, file) = map.iter().next().expect("a tensor");
    let other = files
        .iter()
        .find(|other| *file != **other)
        .expect("another");
    let mut wrong = index.clone();
    let absent = map
        .iter()
        .filter(|(_, of)| *of == file)
        .nth(1)
        .expect("another tensor")
        .0;
    wrong["weight_map"][absent] = json!(other);
    shards.write_index(&wrong);
    let error = load(shards.folder.path()).expect_err("it is not there");
    assert!(error.contains(absent) && error.contains(other), "{error}");
    // A tensor that the index forgets is not taken from where it is.
    let mut wrong = index.clone();
    wrong["weight_map"]
        .as_object_mut()
        .expect("a map")
        .remove(tensor);
    shards.write_index(&wrong);
    let error = load(shards.folder.path()).expect_err("it is not listed");
    assert!(
        error.contains("lacks tensors") && error.contains(&**tensor),
        "{error}"
    );
}

/// Run the program on a golden case.
fn run(case: &str, out: &Path, more: &[&str]) -> Result<(), String> {
    let model = folder(case);
    let task = |name: &str| format!("{name}={}", model.join(format!("{name}.jsonl")).display());
    let (alpha, beta) = (task("alpha"), task("beta_two"));
    let [model, out] = [&model, &out.to_owned()].map(|path| path.display().to_string());
    let arguments = [
        "fisher", "measure", "--model", &model, "--out", &out, "--task", &alpha, "--task", &beta,
    ];
    let arguments = arguments.iter().chain(more).map(|s| (*s).into());
    let cli = Cli::read(arguments).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())
}

/// Nothing is kept to compare samples by, and nothing compares them.
#[rstest]
#[case("1-4")]
#[case("1-3")]
#[case("2")]
fn nothing_has_to_be_compared(#[case] phases: &str) {
    let out = tempfile::tempdir().expect("a folder");
    run(
        "llama-gqa",
        out.path(),
        &["--compare", "none", "--phases", phases],
    )
    .expect("a run");
    assert!(!out.path().join("gradients").exists());
    let error = run("llama-gqa", out.path(), &["--compare", "none", "--resume"]);
    let error = error.expect_err("phases 5 and 6");
    assert!(error.contains("--compare none"), "{error}");
}

/// What is in the way and of somebody else stays, and is told before anything is measured.
#[rstest]
#[case("report.html", "<!doctype html><title>mine</title>")]
#[case("report.json", "{\"mine\": true}")]
#[case("results.safetensors", "mine")]
#[case("inputs.json", "[]")]
#[case("merged/model.safetensors", "mine")]
fn files_of_others_are_not_written_over(#[case] name: &str, #[case] text: &str) {
    let out = with(&[(name, text)]);
    for more in [&["--phases", "1"][..], &["--phases", "1", "--resume"]] {
        let error = run("llama-gqa", out.path(), more).expect_err("a foreign file");
        let first = name.split('/').next().expect("a name");
        assert!(
            error.contains(first) && error.contains("not of this program"),
            "{error}"
        );
        let there = std::fs::read_to_string(out.path().join(name)).expect("a file");
        assert_eq!(there, text);
        assert!(!out.path().join("statistics.safetensors").exists());
    }
    // One's own is.
    let own = tempfile::tempdir().expect("a folder");
    run("llama-gqa", own.path(), &["--phases", "1"]).expect("a run");
    run("llama-gqa", own.path(), &["--phases", "1-2", "--resume"]).expect("again");
    // But not what took its place.
    std::fs::write(own.path().join("report.html"), "mine").expect("a file");
    let error = run("llama-gqa", own.path(), &["--phases", "1", "--resume"]);
    assert!(error.expect_err("a foreign page").contains("report.html"));
}
