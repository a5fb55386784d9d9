//! Every family of models against transformers in float64.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fisher_cli::models::{Adapter, Checkpoint, Loading, ModelConfig, Sequence, Sequences};
use fisher_cli::samples::{Reader, TaskFile};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_tests::backend::Backend;
use fisher_tests::golden::folder;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::check;
use fisher_train::collect::CollectorConfig;
use fisher_train::labels::IGNORE;
use rstest::rstest;
use safetensors::SafeTensors;
use serde_json::Value;

/// Relative to the largest element of a parameter: what float32 leaves of gradients and their squares.
const TOLERANCE: f64 = 2e-5;

/// The same of M2, where squares are squared once more and a mean is taken off: of all configurations
/// two, positions scaled linearly in Gemma 3 and one adapter, are beyond 2e-5.
const OF_M2: f64 = 6e-5;

pub(crate) const TASKS: [&str; 2] = ["alpha", "beta"];

fn families() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(folder("families")).expect("families");
    let folders = folders.map(|entry| entry.expect("a folder").path());
    // Its samples are longer than what the model takes, and are refused; transformers scales its positions by them.
    let beyond = |path: &PathBuf| path.ends_with("llama-rope-dynamic-beyond");
    let folders = folders.filter(|path| path.is_dir() && !beyond(path));
    let mut folders: Vec<PathBuf> = folders.collect();
    folders.sort();
    folders
}

pub(crate) fn samples(file: &Path) -> Vec<Sequence> {
    let lines = std::fs::read_to_string(file).expect("samples");
    let sample = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let list = |key: &str| -> Option<Vec<i64>> {
            row[key].as_array()?.iter().map(Value::as_i64).collect()
        };
        let tokens = list("input_ids").expect("tokens");
        let class = row["label"].as_u64().map(|class| class as usize);
        let labels = match class {
            Some(_) => vec![IGNORE; tokens.len()],
            None => list("labels").unwrap_or_else(|| tokens.clone()),
        };
        Sequence {
            id: row["id"].as_str().expect("an id").into(),
            document: None,
            tokens,
            labels,
            class,
        }
    };
    lines.lines().map(sample).collect()
}

/// How far numbers are from the oracle's, in units of what is allowed.
#[derive(Debug, Default)]
struct Distance {
    loss: f64,
    mean: f64,
    m2: f64,
    traced: bool,
}

/// Numbers of a golden file.
struct Expected<'a> {
    tensors: SafeTensors<'a>,
    /// Begins their names.
    prefix: &'a str,
    /// Parameters whose gradient is 0 but for rounding.
    zero: Vec<String>,
}

impl Expected<'_> {
    fn numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        let tensor = self.tensors.tensor(&format!("{}{name}", self.prefix));
        let tensor = tensor.map_err(|e| format!("{name}: {e}"))?;
        let number = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().expect("4 bytes")));
        Ok(tensor.data().chunks_exact(4).map(number).collect())
    }

    /// The largest distance of a parameter's means or M2, relative to their largest. A parameter
    /// whose gradient is 0 is held against the largest of all.
    fn distance(
        &self,
        what: &str,
        found: &BTreeMap<String, Vec<f64>>,
        task: &str,
    ) -> Result<f64, String> {
        let largest = |numbers: &[f64]| numbers.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let all = found
            .values()
            .map(|found| largest(found))
            .fold(0.0, f64::max);
        let mut worst: f64 = 0.0;
        for (path, found) in found {
            let expected = self.numbers(&format!("{task}/{what}/{path}"))?;
            assert_eq!(expected.len(), found.len(), "{path}");
            let scale = if self.zero.contains(path) {
                all
            } else {
                largest(&expected)
            };
            let apart: Vec<f64> = found.iter().zip(&expected).map(|(f, e)| f - e).collect();
            let apart = largest(&apart);
            let apart = if apart == 0.0 { 0.0 } else { apart / scale };
            if apart > OF_M2 {
                eprintln!("{task} {what} of {path}: {apart:.1e}");
            }
            worst = worst.max(apart);
        }
        Ok(worst)
    }
}

