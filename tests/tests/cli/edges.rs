//! The report of what hardly has anything to report, and of a model of many layers and heads.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use fisher_cli::Cli;
use fisher_core::store::GradientStore;
use fisher_tests::golden::folder;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::program;

const VOCABULARY: usize = 31;

/// A LLaMA of made weights: heads of width 2.
struct Model {
    layers: usize,
    heads: usize,
    kv_heads: usize,
    /// Whether nothing changes its predictions.
    dead: bool,
}

impl Model {
    fn write(&self, folder: &Path) {
        let hidden = 2 * self.heads;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": 8, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": 2,
            "vocab_size": VOCABULARY, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": false,
        });
        let mut shapes = vec![
            (
                "model.embed_tokens.weight".to_owned(),
                vec![VOCABULARY, hidden],
            ),
            ("model.norm.weight".into(), vec![hidden]),
            ("lm_head.weight".into(), vec![VOCABULARY, hidden]),
        ];
        for layer in 0..self.layers {
            let kv = 2 * self.kv_heads;
            for (name, shape) in [
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("mlp.gate_proj", vec![8, hidden]),
                ("mlp.up_proj", vec![8, hidden]),
                ("mlp.down_proj", vec![hidden, 8]),
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let tensors = shapes.iter().enumerate().map(|(i, (name, shape))| {
            let dead = self.dead && ["model.norm.weight", "lm_head.weight"].contains(&&**name);
            let value = |k: usize| match (dead, shape.len()) {
                (true, _) => 0.0,
                (false, 1) => 1.0,
                _ => 0.5 * ((7 * i + 13 * k) as f32).sin(),
            };
            let values = (0..shape.iter().product()).map(value);
            (
                name.clone(),
                shape.clone(),
                values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>(),
            )
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
            (name.clone(), view)
        });
        std::fs::create_dir_all(folder).expect("a folder");
        let bytes = safetensors::serialize(views, None).expect("weights");
        std::fs::write(folder.join("model.safetensors"), bytes).expect("weights");
        std::fs::write(folder.join("config.json"), config.to_string()).expect("a file");
    }
}

/// What was written, as text without markup, and report.json.
struct Seen {
    work: TempDir,
    html: String,
    text: String,
    report: Value,
}

