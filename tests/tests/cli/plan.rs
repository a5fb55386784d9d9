//! `fisher plan`: choices against all choices, scores against the numbers of the golden cases, rounding against rounding, and plans against
//! measured losses.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use fisher_cli::Cli;
use fisher_cli::measure::Selection;
use fisher_cli::models::Checkpoint;
use fisher_cli::plan::{By, Item, Source, bits, choose, rank, resolve, tie_groups};
use fisher_tests::golden::{CASES, Golden, TASKS, folder};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;

fn program(arguments: &[&str]) -> Result<(), String> {
    let arguments = std::iter::once(&"fisher").chain(arguments);
    let cli = Cli::read(arguments.map(|s| (*s).into())).map_err(|e| e.to_string())?;
    cli.run().map_err(|e| e.to_string())
}

/// Runs of both tasks of a golden case, with gradients kept or not.
struct Run {
    case: &'static str,
    out: TempDir,
}

impl Run {
    fn new(case: &'static str, more: &[&str]) -> Self {
        let run = Self {
            case,
            out: tempfile::tempdir().expect("a folder"),
        };
        let (model, out) = (run.model(), run.folder());
        let tasks = TASKS.map(|task| run.task(task));
        let mut arguments = vec!["measure", "--model", &model, "--out", &out];
        arguments.extend(tasks.iter().flat_map(|task| ["--task", task]));
        arguments.extend(more);
        program(&arguments).expect("a run");
        run
    }

    fn model(&self) -> String {
        folder(self.case).display().to_string()
    }

    fn folder(&self) -> String {
        self.out.path().display().to_string()
    }

    fn task(&self, task: &str) -> String {
        format!("{task}={}/{task}.jsonl", self.model())
    }

    fn plan(&self, more: &[&str]) -> Result<Value, String> {
        let (model, out, file) = (
            self.model(),
            self.folder(),
            self.file().display().to_string(),
        );
        let mut arguments = vec!["plan", "--run", &out, "--model", &model, "--out", &file];
        arguments.extend(more);
        program(&arguments)?;
        let bytes = std::fs::read(self.file()).expect("a plan");
        Ok(serde_json::from_slice(&bytes).expect("JSON"))
    }

    fn file(&self) -> PathBuf {
        self.out.path().join("plan.json")
    }

