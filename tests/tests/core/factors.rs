//! Kronecker factors: second moments in float64, from gradients in whatever form they come.

use burn::module::ParamGroup;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::factors::{Factors, FactorsConfig, Form, Positions, Second};
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::kind::FisherKind;
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{PRODUCTS, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

const SAMPLES: usize = 3;
const POSITIONS: usize = 4;
const IN: usize = 5;
const OUT: usize = 3;
const TABLE: usize = 7;
/// Every sample's active tokens.
const TOKENS: [u64; SAMPLES] = [2, 1, 3];

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

fn catalogue() -> Catalogue {
    let of = |path: &str, shape: &[usize], role, orientation| {
        Parameter::new(path, shape.to_vec(), role, orientation)
    };
    let (first, second) = (Orientation::InputOutput, Orientation::OutputInput);
    Catalogue::new(vec![
        of("linear", &[IN, OUT], Role::Matrix, first),
        of("conv", &[OUT, IN, 1, 1], Role::Convolution, second),
        of("bias", &[OUT], Role::Vector, first),
        of("table", &[TABLE, OUT], Role::Embedding, first),
        of("tied", &[TABLE, OUT], Role::Embedding, first),
        of("whole", &[IN, OUT], Role::Matrix, first),
        of("unused", &[IN, OUT], Role::Matrix, first),
    ])
    .expect("parameters")
}

fn factors(config: &FactorsConfig) -> Factors {
    config.init_for(&catalogue(), "m".into()).expect("factors")
}

fn draw(shape: [usize; 3], seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let count = shape.iter().product::<usize>();
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// What a batch is made of. The last position of every sample but the first is padding.
struct Made {
    input: Vec<f32>,
    delta: Vec<f32>,
    scores: Vec<f32>,
    whole: Vec<f32>,
    bias: Vec<f32>,
    ids: Vec<i64>,
}

impl Made {
    fn new(seed: u64) -> Self {
        let mut delta = draw([SAMPLES, POSITIONS, OUT], seed + 1);
        let mut scores = draw([SAMPLES, POSITIONS, TABLE], seed + 2);
        for sample in 1..SAMPLES {
            let last = sample * POSITIONS + POSITIONS - 1;
            delta[last * OUT..(last + 1) * OUT].fill(0.0);
            scores[last * TABLE..(last + 1) * TABLE].fill(0.0);
        }
        let ids = (0..SAMPLES * POSITIONS).map(|at| (at * at % TABLE) as i64);
        Self {
            input: draw([SAMPLES, POSITIONS, IN], seed),
            delta,
            scores,
            whole: draw([SAMPLES, IN, OUT], seed + 3),
            bias: draw([SAMPLES, 1, OUT], seed + 4),
            ids: ids.collect(),
        }
    }

    fn samples(first: usize) -> Vec<Sample> {
        let sample = |(i, &tokens): (usize, &u64)| Sample::new(format!("{}", first + i), tokens);
        let samples = TOKENS.iter().enumerate().map(sample);
        samples.map(|sample| sample.expect("tokens")).collect()
    }

    /// Of the samples from `first` on.
    fn batch(&self, first: usize, device: &Device) -> GradientBatch {
        let factor = |values: &[f32], side: usize| {
            let data = TensorData::new(values.to_vec(), [SAMPLES, POSITIONS, side]);
            Tensor::<3>::from_data(data, device)
        };
        let full = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [SAMPLES, values.len() / SAMPLES]);
            SampleGradient::full(Tensor::from_data(data, device))
        };
        let [input, delta] = [factor(&self.input, IN), factor(&self.delta, OUT)];
        let ids = TensorData::new(self.ids.clone(), [SAMPLES, POSITIONS]);
        let lookup = SampleGradient::Rows {
            ids: Tensor::<2, Int>::from_data(ids, device),
            delta: delta.clone(),
            table: TABLE,
        };
        let product = SampleGradient::Outer {
            left: factor(&self.scores, TABLE),
            right: delta.clone(),
        };
        let tied = SampleGradient::sum([product, lookup.clone()]).expect("two uses");
        let mut batch = GradientBatch::new(Self::samples(first));
        let outer = |left: &Tensor<3>, right: &Tensor<3>| SampleGradient::Outer {
            left: left.clone(),
            right: right.clone(),
        };
        batch.insert("linear", outer(&input, &delta));
        batch.insert("conv", outer(&delta, &input));
        batch.insert("bias", full(&self.bias));
        batch.insert("table", lookup);
        batch.insert("tied", tied);
        batch.insert("whole", full(&self.whole));
        batch.insert(
            "unused",
            SampleGradient::Zero {
                samples: SAMPLES,
                elements: IN * OUT,
                device: device.clone(),
            },
        );
        batch
    }
}