/// Measure the tasks of `data` by `checkpoint`, `size` samples at a time.
fn measure(
    checkpoint: &Checkpoint,
    data: &Path,
    numbers: &Path,
    prefix: &str,
    size: usize,
    device: &Device,
) -> Result<Distance, String> {
    let tracked = device.clone().autodiff();
    let read = |file: &str| std::fs::read(numbers.join(file)).expect("a golden file");
    let told: Value = serde_json::from_slice(&read("expected.json")).expect("JSON");
    let bytes = read("expected.safetensors");
    let zero = told["zero"].as_array().into_iter().flatten();
    let expected = Expected {
        tensors: SafeTensors::deserialize(&bytes).expect("safetensors"),
        prefix,
        zero: zero
            .map(|path| path.as_str().expect("a name").into())
            .collect(),
    };
    let Checkpoint {
        catalogue, heads, ..
    } = checkpoint;
    let hash = checkpoint.hash().expect("a hash");
    let statistics = StatisticsConfig::new().init_for(catalogue, heads, hash, device);
    let mut statistics: Statistics = statistics.map_err(|e| e.to_string())?;
    let collector = CollectorConfig::new().with_progress(false).init();
    let collector = collector
        .expect("a collector")
        .with_names(checkpoint.naming.names());
    let mut distance = Distance {
        traced: true,
        ..Distance::default()
    };
    for task in TASKS {
        let samples = samples(&data.join(format!("{task}.jsonl")));
        let batch = |samples: &[Sequence]| Sequences::new(samples, &tracked);
        let batches: Vec<Sequences> = samples.chunks(size).map(batch).collect();
        let losses = batches.iter().flat_map(|batch| {
            let losses = checkpoint.model.sample_losses(batch);
            let sums = losses.sums().clone().inner().into_data();
            sums.iter::<f64>().collect::<Vec<_>>()
        });
        if let (Some(golden), true) = (told[task]["loss_sum"].as_array(), prefix.is_empty()) {
            for (found, expected) in losses.zip(golden) {
                let expected = expected.as_f64().expect("a loss");
                distance.loss = distance.loss.max((found - expected).abs() / expected.abs());
            }
        }
        let checkup = check(&checkpoint.model, &batch(&samples[..3])).map_err(|e| e.to_string())?;
        if !checkup.is_sound() {
            return Err(checkup.to_string());
        }
        distance.traced &= checkup.is_fast();
        collector
            .collect_batches(&checkpoint.model, task, batches, &mut statistics)
            .map_err(|e| e.to_string())?;
        let (mut means, mut m2s) = (BTreeMap::new(), BTreeMap::new());
        for (path, parameter) in statistics.task(task).expect("a task").parameters() {
            let elements = parameter.elementwise().expect("elements");
            let moments = elements.read().expect("moments");
            let degrees = (moments.count - 1) as f64;
            let variance = moments.variance.expect("variances");
            m2s.insert(
                path.to_owned(),
                variance.iter().map(|v| v * degrees).collect(),
            );
            means.insert(path.to_owned(), moments.mean.expect("means"));
        }
        distance.mean = distance.mean.max(expected.distance("mean", &means, task)?);
        distance.m2 = distance.m2.max(expected.distance("m2", &m2s, task)?);
    }
    Ok(distance)
}

/// Of each kind of part one: a device compiles each of its kernels, which takes seconds a model.
const FEW: [&str; 7] = [
    "bert",
    "bloom",
    "falcon-new",
    "gemma2",
    "gpt_neox",
    "phi3-longrope-long",
    "qwen3_moe",
];