    fn source(&self, task: Option<&str>) -> (Source, Checkpoint) {
        let device = Device::flex();
        let checkpoint = Checkpoint::load(&folder(self.case), &device.clone().autodiff());
        let checkpoint = checkpoint.expect("a model");
        let (run, all) = (Path::new(self.out.path()), Selection::All);
        let source = Source::open(run, Some(&checkpoint), task, &all, &device);
        (source.expect("a run"), checkpoint)
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let item = (
        1u64..6,
        prop::collection::vec(0.0f64..1.0, 4),
        any::<bool>(),
    );
    let item = item.prop_map(|(size, drops, rising)| {
        let mut cost = 4.0;
        let costs = drops.into_iter().map(|drop| {
            // Now and then a level is worse than the one before, or not worth its step.
            cost -= if rising { drop - 0.2 } else { drop };
            cost
        });
        Item {
            size,
            levels: vec![2, 3, 4, 8],
            costs: costs.collect(),
        }
    });
    prop::collection::vec(item, 1..6)
}

/// The least cost of all choices, and what it spends.
fn by_force(items: &[Item], budget: u64) -> Option<f64> {
    let Some((first, rest)) = items.split_first() else {
        return Some(0.0);
    };
    let levels = first.levels.iter().zip(&first.costs);
    let of = levels.filter_map(|(level, cost)| {
        let left = budget.checked_sub(first.size * u64::from(*level))?;
        Some(cost + by_force(rest, left)?)
    });
    of.reduce(f64::min)
}

proptest! {
    /// The optimum of all choices lies between the bound and the choice, and is the choice where its budget is used to the end of a step.
    #[test]
    fn choices_are_as_good_as_any(items in items(), budget in 0u64..200) {
        let singles: Vec<Vec<usize>> = (0..items.len()).map(|at| vec![at]).collect();
        let best = by_force(&items, budget);
        let Some(choice) = choose(&items, &singles, budget) else {
            prop_assert_eq!(best, None);
            return Ok(());
        };
        let best = best.expect("a choice");
        prop_assert!(choice.spent <= budget);
        prop_assert!(choice.bound <= best + 1e-9, "bound {} of {best}", choice.bound);
        prop_assert!(best <= choice.cost + 1e-9, "{} better than {best}", choice.cost);
        // With the budget that it spends up to its last whole step it is the optimum: nothing is lost but the end.
        if let Some(exact) = choose(&items, &singles, choice.spent) && (exact.bound - exact.cost).abs() < 1e-12 {
            let best = by_force(&items, choice.spent).expect("a choice");
            prop_assert!((exact.cost - best).abs() < 1e-9, "{} of {best}", exact.cost);
        }
    }

    /// All items of a group have one level, but for those of the one in which the budget ends.
    #[test]
    fn groups_have_one_level(items in items(), budget in 0u64..200) {
        let all: Vec<usize> = (0..items.len()).collect();
        let groups: Vec<Vec<usize>> = all.chunks(2).map(<[usize]>::to_vec).collect();
        if let Some(choice) = choose(&items, &groups, budget) {
            for group in &groups {
                let alike = group.iter().all(|at| choice.levels[*at] == choice.levels[group[0]]);
                prop_assert_eq!(alike, !group.iter().any(|at| choice.split.contains(at)));
            }
            prop_assert!(choice.spent <= budget);
        }
    }
}

/// Budgets at the ends of steps are met exactly: every such choice is the optimum.
#[test]
fn steps_that_fit_are_optimal() {
    let item = |size, sensitivity: f64| Item {
        size,
        levels: vec![2, 3, 4, 5, 6, 8],
        costs: [2, 3, 4, 5, 6, 8]
            .map(|bits| sensitivity * 0.25f64.powi(bits))
            .to_vec(),
    };
    let items = [item(3, 1.0), item(3, 40.0), item(3, 7.0), item(6, 0.02)];
    let singles: Vec<Vec<usize>> = (0..4).map(|at| vec![at]).collect();
    let mut exact = 0;
    for budget in 30..120 {
        let choice = choose(&items, &singles, budget).expect("a choice");
        let best = by_force(&items, budget).expect("a choice");
        if choice.bound >= choice.cost - 1e-15 {
            assert!((choice.cost - best).abs() < 1e-15, "{budget}");
            exact += 1;
        }
        assert!(
            choice.cost <= best * 4.0,
            "{budget}: {} of {best}",
            choice.cost
        );
    }
    assert!(exact > 5, "{exact}");
}

/// `½ Σ F Δ²` by the golden means of F, with rounding written apart; and by sample, whose mean it is.
#[test]
fn predicted_rises_are_those_of_golden_fishers() {
    for case in CASES {
        let golden = Golden::load(case);
        let run = Run::new(case, &["--phases", "1,5"]);
        for task in TASKS {
            let (source, checkpoint) = run.source(Some(task));
            let weights = checkpoint.weights().expect("weights");
            let scored = bits(&source, &weights, &[2, 3, 4], 8, 3).expect("scores");
            let sums = scored.samples.as_ref().expect("gradients were kept");
            for (at, name) in scored.names.iter().enumerate() {
                let (shape, fisher) = golden.tensor(&format!("{task}/mean/{name}"));
                let theta = &golden.weights()[name];
                let inputs = if case == "gpt2-fused" && name != "lm_head.weight" {
                    0
                } else {
                    1
                };
                for (level, bits) in [2, 3, 4].into_iter().enumerate() {
                    let rounded = by_hand(theta, shape, inputs, bits, 8);
                    let terms = fisher.iter().zip(theta.iter().zip(&rounded));
                    let expected = terms
                        .map(|(f, (w, q))| 0.5 * f * (q - w) * (q - w))
                        .sum::<f64>();
                    let found = scored.items[at].costs[level];
                    assert!(
                        (found - expected).abs() <= 1e-4 * expected,
                        "{case} {name}: {found} {expected}"
                    );
                    let each = sums.costs.iter().map(|costs| costs[at][level]);
                    let mean = each.sum::<f64>() / sums.costs.len() as f64;
                    assert!(
                        (mean - expected).abs() <= 1e-4 * expected,
                        "{case} {name}: {mean} {expected}"
                    );
                }
            }
        }
        // Both tasks alike, though one has more samples.
        let (both, checkpoint) = run.source(None);
        let weights = checkpoint.weights().expect("weights");
        let of = |source: &Source| bits(source, &weights, &[3], 8, 3).expect("scores");
        let both = of(&both);
        let single = TASKS.map(|task| of(&run.source(Some(task)).0));
        for at in 0..both.names.len() {
            let [a, b] = single.each_ref().map(|of| of.items[at].costs[0]);
            let mean = 0.5 * (a + b);
            assert!((both.items[at].costs[0] - mean).abs() < 1e-9 * mean);
            let costs = &both.samples.as_ref().expect("gradients").costs;
            let each = costs.iter().map(|costs| costs[at][0]).sum::<f64>() / costs.len() as f64;
            assert!((each - mean).abs() < 1e-5 * mean);
        }
    }
}

/// Rounding to nearest, one weight after the other.
fn by_hand(theta: &[f64], shape: &[usize], inputs: usize, bits: i32, group: usize) -> Vec<f64> {
    let code = 2f64.powi(bits - 1) - 1.0;
    let strides = [shape[1], 1];
    let place = |at: usize| [at / shape[1], at % shape[1]];
    let of = |at: usize| {
        let own = place(at);
        let first = own[inputs] / group * group;
        let last = (first + group).min(shape[inputs]);
        let all = (first..last).map(|input| {
            let mut other = own;
            other[inputs] = input;
            theta[other[0] * strides[0] + other[1]].abs()
        });
        let scale = all.fold(0.0, f64::max) / code;
        if scale == 0.0 {
            0.0
        } else {
            (theta[at] / scale).round() * scale
        }
    };
    (0..theta.len()).map(of).collect()
}

/// What an adapter captures is at least the largest sums of rows or columns: never more than the best directions do, the
/// eigenvalues of `E[GᵀG]`, and all of it at full rank.
#[test]
fn ranks_capture_no_more_than_the_best_directions() {
    for case in CASES {
        let golden = Golden::load(case);
        let run = Run::new(case, &["--phases", "1,5"]);
        let (source, _) = run.source(Some("alpha"));
        let scored = rank(&source, 2).expect("scores");
        for (name, item) in scored.names.iter().zip(&scored.items) {
            let (shape, fisher) = golden.tensor(&format!("alpha/mean/{name}"));
            let whole: f64 = fisher.iter().sum();
            // By force: the best two rows, or the best two columns.
            let [rows, columns] = [shape[0], shape[1]];
            let row = |r: usize| (0..columns).map(|c| fisher[r * columns + c]).sum::<f64>();
            let column = |c: usize| (0..rows).map(|r| fisher[r * columns + c]).sum::<f64>();
            let pairs = |sums: Vec<f64>| {
                let mut best = 0.0f64;
                for a in 0..sums.len() {
                    for b in 0..a {
                        best = best.max(sums[a] + sums[b]);
                    }
                }
                best
            };
            let best =
                pairs((0..rows).map(row).collect()).max(pairs((0..columns).map(column).collect()));
            let found = whole - item.costs[1];
            assert!(
                (found - best).abs() < 1e-4 * whole,
                "{case} {name}: {found} {best}"
            );
            // The best direction of all, by the power method on E[GᵀG] and E[GGᵀ].
            let gradients: Vec<(f64, &[f64])> = golden
                .samples("alpha")
                .iter()
                .map(|s| {
                    (
                        s.tokens() as f64,
                        golden.values(&format!("alpha/gradient/{}/{name}", s.id())),
                    )
                })
                .collect();
            let first = whole - item.costs[0];
            let eigen = largest_eigenvalue(&gradients, rows, columns);
            assert!(first <= eigen * 1.001, "{case} {name}: {first} {eigen}");
            if item.levels.len() == rows.min(columns) {
                let left = item.costs.last().expect("levels");
                let side = rows.max(columns) == rows.min(columns) || *left < whole;
                assert!(side, "{case} {name}");
            }
        }
    }
}

fn largest_eigenvalue(gradients: &[(f64, &[f64])], rows: usize, columns: usize) -> f64 {
    let n = gradients.len() as f64;
    let side = |left: bool| {
        let width = if left { rows } else { columns };
        let mut v: Vec<f64> = (0..width).map(|k| 1.0 + 0.1 * k as f64).collect();
        let mut value = 0.0;
        for _ in 0..200 {
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            v.iter_mut().for_each(|x| *x /= norm);
            let mut next = vec![0.0; width];
            for (tokens, g) in gradients {
                let other = if left { columns } else { rows };
                let at = |own: usize, o: usize| {
                    if left {
                        g[own * columns + o]
                    } else {
                        g[o * columns + own]
                    }
                };
                for o in 0..other {
                    let dot: f64 = (0..width).map(|k| at(k, o) * v[k]).sum();
                    (0..width).for_each(|k| next[k] += dot * at(k, o) / (tokens * n));
                }
            }
            value = next.iter().zip(&v).map(|(a, b)| a * b).sum();
            v = next;
        }
        value
    };
    side(true).max(side(false))
}

/// Ties are those of rank sets, and without kept gradients fewer are told apart, never more.
#[test]
fn bounds_tell_less_apart_than_samples() {
    let kept = Run::new("llama-gqa", &["--phases", "1,5"]);
    let not = Run::new("llama-gqa", &["--phases", "1"]);
    let resolved = [&kept, &not].map(|run| {
        let (source, checkpoint) = run.source(None);
        let weights = checkpoint.weights().expect("weights");
        let scored = bits(&source, &weights, &[2, 3, 4], 8, 3).expect("scores");
        let resolution = resolve(&scored, 0).expect("a level");
        (
            tie_groups(&scored.scores, &resolution.ranks).len(),
            resolution,
        )
    });
    let [(by_samples, samples), (by_bounds, bounds)] = resolved;
    assert_eq!((samples.by, bounds.by), (By::Samples, By::Bounds));
    assert!(by_bounds <= by_samples, "{by_bounds} {by_samples}");
    for (a, b) in samples.ranks.iter().zip(&bounds.ranks) {
        assert!(b.worst - b.best >= a.worst - a.best, "{a} {b}");
    }
}

/// A plan is within its budget, says what it is, and is measured; it is readable by quantizers and PEFT.
#[test]
fn plans_are_written_and_measured() {
    let run = Run::new("llama-gqa", &["--phases", "1,5"]);
    let alpha = run.task("alpha");
    let plan = run
        .plan(&["--bits", "3.5", "--group-size", "8", "--verify", &alpha])
        .expect("a plan");
    assert!(number(&plan["average"]) <= 3.5);
    let bits = plan["bits"].as_object().expect("bits");
    assert_eq!(bits.len(), 15, "two layers of seven, and the head");
    let layer = &plan["layer_config"]["model.layers.0.self_attn.q_proj"];
    assert_eq!(
        layer["bits"],
        bits["model.layers.0.self_attn.q_proj.weight"]
    );
    assert_eq!(
        (&layer["group_size"], &layer["sym"]),
        (&8.into(), &true.into())
    );
    let measured = &plan["measured"][0];
    assert_eq!(measured["samples"], 6);
    let rises = measured["rises"].as_array().expect("rises");
    let of = |name: &str| number(&rises.iter().find(|r| r["of"] == name).expect("a plan")["mean"]);
    assert!(of("plan") != 0.0);
    let uniform = "3 and 4 in the order of names";
    let difference = of(&format!("plan - {uniform}"));
    assert!((difference - (of("plan") - of(uniform))).abs() < 1e-9);

    // With one width there is nothing to choose: the plan is the uniform one, and costs the same.
    let plan = run
        .plan(&["--bits", "4", "--widths", "4", "--verify", &alpha])
        .expect("a plan");
    let rises = plan["measured"][0]["rises"].as_array().expect("rises");
    let last = rises.last().expect("a difference");
    assert_eq!(
        (last["of"].as_str(), number(&last["mean"])),
        (Some("plan - 4 for all"), 0.0)
    );
    assert_eq!(plan["predicted"]["plan"], plan["predicted"]["uniform"]);

    let plan = run.plan(&["--rank", "2"]).expect("a plan");
    let peft = &plan["peft"];
    assert_eq!(peft["r"], 2);
    assert_eq!(peft["rank_pattern"], peft["alpha_pattern"]);
    let config = |name: &str| {
        let ranks = peft["rank_pattern"].as_object().expect("ranks");
        ranks[name].as_u64().expect("a rank")
    };
    assert!((1..=16).contains(&config("model.layers.1.mlp.down_proj")));
    assert!(number(&plan["average"]) <= 2.0);
}

/// Eight bits move losses by little, two by much. (A model of random weights is at no minimum: its first order falls with the step, not
/// with its square.)
#[test]
fn more_bits_move_losses_less() {
    let run = Run::new("gpt2-fused", &["--phases", "1,5"]);
    let alpha = run.task("alpha");
    let rise = |bits: &str| {
        let plan = run.plan(&[
            "--bits",
            bits,
            "--widths",
            bits,
            "--group-size",
            "8",
            "--verify",
            &alpha,
        ]);
        let plan = plan.expect("a plan");
        number(&plan["measured"][0]["rises"][0]["mean"]).abs()
    };
    let [two, eight] = ["2", "8"].map(rise);
    assert!(eight < 0.1 * two, "{eight} {two}");
}

/// The rise that is measured is that of a folder whose weights were rounded by hand.
#[test]
fn measured_rises_are_those_of_rounded_files() {
    for case in CASES {
        let run = Run::new(case, &["--phases", "1"]);
        let alpha = run.task("alpha");
        let only = ["--bits", "3", "--widths", "3", "--group-size", "5"];
        let plan = run.plan(&[&only[..], &["--verify", &alpha]].concat());
        let plan = plan.expect("a plan");
        let bits = plan["bits"].as_object().expect("bits");
        let golden = Golden::load(case);
        let rounded = tempfile::tempdir().expect("a folder");
        let copy = |file: &str| {
            let to = rounded.path().join(file);
            std::fs::copy(folder(case).join(file), to).expect("a copy");
        };
        copy("config.json");
        let bytes = std::fs::read(folder(case).join("model.safetensors")).expect("weights");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let theta = &golden.weights()[&name];
                let shape = view.shape().to_vec();
                let inputs = usize::from(case != "gpt2-fused" || name == "lm_head.weight");
                let values = match bits.contains_key(&name) {
                    true => by_hand(theta, &shape, inputs, 3, 5),
                    false => theta.clone(),
                };
                let data = values.iter().flat_map(|&w| (w as f32).to_le_bytes());
                (name, shape, data.collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, data)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), data).expect("a tensor");
            (name.clone(), view)
        });
        let bytes = safetensors::serialize(views, None).expect("safetensors");
        std::fs::write(rounded.path().join("model.safetensors"), bytes).expect("a file");
        let (before, after) = (
            mean_loss(&folder(case), case),
            mean_loss(rounded.path(), case),
        );
        let found = number(&plan["measured"][0]["rises"][0]["mean"]);
        assert!((number(&plan["measured"][0]["loss"]) - before).abs() < 1e-5);
        assert!(
            (found - (after - before)).abs() < 1e-5,
            "{case}: {found} {}",
            after - before
        );
    }
}