/// `Σ w x xᵀ` of rows `x` with their weights, row-major.
fn second(rows: &[(Vec<f64>, f64)]) -> Vec<f64> {
    let side = rows[0].0.len();
    let mut sums = vec![0.0; side * side];
    for (row, weight) in rows {
        for (i, j) in (0..side * side).map(|at| (at / side, at % side)) {
            sums[i * side + j] += weight * row[i] * row[j];
        }
    }
    sums
}

fn diagonal(matrix: &[f64]) -> Vec<f64> {
    let side = matrix.len().isqrt();
    matrix.iter().step_by(side + 1).copied().collect()
}

fn scaled(values: Vec<f64>, factor: f64) -> Vec<f64> {
    values.into_iter().map(|x| x * factor).collect()
}

fn trace(matrix: &[f64]) -> f64 {
    diagonal(matrix).iter().sum()
}

/// Every position of every batch: sample's tokens, whether it is active, row of `values`.
fn rows(values: &[f32], side: usize) -> Vec<Vec<f64>> {
    let rows = values.chunks(side);
    rows.map(|row| row.iter().map(|&x| f64::from(x)).collect())
        .collect()
}

/// `A` and `S` of every parameter, in float64 by the definitions.
fn expected(all: &[Made], positions: Positions) -> Vec<(&'static str, [Vec<f64>; 2])> {
    let n = (all.len() * SAMPLES) as f64;
    let tokens = |sample: usize| TOKENS[sample] as f64;
    let (mut of_input, mut of_delta, mut of_table) = (Vec::new(), Vec::new(), Vec::new());
    let (mut whole, mut whole_across, mut bias) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tied, mut tied_across) = (Vec::new(), Vec::new());
    for made in all {
        let (input, delta) = (rows(&made.input, IN), rows(&made.delta, OUT));
        let scores = rows(&made.scores, TABLE);
        for sample in 0..SAMPLES {
            let here = sample * POSITIONS..(sample + 1) * POSITIONS;
            let active: Vec<usize> = here
                .clone()
                .filter(|&t| delta[t].iter().any(|x| *x != 0.0))
                .collect();
            let one = |t: usize| -> Vec<f64> {
                (0..TABLE)
                    .map(|row| f64::from(u8::from(made.ids[t] as usize == row)))
                    .collect()
            };
            let per_token = 1.0 / tokens(sample);
            let sum = |of: &dyn Fn(usize) -> Vec<f64>| -> Vec<f64> {
                let zeros = vec![0.0; of(active[0]).len()];
                active.iter().fold(zeros, |sum, &t| {
                    sum.iter().zip(of(t)).map(|(a, b)| a + b).collect()
                })
            };
            match positions {
                Positions::Expand => {
                    of_input.extend(active.iter().map(|&t| (input[t].clone(), per_token)));
                    of_table.extend(active.iter().map(|&t| (one(t), per_token)));
                    of_delta.extend(active.iter().map(|&t| (delta[t].clone(), per_token)));
                }
                Positions::Reduce => {
                    let share = 1.0 / active.len() as f64;
                    of_input.push((scaled(sum(&|t| input[t].clone()), share), per_token));
                    of_table.push((scaled(sum(&one), share), per_token));
                    of_delta.push((sum(&|t| delta[t].clone()), per_token));
                }
            }
            for t in here {
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
                for left in [scores[t].clone(), one(t)] {
                    tied.push((left.clone(), norm(&delta[t]) * per_token));
                    tied_across.push((delta[t].clone(), norm(&left) * per_token));
                }
            }
            let g: Vec<f64> = made.whole[sample * IN * OUT..(sample + 1) * IN * OUT]
                .iter()
                .map(|&x| f64::from(x))
                .collect();
            let column = |k: usize| (0..IN).map(|i| g[i * OUT + k]).collect::<Vec<f64>>();
            whole.extend((0..OUT).map(|k| (column(k), per_token)));
            whole_across.extend(g.chunks(OUT).map(|row| (row.to_vec(), per_token)));
            let g = rows(&made.bias, OUT)[sample].clone();
            bias.push((g, per_token));
        }
    }
    let inputs: f64 = of_input.iter().map(|(_, weight)| weight).sum();
    let [a, table] = [&of_input, &of_table].map(|rows| scaled(second(rows), 1.0 / inputs));
    let s = scaled(second(&of_delta), 1.0 / n);
    let [whole, tied, bias] = [&whole, &tied, &bias].map(|rows| second(rows));
    let across = |sums: &[(Vec<f64>, f64)], first: &[f64]| scaled(second(sums), 1.0 / trace(first));
    let whole_across = across(&whole_across, &whole);
    let tied_across = across(&tied_across, &tied);
    let [whole, tied, bias] = [whole, tied, bias].map(|sums| scaled(sums, 1.0 / n));
    vec![
        ("linear", [a.clone(), s.clone()]),
        ("conv", [s.clone(), a]),
        ("bias", [bias, vec![1.0]]),
        ("table", [diagonal(&table), s]),
        ("tied", [diagonal(&tied), tied_across]),
        ("whole", [whole, whole_across]),
        ("unused", [vec![0.0; IN * IN], vec![0.0; OUT * OUT]]),
    ]
}

