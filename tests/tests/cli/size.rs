//! What a run takes, and how it is interrupted.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fisher_cli::Cli;
use fisher_cli::interrupt::{INTERRUPTED, Interrupted, listen};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{Case, program};

const ARGUMENTS: &str = "FISHER_TEST_ARGUMENTS";

/// The program in a process of its own, where it is started as such.
#[test]
fn child() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Vec<String> = serde_json::from_str(&arguments).expect("a list");
    listen().expect("signals");
    let cli = Cli::read(arguments).expect("a command line");
    let code = match cli.run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            error
                .downcast_ref::<Interrupted>()
                .map_or(1, |_| INTERRUPTED.into())
        }
    };
    std::process::exit(code);
}

fn process(arguments: &[&str]) -> Command {
    let arguments: Vec<&str> = std::iter::once(&"fisher")
        .chain(arguments)
        .copied()
        .collect();
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args([
            "size::child",
            "--exact",
            "--nocapture",
            "--test-threads",
            "1",
        ])
        .env(ARGUMENTS, json!(arguments).to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A LLaMA of random weights, and two files of samples.
struct Subject {
    folder: TempDir,
    samples: usize,
}

impl Subject {
    fn new(width: usize, layers: usize, vocabulary: usize, samples: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (inner, heads) = (2 * width, 4);
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary,
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true,
            "max_position_embeddings": 64,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![vocabulary, width],
            ),
            ("model.norm.weight".to_owned(), vec![width]),
        ];
        for layer in 0..layers {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((
                    format!("model.layers.{layer}.{name}.weight"),
                    shape.to_vec(),
                ));
            };
            add("self_attn.q_proj", &[width, width]);
            add("self_attn.k_proj", &[width / 2, width]);
            add("self_attn.v_proj", &[width / 2, width]);
            add("self_attn.o_proj", &[width, width]);
            add("mlp.gate_proj", &[inner, width]);
            add("mlp.up_proj", &[inner, width]);
            add("mlp.down_proj", &[width, inner]);
            add("input_layernorm", &[width]);
            add("post_attention_layernorm", &[width]);
        }
        let mut state = 1u64;
        let mut weight = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.2
        };
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .into_iter()
            .map(|(name, shape)| {
                let elements = shape.iter().product::<usize>();
                let bytes = (0..elements).flat_map(|_| weight().to_le_bytes()).collect();
                (name, shape, bytes)
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name.clone(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor"),
            )
        });
        let file = safetensors::serialize(views, None).expect("safetensors");
        std::fs::write(folder.path().join("model.safetensors"), file).expect("a file");
        for (task, step) in [("a", 7), ("b", 11)] {
            let lines = (0..samples).map(|i| {
                let tokens: Vec<usize> = (0..6 + i % 9)
                    .map(|t| (step * (t + i) + i) % vocabulary)
                    .collect();
                json!({ "id": format!("{task}{i}"), "input_ids": tokens }).to_string()
            });
            let lines: Vec<String> = lines.collect();
            std::fs::write(folder.path().join(task), lines.join("\n")).expect("a file");
        }
        Self { folder, samples }
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The command that measures it.
    fn command(&self, out: &str, more: &[&str]) -> Vec<String> {
        let [a, b] = ["a", "b"].map(|task| format!("{task}={}", self.at(task)));
        let mut command: Vec<String> = [
            "measure",
            "--model",
            &self.at(""),
            "--task",
            &a,
            "--task",
            &b,
            "--out",
            &self.at(out),
        ]
        .map(str::to_owned)
        .to_vec();
        command.extend(more.iter().map(|flag| (*flag).to_owned()));
        command
    }

    fn run(&self, out: &str, more: &[&str]) {
        let command = self.command(out, more);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        program(&command).expect("a run");
    }

    fn started(&self, out: &str, more: &[&str]) -> Command {
        let command = self.command(out, more);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        process(&command)
    }

    fn bytes(&self, file: &str) -> u64 {
        let path = self.folder.path().join(file);
        if path.is_dir() {
            let files = std::fs::read_dir(&path).expect("a folder");
            let sizes = files.map(|file| file.expect("a file").metadata().expect("it").len());
            return sizes.sum();
        }
        path.metadata().map_or(0, |file| file.len())
    }
}

/// What is told of a part in a line such as `Disk: about 3.1 MB (statistics 1.2 MB, gradients 1.9 MB)`.
fn told(output: &Output, line: &str, part: &str) -> f64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|l| l.starts_with(line));
    let line = line.unwrap_or_else(|| panic!("no such line in {text}"));
    let (_, rest) = line
        .split_once(part)
        .unwrap_or_else(|| panic!("no {part} in {line}"));
    let mut words = rest.split_whitespace();
    let number: f64 = words.next().and_then(|n| n.parse().ok()).expect("a number");
    let unit = words
        .next()
        .expect("a unit")
        .trim_matches(|c: char| !c.is_alphabetic());
    number
        * [("kB", 1e3), ("MB", 1e6), ("GB", 1e9)]
            .iter()
            .find(|(u, _)| *u == unit)
            .expect("a unit")
            .1
}