/// The mean over alpha's samples of the loss of a token, sample by sample.
fn mean_loss(model: &Path, case: &str) -> f64 {
    let out = tempfile::tempdir().expect("a folder");
    let (model, to) = (
        model.display().to_string(),
        out.path().display().to_string(),
    );
    let task = format!("alpha={}/alpha.jsonl", folder(case).display());
    program(&[
        "measure", "--model", &model, "--task", &task, "--out", &to, "--phases", "1",
    ])
    .expect("a run");
    let bytes = std::fs::read(out.path().join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&bytes).expect("JSON");
    let list = |key: &str| {
        report["tasks"]["alpha"][key]
            .as_array()
            .expect("a list")
            .clone()
    };
    let (losses, tokens) = (list("loss_sum"), list("tokens"));
    let each = losses
        .iter()
        .zip(&tokens)
        .map(|(loss, t)| number(loss) / number(t));
    each.sum::<f64>() / losses.len() as f64
}

/// A plan is made of a run that is finished, or of none.
#[test]
fn plans_are_made_of_finished_runs() {
    let run = Run::new("llama-gqa", &["--phases", "1"]);
    let out = run.folder();
    let plan = |run: &str| program(&["plan", "--run", run, "--rank", "1", "--json"]);
    plan(&out).expect("a plan");
    // A later call has begun another task.
    let at = |file: &str| run.out.path().join(file);
    let read = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(at(file)).expect("a file")).expect("JSON")
    };
    let report = read("report.json");
    let write = |file: &str, value: &Value| {
        std::fs::write(at(file), value.to_string()).expect("a file");
    };
    let mut before = report.clone();
    before["order"] = serde_json::json!([TASKS[0]]);
    write("report.json", &before);
    let mut inputs = read("inputs.json");
    let all = inputs["tasks"][TASKS[1]]
        .as_object()
        .expect("samples")
        .len();
    inputs["tasks"][TASKS[1]]["more"] = "hash".into();
    write("inputs.json", &inputs);
    let error = plan(&out).expect_err("half of a task");
    let said = format!("{all} of {} samples of task `{}`", all + 1, TASKS[1]);
    assert!(
        error.contains(&said) && error.contains("it goes on by"),
        "{error}"
    );
    std::fs::remove_file(at("report.json")).expect("a file");
    let error = plan(&out).expect_err("no report");
    assert!(
        error.contains("samples are counted, and it has no report") && error.contains("--resume"),
        "{error}"
    );
    for nowhere in [format!("{out}/nope"), format!("{out}/empty")] {
        if nowhere.ends_with("empty") {
            std::fs::create_dir(&nowhere).expect("a folder");
        }
        let error = plan(&nowhere).expect_err("no run");
        assert!(error.contains("is no run"), "{error}");
    }
}