fn assert_as_expected(found: &Factors, expected: &[(&str, [Vec<f64>; 2])]) {
    let task = found.task("t").expect("the task");
    assert_eq!(expected.len(), task.blocks().count());
    for (path, expected) in expected {
        let sides = task.factors(path).expect("factors");
        for (side, expected) in sides.iter().zip(expected) {
            assert_close(path, side.values(), expected, PRODUCTS, 1.0);
        }
    }
}

#[rstest]
fn factors_are_second_moments(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Positions::Expand, Positions::Reduce)] positions: Positions,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let made = [Made::new(1), Made::new(17)];
    let config = FactorsConfig::new().with_positions(positions);
    let mut found = factors(&config);
    for (i, made) in made.iter().enumerate() {
        let batch = made.batch(i * SAMPLES, &device);
        found.push_batch("t", batch).expect("a batch");
    }
    assert_as_expected(&found, &expected(&made, positions));
    let task = found.task("t").expect("the task");
    let forms: Vec<_> = task.blocks().map(|(_, block)| block.form()).collect();
    let expected = [
        Form::Written,
        Form::Products,
        Form::Products,
        Form::Lookups,
        Form::Tied,
    ];
    let expected = expected
        .map(Some)
        .into_iter()
        .chain([None, Some(Form::Written)]);
    assert_eq!(forms, expected.collect::<Vec<_>>());
    assert_eq!(task.count(), 6);
}