impl Seen {
    fn of(model: &Model, samples: [usize; 2], more: &[&str]) -> Self {
        let work = tempfile::tempdir().expect("a folder");
        let at = |name: &str| work.path().join(name);
        model.write(&at("model"));
        let mut arguments = vec!["fisher".into(), "measure".into(), "--model".into()];
        arguments.extend([at("model").display().to_string(), "--out".into()]);
        arguments.push(at("out").display().to_string());
        for (task, count) in ["first", "second"].into_iter().zip(samples) {
            if count == 0 {
                continue;
            }
            let mut lines = String::new();
            for i in 0..count {
                let step = if task == "first" { 3 } else { 8 };
                let tokens: Vec<usize> = (0..6 + i % 3).map(|t| (step * t + 5 * i) % 31).collect();
                writeln!(lines, r#"{{"input_ids": {tokens:?}}}"#).expect("a line");
            }
            std::fs::write(at(task), lines).expect("lines");
            arguments.extend(["--task".into(), format!("{task}={}", at(task).display())]);
        }
        arguments.extend(more.iter().map(|s| (*s).to_owned()));
        Cli::read(arguments)
            .expect("arguments")
            .run()
            .expect("a run");
        let html = std::fs::read_to_string(at("out/report.html")).expect("a page");
        let report = std::fs::read(at("out/report.json")).expect("a report");
        Self {
            text: plain(&html),
            html,
            report: serde_json::from_slice(&report).expect("JSON"),
            work,
        }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.work.path().join("out").join(name)
    }

    fn says(&self, words: &str) {
        assert!(
            self.text.contains(words),
            "`{words}` is not in: {}",
            self.text
        );
    }

    /// What is never said: numbers that are none, and a plural of one.
    fn is_sane(&self) {
        let ones = [
            " 1 samples",
            " 1 layers ",
            " 1 attention heads",
            " 1 active tokens",
            " 1 pairs ",
        ];
        for wrong in ["NaN", "inf,", "None", "not finite"]
            .into_iter()
            .chain(ones)
        {
            assert!(!self.text.contains(wrong), "`{wrong}` is in: {}", self.text);
        }
    }
}

/// The words of a page.
fn plain(html: &str) -> String {
    let body = html.split_once("</style>").map_or(html, |(_, body)| body);
    let mut text = String::new();
    let mut inside = false;
    for letter in body.chars() {
        match letter {
            '<' => inside = true,
            '>' => {
                inside = false;
                text.push(' ');
            }
            _ if !inside => text.push(letter),
            _ => {}
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

const SMALL: Model = Model {
    layers: 1,
    heads: 2,
    kv_heads: 1,
    dead: false,
};

#[test]
fn one_sample_has_no_error() {
    let seen = Seen::of(&SMALL, [1, 1], &["--phases", "1-4"]);
    seen.is_sane();
    seen.says("1 layer, each with 2 query heads that share 1 key/value head, and");
    seen.says("1 sample of first with 5 active tokens");
    seen.says("In the one sample of first");
    seen.says("of other samples that says nothing");
    seen.says(
        "First has one sample: nothing that is said of it has an error, an interval or a rank.",
    );
    seen.says("Query heads 0 to 1 share key/value head 0.");
}

#[test]
fn gradients_that_are_zero_rank_nothing() {
    let dead = Model {
        dead: true,
        ..SMALL
    };
    let seen = Seen::of(&dead, [3, 4], &[]);
    seen.is_sane();
    seen.says("In these samples of first every gradient is 0: no layer and no head counts more than another.");
    assert!(
        !seen.text.contains("has the largest share"),
        "{}",
        seen.text
    );
    // Logits are 0: the loss is the logarithm of the vocabulary, for every token.
    let loss = &seen.report["run"]["loss_per_token"]["first"];
    let mean = loss["mean"].as_f64().expect("a loss");
    assert!((mean - (VOCABULARY as f64).ln()).abs() < 1e-5, "{loss}");
}

#[test]
fn a_run_without_heads_speaks_of_none() {
    let seen = Seen::of(&SMALL, [4, 0], &["--params", r"\.mlp\."]);
    seen.is_sane();
    assert!(!seen.text.contains("of the heads"), "{}", seen.text);
    assert!(!seen.text.contains("Query heads 0 to 1"), "{}", seen.text);
    assert!(!seen.html.contains("<figure"), "no map of heads");
}

#[test]
fn losses_are_those_of_the_tokens() {
    let seen = Seen::of(&SMALL, [5, 4], &["--phases", "1-5"]);
    seen.is_sane();
    let task = &seen.report["tasks"]["second"];
    let list = |what: &str| -> Vec<f64> {
        let list = task[what].as_array().expect("a list");
        list.iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let (losses, tokens) = (list("loss_sum"), list("tokens"));
    let all: f64 = tokens.iter().sum();
    let mean = losses.iter().sum::<f64>() / all;
    let found = &seen.report["run"]["loss_per_token"]["second"];
    assert!((found["mean"].as_f64().expect("a mean") - mean).abs() < 1e-12);
    // The ratio's error by its residuals, and Student's quantile of three degrees of freedom.
    let squares: f64 = losses
        .iter()
        .zip(&tokens)
        .map(|(l, t)| (l - mean * t).powi(2))
        .sum();
    let error = (squares * 4.0 / 3.0).sqrt() / all;
    let upper = found["interval"][1].as_f64().expect("an end");
    assert!(
        (upper - mean - 3.182_446_305 * error).abs() < 1e-9,
        "{found}"
    );
    let mut rates: Vec<f64> = losses.iter().zip(&tokens).map(|(l, t)| l / t).collect();
    rates.sort_by(f64::total_cmp);
    let median = found["median"].as_f64().expect("a median");
    assert!((median - (rates[1] + rates[2]) / 2.0).abs() < 1e-12);
    assert!(
        seen.report["run"]["date"]
            .as_str()
            .expect("a date")
            .ends_with("UTC")
    );
    assert!(seen.report["run"]["seconds"].as_f64().expect("seconds") > 0.0);
    seen.says("first 5 "); // the file's name and its samples

    // Within the tasks two samples of one task are as alike as the loop says.
    let store = GradientStore::open(seen.out("gradients")).expect("a store");
    let slice = &seen.report["conflicts"]["raw"]["lm_head.weight"];
    let of = |task: &str| -> Vec<Vec<f32>> {
        let samples = store.samples(task).iter();
        let row = |s: &fisher_core::sample::Sample| {
            store
                .gradient(task, s.id(), "lm_head.weight")
                .expect("it")
                .into_owned()
        };
        samples.map(row).collect()
    };
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let within = ["first", "second"].map(|task| {
        let rows = of(task);
        let mut all = Vec::new();
        for i in 0..rows.len() {
            all.extend((0..i).map(|j| cosine(&rows[i], &rows[j])));
        }
        all.iter().sum::<f64>() / all.len() as f64
    });
    let number = |value: &Value| value.as_f64().expect("a number");
    let told = number(&slice["mean_cosine"]) - number(&slice["apart"]["statistic"]);
    assert!(
        (told - (within[0] + within[1]) / 2.0).abs() < 1e-5,
        "{told} and {within:?}"
    );
}

/// Where few samples tell nothing, that stands on top, with what it takes; and health begins with it.
#[test]
fn what_few_samples_do_not_tell_is_said_first() {
    let seen = Seen::of(&SMALL, [6, 6], &[]);
    seen.is_sane();
    let (top, rest) = seen.text.split_once("What was measured").expect("sections");
    let report = &seen.report["conflict_summary"]["raw"];
    if report["pairs"] == 0 {
        // Twelve parameters: log2(12 · 20) samples.
        let said = "6 + 6 samples are too few to find one in a single parameter, which takes 8 of each task at least";
        assert!(top.contains(said), "{top}");
    }
    // The tasks as wholes are on top too, and what is told of their cosine has a name.
    assert!(
        top.contains("The mean gradients of first and second (raw gradients"),
        "{top}"
    );
    assert!(!seen.text.contains('±'), "{}", seen.text);
    assert!(
        top.contains("need the same weights is not resolved: 6 and 6 samples are too few"),
        "{top}"
    );
    assert_eq!(
        seen.text.matches("need the same weights").count(),
        1,
        "{}",
        seen.text
    );

    let (_, health) = rest.rsplit_once("Health and warnings").expect("health");
    let health = health.trim_start();
    assert!(health.starts_with("Note. First:"), "{health}");
    assert!(
        health.contains("rest on fewer than 30 effective samples"),
        "{health}"
    );
    assert!(
        health.contains("No line and no sample was left out."),
        "{health}"
    );
    assert!(!health.contains("(fisher)"), "{health}");
    for said in [
        "F is in squared nats a token",
        "by the number of its line in the file, counted from 1",
        "κ across halves",
        "memory 2 GiB",
        "calls that it went on from are not counted",
    ] {
        seen.says(said);
    }
    for never in ["token_sum", "collection: draws", "slice"] {
        assert!(!seen.text.contains(never), "`{never}` is in: {}", seen.text);
    }
}

/// A report of some phases says which, how to have all, and on standard output what went.
#[test]
fn a_report_of_one_phase_says_so() {
    let seen = Seen::of(&SMALL, [4, 5], &["--phases", "6"]);
    seen.says(
        "This report is of phase 6 (interference) alone; phases 2 (importance), 3 (masks), 4 (overlap) and 5 \
         (conflicts) were not looked at. The same command with --resume and without --phases has all.",
    );
    let seen = Seen::of(&SMALL, [4, 5], &[]);
    assert!(!seen.text.contains("This report is of"), "{}", seen.text);
}

/// The page of a run of a golden family on one of its tasks, as text.
fn of_family(case: &str, more: &[&str]) -> String {
    let work = tempfile::tempdir().expect("a folder");
    let model = folder("families").join(case).display().to_string();
    let task = format!("alpha={model}/alpha.jsonl");
    let out = work.path().display().to_string();
    let fixed = [
        "measure", "--model", &model, "--task", &task, "--out", &out, "--phases", "1,2",
    ];
    program(&[&fixed[..], more].concat()).expect("a run");
    plain(&std::fs::read_to_string(work.path().join("report.html")).expect("a page"))
}

/// What F is of is said of models with experts, and by whose labels it was measured.
#[test]
fn what_is_taken_as_given_is_said() {
    let text = of_family("mixtral", &[]);
    for said in [
        "each token uses 2 of 8. Which ones is taken as given",
        "small random changes of these change the samples' loss much",
        "No line and no sample was left out.",
    ] {
        assert!(text.contains(said), "`{said}` is not in: {text}");
    }
    let text = of_family("llama-bias", &["--kind", "monte-carlo"]);
    assert!(!text.contains("of experts"), "{text}");
    let said = "small random changes of these change what the model predicts for the samples much";
    assert!(text.contains(said), "{text}");
}

/// As many layers and heads as SmolLM2-135M has.
#[test]
fn many_layers_and_heads_make_a_small_page() {
    let model = Model {
        layers: 30,
        heads: 9,
        kv_heads: 3,
        dead: false,
    };
    let seen = Seen::of(&model, [24, 24], &["--batch-tokens", "64"]);
    seen.is_sane();
    seen.says("Query heads 0 to 2 share key/value head 0, 3 to 5 share key/value head 1");
    assert!(seen.html.len() < 2_000_000, "{} bytes", seen.html.len());
    if let Ok(folder) = std::env::var("FISHER_KEEP_PAGE") {
        std::fs::copy(seen.out("report.html"), folder).expect("a copy");
    }
}