#[rstest::rstest]
#[case(&["--bits", "NaN"], "--bits")]
#[case(&["--bits", "-4"], "--bits")]
#[case(&["--bits", "40"], "--bits")]
#[case(&["--bits", "4", "--widths", "1,4"], "--widths")]
#[case(&["--bits", "4", "--batch-tokens", "0"], "--batch-tokens")]
#[case(&["--bits", "4", "--params", "none"], "--params none")]
#[case(&["--bits", "4", "--verify", "a=missing.jsonl"], "missing.jsonl")]
#[case(&["--bits", "4", "--verify", "a=missing.jsonl", "--samples", "0"], "--samples")]
fn values_are_checked_before_the_model_is_loaded(#[case] more: &[&str], #[case] said: &str) {
    let run = Run::new("llama-gqa", &["--phases", "1", "--elements", "none"]);
    let (out, model) = (run.folder(), "nowhere/at/all");
    let fixed = ["plan", "--run", &out, "--model", model];
    let error = program(&[&fixed[..], more].concat()).expect_err("refused");
    assert!(error.contains(said) && !error.contains(model), "{error}");
}

#[test]
fn what_cannot_be_planned_is_said() {
    let run = Run::new("llama-gqa", &["--phases", "1", "--elements", "none"]);
    let error = run.plan(&["--bits", "4"]).expect_err("no elements");
    assert!(
        error.contains("F of every element") && error.contains("--elements all"),
        "{error}"
    );
    let run = Run::new("llama-gqa", &["--phases", "1"]);
    let error = run.plan(&["--bits", "1.5"]).expect_err("too few bits");
    assert!(error.contains("below the lowest levels"), "{error}");
    let out = run.folder();
    let error = program(&["plan", "--run", &out, "--bits", "4"]).expect_err("no weights");
    assert!(error.contains("--model"), "{error}");
    let error = program(&["plan", "--run", &out]).expect_err("no budget");
    assert!(error.contains("--bits"), "{error}");
    let other = folder("llama-mqa").display().to_string();
    let error = program(&["plan", "--run", &out, "--model", &other, "--bits", "4"]);
    assert!(
        error
            .expect_err("another model")
            .contains("is not a run of")
    );
    // Ranks need no weights.
    program(&["plan", "--run", &out, "--rank", "1", "--json"]).expect("a plan");
}