/// What is told of the disk beforehand is what is there afterwards.
#[test]
fn the_disk_is_as_forecast() {
    let subject = Subject::new(64, 2, 512, 12);
    for (out, more) in [
        ("all", &[][..]),
        (
            "half",
            &[
                "--compare",
                "attention",
                "--precision",
                "half",
                "--elements",
                "none",
            ],
        ),
        (
            "saved",
            &[
                "--save-elements",
                "--save-pairs",
                "--save-gradients",
                "--scale",
                "1/0.1",
            ],
        ),
    ] {
        let output = subject.started(out, more).output().expect("a process");
        assert!(output.status.success(), "{output:?}");
        for (part, file) in [
            ("statistics", "statistics.safetensors"),
            ("gradients", "gradients"),
            ("results", "results.safetensors"),
        ] {
            let (told, found) = (
                told(&output, "Disk:", part),
                subject.bytes(&format!("{out}/{file}")) as f64,
            );
            assert!(
                (-0.05 * found - 4096.0..=0.15 * found + 4096.0).contains(&(told - found)),
                "{out}: {part} {told} told, {found} found"
            );
        }
    }
}

/// The report does not grow with pairs of samples; numbers of all of them are where they are asked for.
#[test]
fn the_report_knows_no_product_of_samples() {
    let sizes = [6, 24].map(|samples| {
        let subject = Subject::new(16, 1, 64, samples);
        subject.run("out", &[]);
        subject.bytes("out/report.json") as f64
    });
    assert!(sizes[1] < 4.0 * sizes[0], "{sizes:?}");
    let subject = Subject::new(16, 1, 64, 6);
    subject.run("out", &["--save-pairs", "--save-elements"]);
    let bytes = std::fs::read(subject.at("out/results.safetensors")).expect("results");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let name = "model.layers.0.self_attn.q_proj.weight";
    let n = subject.samples;
    for (tensor, shape) in [
        (format!("conflicts/raw/cosine/{name}"), vec![n, n]),
        (format!("conflicts/fisher/q/{name}"), vec![n, n]),
        ("interference/default/Q".into(), vec![n, n, 1, 4]),
        (format!("a/mean/{name}"), vec![16, 16]),
        (format!("b/mask/global@0.5/head.Q/{name}"), vec![4]),
    ] {
        let view = file
            .tensor(&tensor)
            .unwrap_or_else(|_| panic!("no `{tensor}` in {:?}", file.names()));
        assert_eq!(view.shape(), shape, "{tensor}");
    }
    let report = std::fs::read(subject.at("out/report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    let slice = &report["conflicts"]["raw"][name];
    assert!(slice["verdict"].is_string() && slice.get("pairs").is_none());
}

/// A first Ctrl-C ends the batch, saves, and says how to go on; the run then ends with the same bytes.
#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_it_goes_on() {
    let subject = Subject::new(64, 4, 512, 120);
    let fixed = [
        "--batch-tokens",
        "16",
        "--save-every",
        "1",
        "--phases",
        "1-2",
    ];
    let child = subject.started("out", &fixed).spawn().expect("a process");
    let statistics = subject.at("out/statistics.safetensors");
    let start = Instant::now();
    while !Path::new(&statistics).exists() {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "nothing was saved"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill").success());
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(
        said.contains("--resume") && said.contains("of 120 samples of task `a`"),
        "{said}"
    );
    assert!(said.contains("no sample of task `b`"), "{said}");
    assert!(said.contains("Stopping after this batch"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    subject.run("out", &[&fixed[..], &["--resume"]].concat());
    subject.run("whole", &fixed);
    let read = |out: &str| std::fs::read(subject.at(&format!("{out}/statistics.safetensors")));
    assert!(read("out").expect("it") == read("whole").expect("it"));
}

/// Gradients in half precision tell the same.
#[test]
fn half_precision_compares_as_full_does() {
    let case = Case::new("llama-gqa");
    case.run("full", &[]).expect("a run");
    case.run("half", &["--precision", "half"]).expect("a run");
    let [full, half] = ["full", "half"].map(|out| case.report(out));
    for (name, slice) in full["conflicts"]["raw"].as_object().expect("slices") {
        let [a, b] = [slice, &half["conflicts"]["raw"][name]].map(|s| s["mean_cosine"].as_f64());
        let (a, b) = (a.unwrap_or(0.0), b.unwrap_or(0.0));
        assert!((a - b).abs() < 1e-3, "{name}: {a} and {b}");
    }
}