/// In any order, and by way of files, to rounding of sums in float64.
#[test]
fn shards_merge_to_what_one_run_has() {
    let made = [Made::new(1), Made::new(17), Made::new(33)];
    let shard = |range: std::ops::Range<usize>| {
        let mut found = factors(&FactorsConfig::new());
        for i in range {
            let batch = made[i].batch(i * SAMPLES, &flex());
            found.push_batch("t", batch).expect("a batch");
        }
        found
    };
    let folder = tempfile::tempdir().expect("a folder");
    let through_a_file = |factors: Factors, name: &str| {
        let path = folder.path().join(name);
        factors.save(&path).expect("a file");
        let loaded = Factors::load(&path).expect("factors");
        let again = folder.path().join("again");
        loaded.save(&again).expect("a file");
        let [first, second] = [path, again].map(|path| std::fs::read(path).expect("bytes"));
        assert!(first == second, "bit for bit");
        loaded
    };
    let mut merged = through_a_file(shard(2..3), "third");
    merged
        .merge(through_a_file(shard(0..2), "first"))
        .expect("other samples");
    let one = shard(0..3);
    let [of_merged, of_one] = [&merged, &one].map(|of| of.task("t").expect("the task"));
    assert_eq!(of_merged.count(), of_one.count());
    for (path, _) in of_one.blocks() {
        let [ours, theirs] = [of_merged, of_one].map(|of| of.factors(path).expect("factors"));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_close(path, ours.values(), theirs.values(), 1e-14, 1.0);
        }
    }
    let before = merged.clone();
    let error = merged.merge(shard(1..2)).expect_err("samples twice");
    assert!(matches!(error, Error::DuplicateSample { .. }), "{error}");
    let other = FactorsConfig::new().with_positions(Positions::Reduce);
    let error = merged.merge(factors(&other)).expect_err("other positions");
    assert!(error.to_string().contains("expand"), "{error}");
    let fewer = FactorsConfig::new().with_only(Some(ParamGroup::from_path("bias")));
    let error = merged.merge(factors(&fewer)).expect_err("other parameters");
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
    let small = FactorsConfig::new().with_largest(2);
    let error = merged.merge(factors(&small)).expect_err("other sides");
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
    assert_eq!(
        before.task("t").expect("it").count(),
        merged.task("t").expect("it").count()
    );
}

#[test]
fn a_long_side_keeps_its_diagonal() {
    let made = [Made::new(5)];
    let mut found = factors(&FactorsConfig::new().with_largest(4));
    found
        .push_batch("t", made[0].batch(0, &flex()))
        .expect("a batch");
    let task = found.task("t").expect("the task");
    let expected = expected(&made, Positions::Expand);
    let (_, [a, s]) = &expected[0];
    let [of_input, of_delta] = task.factors("linear").expect("factors");
    assert!(matches!(of_input, Second::Diagonal(_)) && matches!(of_delta, Second::Matrix { .. }));
    assert_close("a", of_input.values(), &diagonal(a), PRODUCTS, 1.0);
    assert_close("s", of_delta.values(), s, PRODUCTS, 1.0);
}

/// Far from 1, where squares alone are out of float32's range.
#[rstest]
fn scales_multiply(
    #[values(Backend::Flex, Backend::Wgpu)] backend: Backend,
    #[values(1e-25f32, 1e25)] size: f32,
    #[values("linear", "tied", "table")] path: &str,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let mut large = Made::new(1);
    let mut other = Made::new(1);
    other.delta.iter_mut().for_each(|x| *x *= 0.5);
    large.delta.iter_mut().for_each(|x| *x *= size);
    let of = |made: &Made| {
        let mut found = factors(&FactorsConfig::new());
        found
            .push_batch("t", made.batch(0, &device))
            .expect("a batch");
        found
            .task("t")
            .expect("the task")
            .factors(path)
            .expect("factors")
    };
    let [[a, s], [b, t]] = [of(&large), of(&other)];
    assert_eq!(a, b);
    let expected: Vec<f64> = t.values().iter().map(|x| x * 4.0).collect();
    let size = f64::from(size);
    let found: Vec<f64> = s.values().iter().map(|x| x / size / size).collect();
    assert_close("s", &found, &expected, PRODUCTS, 1.0);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let device = flex();
    let mut found = factors(&FactorsConfig::new());
    found
        .push_batch("t", Made::new(1).batch(0, &device))
        .expect("a batch");
    let before = found
        .task("t")
        .expect("it")
        .factors("linear")
        .expect("factors");
    let with = |path: &str, gradient: SampleGradient| {
        let mut batch = Made::new(2).batch(SAMPLES, &device);
        batch.retain(|of| of != path);
        batch.insert(path, gradient);
        batch
    };
    let full = |value: f32| SampleGradient::full(Tensor::full([SAMPLES, IN * OUT], value, &device));
    let error = found
        .push_batch("t", with("linear", full(1.0)))
        .expect_err("another form");
    assert!(
        matches!(&error, Error::Form { parameter, .. } if parameter == "linear"),
        "{error}"
    );
    let error = found
        .push_batch("t", with("whole", full(f32::NAN)))
        .expect_err("not finite");
    assert!(
        matches!(&error, Error::NonFinite { parameter, sample } if parameter == "whole" && sample == "3"),
        "{error}"
    );
    let error = found
        .push_batch("t", Made::new(2).batch(1, &device))
        .expect_err("seen before");
    assert!(matches!(error, Error::SampleTwice { .. }), "{error}");
    let mut less = Made::new(2).batch(SAMPLES, &device);
    less.retain(|path| path != "bias");
    let error = found.push_batch("t", less).expect_err("one is missing");
    assert!(matches!(error, Error::MissingParameter { .. }), "{error}");
    let task = found.task("t").expect("it");
    assert_eq!(task.count(), SAMPLES as u64);
    assert_eq!(task.factors("linear").expect("factors"), before);
    assert!(found.refuses(FisherKind::Exact).is_some());
    assert!(found.task("u").is_err() && task.factors("none").is_err());
    // Zeros go with any form.
    let zeros = SampleGradient::Zero {
        samples: SAMPLES,
        elements: IN * OUT,
        device: device.clone(),
    };
    found.push_batch("t", with("linear", zeros)).expect("zeros");
    let [a, s] = found
        .task("t")
        .expect("it")
        .factors("linear")
        .expect("factors");
    assert_eq!(a, before[0], "no input counts where no gradient is");
    assert_close(
        "s",
        s.values(),
        &scaled(before[1].values().to_vec(), 0.5),
        1e-15,
        1.0,
    );
}