/// Means, M2 and losses of every configuration, at the price of a traced pass.
#[rstest]
#[case(Backend::Flex, 4)]
#[case(Backend::Flex, 1)]
#[case(Backend::Ndarray, 4)]
#[case(Backend::Wgpu, 4)]
fn families_agree_with_transformers(#[case] backend: Backend, #[case] size: usize) {
    let Some(device) = backend.device() else {
        return;
    };
    // Other devices round elsewhere: the worst is a little worse.
    let slack = if backend == Backend::Flex { 1.0 } else { 1.5 };
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for folder in families() {
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if backend == Backend::Wgpu && !FEW.contains(&&*name) {
            continue;
        }
        let checkpoint = Checkpoint::load(&folder, &device.clone().autodiff());
        let found = checkpoint.map_err(|e| e.to_string());
        match found.and_then(|it| measure(&it, &folder, &folder, "", size, &device)) {
            Ok(of) => {
                let Distance {
                    loss,
                    mean,
                    m2,
                    traced,
                } = of;
                let _ = writeln!(
                    table,
                    "| {name} | {loss:.0e} | {mean:.0e} | {m2:.0e} | {traced} |"
                );
                if loss.max(mean) > slack * TOLERANCE || m2 > slack * OF_M2 || !traced {
                    wrong.push(name);
                }
            }
            Err(error) => {
                let _ = writeln!(table, "| {name} | {error} |");
                wrong.push(name);
            }
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The two factors of each matrix, and the weights that they are merged into.
#[rstest]
#[case("query-value")]
#[case("rslora")]
fn adapters_agree_with_peft(#[case] name: &str, #[values(false, true)] merged: bool) {
    let device = Backend::Flex.device().expect("a CPU");
    let base = folder("families").join("llama-lora");
    let adapter = Adapter {
        folder: base.join("adapters").join(name),
        merged,
    };
    let loading = Loading {
        adapter: Some(adapter.clone()),
        ..Default::default()
    };
    let checkpoint = Checkpoint::load_with(&base, &loading, &device.clone().autodiff());
    let checkpoint = checkpoint.expect("an adapted model");
    let prefix = if merged { "merged/" } else { "" };
    for size in [1, 4] {
        let distance = measure(&checkpoint, &base, &adapter.folder, prefix, size, &device);
        let distance = distance.expect("numbers");
        println!("{name} {merged}: {distance:?}");
        let Distance {
            loss,
            mean,
            m2,
            traced,
        } = distance;
        assert!(loss.max(mean) < TOLERANCE && m2 < OF_M2 && traced);
    }
}

/// Samples that are longer than the model takes are refused, also where transformers would turn positions slower
/// for them, and where some positions are of no token.
#[rstest]
#[case("llama-rope-dynamic-beyond", 12, 6)]
#[case("roberta", 31, 30)]
fn samples_beyond_the_longest_are_refused(
    #[case] case: &str,
    #[case] tokens: usize,
    #[case] longest: usize,
) {
    let model = folder("families").join(case);
    let config = ModelConfig::read(&model).expect("a model");
    let here = tempfile::tempdir().expect("a folder");
    let path = match case {
        "roberta" => {
            let row = |length| format!("{{\"input_ids\": {:?}, \"label\": 0}}", vec![5; length]);
            let path = here.path().join("lines.jsonl");
            std::fs::write(&path, format!("{}\n{}", row(tokens), row(longest))).expect("a file");
            path
        }
        _ => model.join("alpha.jsonl"),
    };
    let name = "alpha".into();
    let task = TaskFile { name, path };
    let mut reader = Reader::new(&config, &model);
    let error = reader.read(&task).expect_err("too long").to_string();
    let said = format!(
        "line 1: {tokens} tokens are more than the {longest} that the model takes (max_position_embeddings)"
    );
    assert!(error.contains(&said), "{error}");
    // Only those are.
    reader.skip_bad = true;
    let data = reader.read(&task).expect("samples");
    assert!(data.bad.iter().all(|bad| bad.reason.contains("more than")));
    let lengths = data.samples.iter().map(|sample| sample.tokens.len());
    let (lengths, expected): (Vec<usize>, &[usize]) = match case {
        "roberta" => (lengths.collect(), &[30]),
        _ => (lengths.collect(), &[5, 4]),
    };
    assert_eq!(lengths, expected);
}

/// A configuration means the same as transformers 4 wrote it.
#[test]
fn older_files_mean_the_same() {
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
    };
    let root = folder("families");
    let older = read(&root.join("older.json"));
    for (case, config) in older.as_object().expect("configurations") {
        let newer = ModelConfig::read(&root.join(case));
        let Ok(newer) = newer else { continue };
        let older = ModelConfig::parse(config).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_eq!(older, newer, "{case}");
    }
}
