//! `fisher measure --per-token`: what the labels of a sample lose is what the sample loses.

use burn::tensor::Device;
use fisher_cli::Cli;
use fisher_cli::measure::tokens_of;
use fisher_cli::models::{Checkpoint, Naming, Sequence, Sequences};
use fisher_cli::samples::{Reader, TaskFile};
use fisher_core::model::Catalogue;
use fisher_core::read;
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use fisher_train::batch::SampleLoss;
use fisher_train::capture::PerSample;
use serde_json::Value;

/// A run of both tasks of a golden case; its tokens.json and its page.
fn run(case: &str, per_token: &[&str]) -> Result<(Value, String), String> {
    let out = tempfile::tempdir().expect("a folder");
    let (model, to) = (
        folder(case).display().to_string(),
        out.path().display().to_string(),
    );
    let tasks = TASKS.map(|task| format!("{task}={model}/{task}.jsonl"));
    let mut arguments = vec![
        "fisher", "measure", "--model", &model, "--out", &to, "--phases", "1,2",
    ];
    arguments.extend(tasks.iter().flat_map(|task| ["--task", task]));
    arguments.extend(per_token.iter().flat_map(|which| ["--per-token", which]));
    let cli = Cli::read(arguments.into_iter().map(str::to_owned)).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())?;
    let read = |file: &str| std::fs::read_to_string(out.path().join(file)).expect("a file");
    Ok((
        serde_json::from_str(&read("tokens.json")).expect("JSON"),
        read("report.html"),
    ))
}

fn samples(case: &str, task: &str) -> Vec<Sequence> {
    let checkpoint = checkpoint(case);
    let reader = Reader::new(&checkpoint.config, &checkpoint.folder);
    let path = folder(case).join(format!("{task}.jsonl"));
    let file = TaskFile {
        name: task.into(),
        path,
    };
    reader.read(&file).expect("samples").samples
}

fn checkpoint(case: &str) -> Checkpoint {
    Checkpoint::load(&folder(case), &Device::flex().autodiff()).expect("a model")
}

/// The loss of a sample, and its gradient by parameter.
type OfSample = (f64, Vec<(String, Vec<f64>)>);

/// By the loop, parameter by parameter: gradients and loss of each of some samples.
fn by_loop(case: &str, samples: &[Sequence]) -> Vec<OfSample> {
    fn of<M: SampleLoss<Batch = Sequences>>(
        model: &M,
        naming: &Naming,
        samples: &[Sequence],
    ) -> Vec<OfSample> {
        let name = |path: &str| naming.get(path).expect("a name").name.clone();
        let catalogue = Catalogue::of(model).expect("parameters");
        let paths = catalogue.parameters().iter().map(|p| p.path());
        let loops = PerSample::new(model, paths).expect("a loop");
        let batch = Sequences::new(samples, &Device::flex().autodiff());
        let one = |index| {
            let found = loops.gradient(&batch, index).expect("a gradient");
            let gradients = found.gradients.iter();
            let gradients =
                gradients.map(|(path, g)| (name(path), read(g.to_full()).expect("values")));
            (found.loss, gradients.collect())
        };
        (0..samples.len()).map(one).collect()
    }
    let checkpoint = checkpoint(case);
    of(&checkpoint.model, &checkpoint.naming, samples)
}

/// Losses of labels add up to the golden loss of the sample, their gradients to its gradient, and the norms written are theirs.
#[test]
fn labels_add_up_to_their_sample() {
    for case in CASES {
        let golden = Golden::load(case);
        let (found, page) = run(case, &["2"]).expect("a run");
        let found = found.as_array().expect("samples");
        assert_eq!(found.len(), 4, "two of each task");
        assert!(page.contains("Token by token"));
        for (task, at) in TASKS.into_iter().flat_map(|task| [(task, 0), (task, 1)]) {
            let sample = samples(case, task)[at].clone();
            let named = |one: &&Value| {
                one["task"] == task && one["id"].to_string().trim_matches('"') == sample.id
            };
            let rows = found.iter().find(named).expect("the sample")["tokens"].as_array();
            let rows = rows.expect("tokens");
            assert_eq!(rows.len(), sample.tokens.len());
            let labels: Vec<&Value> = rows.iter().filter(|row| !row["loss"].is_null()).collect();
            assert_eq!(labels.len(), sample.active());
            let number = |row: &Value, key: &str| row[key].as_f64().expect("a number");
            let sum: f64 = labels.iter().map(|row| number(row, "loss")).sum();
            let expected = golden.expected(&format!("/tasks/{task}/loss_sum/{at}"));
            let expected = expected.as_f64().expect("a loss");
            assert!(
                (sum - expected).abs() < 2e-5 * expected,
                "{case} {task} {at}: {sum} {expected}"
            );

            // Apart from the program: each label's gradient by the loop.
            let singles = by_loop(case, &tokens_of(&sample));
            let (_, whole) = by_loop(case, std::slice::from_ref(&sample)).remove(0);
            for (which, (path, whole)) in whole.iter().enumerate() {
                let mut sum = vec![0.0; whole.len()];
                for (_, gradients) in &singles {
                    assert_eq!(gradients[which].0, *path);
                    sum.iter_mut()
                        .zip(&gradients[which].1)
                        .for_each(|(sum, g)| *sum += g);
                }
                let distance = |a: &[f64], b: &[f64]| -> f64 {
                    a.iter()
                        .zip(b)
                        .map(|(a, b)| (a - b).powi(2))
                        .sum::<f64>()
                        .sqrt()
                };
                let size = distance(whole, &vec![0.0; whole.len()]);
                assert!(distance(&sum, whole) <= 1e-4 * size + 1e-6, "{case} {path}");
            }
            for (row, (loss, gradients)) in labels.iter().zip(&singles) {
                assert!((number(row, "loss") - loss).abs() < 1e-5);
                let square: f64 = gradients.iter().flat_map(|(_, g)| g).map(|g| g * g).sum();
                let norm = number(row, "gradient_norm");
                assert!(
                    (norm - square.sqrt()).abs() < 1e-4 * norm,
                    "{norm} {}",
                    square.sqrt()
                );
                // The largest layer's share, added up here.
                let top = &row["layers"][0];
                let name = top["name"].as_str().expect("a name").replace("model.", "");
                let share: f64 = gradients
                    .iter()
                    .filter(|(path, _)| path.contains(&format!("{name}.")))
                    .flat_map(|(_, g)| g)
                    .map(|g| g * g)
                    .sum::<f64>()
                    / square;
                let found = number(top, "share");
                assert!(
                    (share - found).abs() < 1e-3,
                    "{case} {name}: {share} {found}"
                );
                assert!(
                    row["heads"]
                        .as_array()
                        .is_some_and(|heads| heads.len() == 3)
                );
            }
        }
    }
}

#[test]
fn samples_are_found_by_id_or_refused_before_anything_is_measured() {
    let (found, _) = run("llama-gqa", &["id:13"]).expect("a run");
    let found = found.as_array().expect("samples");
    assert!(found.iter().all(|sample| sample["id"] == 13) && !found.is_empty());
    let tokens = found[0]["tokens"].as_array().expect("tokens");
    // Its first three labels do not count, nor does the first token ever.
    assert!(tokens[..3].iter().all(|row| row["loss"].is_null()));
    assert!(tokens[3..].iter().all(|row| row["loss"].is_number()));
    let error = run("llama-gqa", &["id:nobody"]).expect_err("no such sample");
    assert!(error.contains("no task has a sample `nobody`"), "{error}");
}