/// A table that nobody looks up is the output's matrix alone: its inputs are the other side, and padding does not count.
#[test]
fn a_table_that_is_only_the_outputs_has_its_inputs_on_the_other_side() {
    let device = flex();
    let made = Made::new(9);
    let mut batch = made.batch(0, &device);
    batch.retain(|path| path != "table");
    let factor = |values: &[f32], side: usize| {
        let data = TensorData::new(values.to_vec(), [SAMPLES, POSITIONS, side]);
        Tensor::<3>::from_data(data, &device)
    };
    // Inputs at padded positions are not 0; scores are.
    let inputs = draw([SAMPLES, POSITIONS, OUT], 40);
    let gradient = SampleGradient::Outer {
        left: factor(&made.scores, TABLE),
        right: factor(&inputs, OUT),
    };
    batch.insert("table", gradient);
    let mut found = factors(&FactorsConfig::new());
    found.push_batch("t", batch).expect("a batch");
    let [a, s] = found
        .task("t")
        .expect("it")
        .factors("table")
        .expect("factors");
    let (scores, inputs) = (rows(&made.scores, TABLE), rows(&inputs, OUT));
    let (mut of_scores, mut of_inputs) = (Vec::new(), Vec::new());
    for at in 0..SAMPLES * POSITIONS {
        let weight = 1.0 / TOKENS[at / POSITIONS] as f64;
        if scores[at].iter().any(|x| *x != 0.0) {
            of_inputs.push((inputs[at].clone(), weight));
        }
        of_scores.push((scores[at].clone(), weight));
    }
    let all: f64 = of_inputs.iter().map(|(_, weight)| weight).sum();
    let expected = diagonal(&scaled(second(&of_scores), 1.0 / SAMPLES as f64));
    assert_close("a", a.values(), &expected, PRODUCTS, 1.0);
    let expected = scaled(second(&of_inputs), 1.0 / all);
    assert_close("s", s.values(), &expected, PRODUCTS, 1.0);
}

/// A file whose numbers cannot be: an error, and no panic.
#[test]
fn files_that_lie_are_refused() {
    let mut found = factors(&FactorsConfig::new());
    found
        .push_batch("t", Made::new(1).batch(0, &flex()))
        .expect("a batch");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("factors");
    found.save(&path).expect("a file");
    let bytes = std::fs::read(&path).expect("bytes");
    for at in (0..bytes.len()).step_by(97) {
        let mut broken = bytes.clone();
        broken[at] ^= 0x41;
        std::fs::write(&path, &broken).expect("a file");
        assert!(Factors::load(&path).is_err(), "byte {at}");
    }
    for length in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("a file");
        assert!(Factors::load(&path).is_err(), "{length} bytes");
    }
}
