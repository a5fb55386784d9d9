//! What sinks of gradients promise: nothing before a commit, all of a batch or nothing, and the same
//! numbers in whatever form gradients come.

use std::ops::Range;

use burn::module::ParamGroup;
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{GradientBatch, GradientSink, SampleGradient};
use fisher_core::grouping::{HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::moments::{SampleMoments, Welford};
use fisher_core::sample::Sample;
use fisher_core::squares::Way;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig, Usage};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{PRODUCTS, REORDERED, assert_close};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

fn flex() -> Device {
    Backend::Flex.device().expect("a CPU")
}

/// Paths and elements.
const PARAMETERS: [(&str, usize); 2] = [("w", 6), ("b", 3)];
/// Nine elements of four bytes.
const SAMPLE: usize = 36;

fn catalogue() -> Catalogue {
    let matrix = Parameter::new("w", [2, 3], Role::Matrix, Orientation::InputOutput);
    let bias = Parameter::new("b", [3], Role::Vector, Orientation::InputOutput);
    Catalogue::new(vec![matrix, bias]).expect("parameters")
}

fn statistics(config: &StatisticsConfig) -> Statistics {
    let statistics = config.init_for(&catalogue(), &HeadLayout::none(), "m".into(), &flex());
    statistics.expect("statistics")
}

fn store(config: &GradientStoreConfig) -> GradientStore {
    let store = config.init_for(&catalogue(), "m".into());
    store.expect("a store")
}

fn samples(range: Range<usize>) -> Vec<Sample> {
    let sample = |i| Sample::new(format!("s{i}"), 1 + i as u64 % 4).expect("tokens");
    range.map(sample).collect()
}

/// Made of the samples' numbers.
fn gradient(range: Range<usize>, path: &str, elements: usize) -> SampleGradient {
    let value = |i: usize, e: usize| ((i * 7 + e * 3 + path.len()) as f32).sin();
    let values = range
        .clone()
        .flat_map(|i| (0..elements).map(move |e| value(i, e)));
    let data = TensorData::new(values.collect::<Vec<f32>>(), [range.len(), elements]);
    SampleGradient::full(Tensor::from_data(data, &flex()))
}

fn batch(range: Range<usize>) -> GradientBatch {
    let mut batch = GradientBatch::new(samples(range.clone()));
    for (path, elements) in PARAMETERS {
        batch.insert(path, gradient(range.clone(), path, elements));
    }
    batch
}

/// The third sample with another gradient of the matrix.
fn third(matrix: SampleGradient) -> GradientBatch {
    let mut batch = batch(2..3);
    batch.retain(|path| path != "w");
    batch.insert("w", matrix);
    batch
}

fn same(value: f32, elements: usize) -> SampleGradient {
    SampleGradient::full(Tensor::full([1, elements], value, &flex()))
}

/// The file of statistics, what a store takes, and its rows by name.
type State = (Vec<u8>, Usage, Vec<(String, Vec<f32>)>);

/// All that is in them, to the bit.
fn held(statistics: &Statistics, store: &GradientStore) -> State {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("statistics");
    statistics.save(&file).expect("a file");
    let mut rows = Vec::new();
    for task in store.tasks() {
        for sample in store.samples(task) {
            for (path, _) in PARAMETERS {
                let row = store.gradient(task, sample.id(), path);
                let name = format!("{task} {} {path}", sample.id());
                rows.push((name, row.expect("a gradient").into_owned()));
            }
        }
    }
    let bytes = std::fs::read(&file).expect("bytes");
    (bytes, store.usage(), rows)
}

#[rstest]
fn what_is_not_committed_leaves_nothing(#[values(false, true)] on_disk: bool) {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |name: &str| {
        let folder = on_disk.then(|| folder.path().join(name));
        let memory = if on_disk { 0 } else { 1 << 20 };
        store(&GradientStoreConfig::new(memory).with_folder(folder))
    };
    let config = StatisticsConfig::new();
    let (mut statistics_of_some, mut store_of_some) = (statistics(&config), open("some"));
    let mut sink = (&mut statistics_of_some, &mut store_of_some);
    sink.push_batch("t", batch(0..2)).expect("a batch");
    let before = held(sink.0, sink.1);
    // Of another task, and with other gradients of samples that come later.
    for (task, range) in [("u", 7..9), ("t", 2..4)] {
        sink.begin(task, &samples(range)).expect("new samples");
        for (path, elements) in PARAMETERS {
            let other = gradient(20..22, path, elements);
            sink.put(path, other).expect("a parameter");
        }
        assert!(held(sink.0, sink.1) == before, "something of `{task}`");
    }
    if on_disk {
        let read = GradientStore::open(folder.path().join("some")).expect("a store");
        assert_eq!((read.tasks().count(), read.samples("t").len()), (1, 2));
    }
    // Nor does what was put count for the next batch.
    sink.begin("t", &samples(2..5)).expect("new samples");
    let put = sink.put("b", gradient(2..5, "b", 3));
    put.expect("a parameter");
    let error = sink.commit();
    assert!(
        matches!(&error, Err(Error::MissingParameter { parameter }) if parameter == "w"),
        "{error:?}"
    );
    assert!(held(sink.0, sink.1) == before, "something of half a batch");
    sink.begin("t", &samples(2..5)).expect("new samples");
    for (path, elements) in PARAMETERS {
        let of_these = gradient(2..5, path, elements);
        sink.put(path, of_these).expect("a parameter");
    }
    sink.commit().expect("a batch");

    let (mut statistics_of_all, mut store_of_all) = (statistics(&config), open("all"));
    let mut all = (&mut statistics_of_all, &mut store_of_all);
    for range in [0..2, 2..5] {
        all.push_batch("t", batch(range)).expect("a batch");
    }
    assert!(held(sink.0, sink.1) == held(all.0, all.1));
}

#[rstest]
#[case::no_room(batch(2..4), |e: &Error| matches!(e, Error::Budget { .. }))]
#[case::not_finite(third(same(f32::NAN, 6)), |e: &Error| matches!(e, Error::NonFinite { .. }))]
#[case::overflowing(
    third(SampleGradient::Outer {
        left: Tensor::full([1, 1, 2], 1e30, &flex()),
        right: Tensor::full([1, 1, 3], 1e30, &flex()),
    }),
    |e: &Error| matches!(e, Error::NonFinite { .. })
)]
#[case::of_another_shape(third(same(1.0, 7)), |e: &Error| matches!(e, Error::Shape { .. }))]
#[case::there_already(batch(9..10), |e: &Error| matches!(e, Error::SampleTwice { .. }))]
fn what_the_store_refuses_leaves_both_as_they_were(
    #[case] bad: GradientBatch,
    #[case] refused: fn(&Error) -> bool,
) {
    // Room for one more sample.
    let mut store = store(&GradientStoreConfig::new(4 * SAMPLE));
    let mut statistics = statistics(&StatisticsConfig::new());
    let mut sink = (&mut statistics, &mut store);
    sink.push_batch("t", batch(0..2)).expect("room");
    sink.1.push("t", &batch(9..10)).expect("room");
    let before = held(sink.0, sink.1);
    let error = sink.push_batch("t", bad).expect_err("refused");
    assert!(refused(&error), "{error}");
    assert!(held(sink.0, sink.1) == before, "something of what {error}");
    // Whoever does not listen gets no further.
    sink.commit().expect_err("no whole batch");
    assert!(held(sink.0, sink.1) == before, "something of what {error}");
    sink.push_batch("t", batch(2..3)).expect("room");
    assert_eq!(statistics.task("t").expect("the task").count(), 3);
    assert_eq!(store.samples("t").len(), 4);
}

/// Squares beyond the range of accumulators are seen when the statistics commit: before the store does.
#[test]
fn what_the_statistics_refuse_leaves_both_as_they_were() {
    let mut store = store(&GradientStoreConfig::new(4 * SAMPLE));
    let mut statistics = statistics(&StatisticsConfig::new().with_compensated(true));
    let mut sink = (&mut statistics, &mut store);
    sink.push_batch("t", batch(0..2)).expect("room");
    let before = held(sink.0, sink.1);
    let error = sink.push_batch("t", third(same(1e30, 6)));
    assert!(
        matches!(&error, Err(Error::NonFinite { sample, parameter })
            if sample == "s2" && parameter == "w"),
        "{error:?}"
    );
    assert!(held(sink.0, sink.1) == before);
    sink.push_batch("t", batch(2..3)).expect("room");
    assert_eq!(statistics.task("t").expect("the task").count(), 3);
    assert_eq!(store.samples("t").len(), 3);
}

/// Of a sink that has the first two samples.
fn refuses(sink: &mut dyn GradientSink) {
    let of = |path, elements| gradient(2..4, path, elements);
    let without_a_batch = |sink: &mut dyn GradientSink| {
        let error = sink.put("w", of("w", 6));
        assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");
        let error = sink.commit();
        assert!(matches!(error, Err(Error::NoBatch)), "{error:?}");
    };
    without_a_batch(sink);
    sink.begin("t", &samples(2..4)).expect("new samples");
    sink.put("b", of("b", 3)).expect("a parameter");
    let error = sink.put("b", of("b", 3));
    assert!(
        matches!(&error, Err(Error::ParameterTwice { parameter }) if parameter == "b"),
        "{error:?}"
    );
    let error = sink.put("w", of("b", 3));
    assert!(
        matches!(&error, Err(Error::Shape { parameter, .. }) if parameter == "w"),
        "{error:?}"
    );
    let error = sink.commit();
    assert!(
        matches!(&error, Err(Error::MissingParameter { parameter }) if parameter == "w"),
        "{error:?}"
    );
    // That batch is over.
    without_a_batch(sink);
    let twice = [samples(2..3), samples(2..3)].concat();
    for (samples, id) in [(samples(1..3), "s1"), (twice, "s2")] {
        sink.begin("t", &self::samples(4..6)).expect("new samples");
        let error = sink.begin("t", &samples);
        assert!(
            matches!(&error, Err(Error::SampleTwice { sample, .. }) if sample == id),
            "{error:?}"
        );
        without_a_batch(sink);
    }
    let mut twice = batch(2..4);
    twice.insert("b", of("b", 3));
    let error = sink.push_batch("t", twice);
    assert!(
        matches!(&error, Err(Error::ParameterTwice { parameter }) if parameter == "b"),
        "{error:?}"
    );
}

#[test]
fn what_is_wrong_with_a_batch_is_said() {
    let mut store = store(&GradientStoreConfig::new(1 << 20));
    let mut statistics = statistics(&StatisticsConfig::new());
    let mut sink = (&mut statistics, &mut store);
    sink.push_batch("t", batch(0..2)).expect("room");
    let before = held(sink.0, sink.1);
    refuses(sink.0);
    refuses(sink.1);
    refuses(&mut sink);
    assert!(held(sink.0, sink.1) == before);
}

/// An unknown parameter is refused where it is put, and passed over in a batch that is for others too.
#[test]
fn what_nobody_asked_for_is_refused_or_passed_over() {
    let mut store = store(&GradientStoreConfig::new(1 << 20));
    let mut statistics = statistics(&StatisticsConfig::new());
    let sinks: [&mut dyn GradientSink; 2] = [&mut statistics, &mut store];
    let mut more = batch(0..2);
    more.insert("c", gradient(0..2, "c", 3));
    for sink in sinks {
        assert!(sink.wants("w") && sink.wants("b") && !sink.wants("c"));
        sink.begin("t", &samples(0..2)).expect("new samples");
        let error = sink.put("c", gradient(0..2, "c", 3));
        assert!(
            matches!(&error, Err(Error::UnknownParameter { parameter, .. }) if parameter == "c"),
            "{error:?}"
        );
        sink.push_batch("t", more.clone()).expect("what is known");
    }
    let error = statistics.push("u", more);
    assert!(
        matches!(&error, Err(Error::UnknownParameter { parameter, .. }) if parameter == "c"),
        "{error:?}"
    );
    assert_eq!(statistics.tasks().collect::<Vec<_>>(), ["t"]);
}

const SAMPLES: usize = 6;
/// Rows of a matrix, and its columns.
const SIDE: usize = 16;

/// The same gradients of a square matrix, one by one in float64, and in several forms.
struct Forms {
    gradients: Vec<f32>,
    forms: Vec<SampleGradient>,
}

impl Forms {
    fn full(&self, device: &Device) -> SampleGradient {
        let shape = [SAMPLES, SIDE * SIDE];
        SampleGradient::full(tensor(&self.gradients, shape, device))
    }
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn draw(count: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(-1.0f32..1.0))
        .collect()
}

fn product(positions: usize, device: &Device) -> Forms {
    let side = |seed| draw(SAMPLES * positions * SIDE, seed);
    of_factors(&side(1), &side(2), positions, device)
}

fn of_factors(left: &[f32], right: &[f32], positions: usize, device: &Device) -> Forms {
    let mut gradients = Vec::new();
    for sample in 0..SAMPLES {
        for (row, column) in (0..SIDE * SIDE).map(|e| (e / SIDE, e % SIDE)) {
            let positions = sample * positions..(sample + 1) * positions;
            let sides = positions.map(|at| [left[at * SIDE + row], right[at * SIDE + column]]);
            let terms = sides.map(|[left, right]| f64::from(left) * f64::from(right));
            gradients.push(terms.sum::<f64>() as f32);
        }
    }
    let [left, right] = [left, right].map(|side| tensor(side, [SAMPLES, positions, SIDE], device));
    Forms {
        gradients,
        forms: vec![SampleGradient::Outer { left, right }],
    }
}

/// Rows that were looked up, some of them several times by a sample, and the product that this is.
fn lookup(positions: usize, delta: &[f32], device: &Device) -> Forms {
    let length = SAMPLES * positions;
    let ids: Vec<i64> = (0..length).map(|at| (at * at % 11) as i64).collect();
    let mut left = vec![0.0; length * SIDE];
    for (at, id) in ids.iter().enumerate() {
        left[at * SIDE + *id as usize] = 1.0;
    }
    let mut found = of_factors(&left, delta, positions, device);
    let ids = TensorData::new(ids, [SAMPLES, positions]);
    found.forms.push(SampleGradient::Rows {
        ids: Tensor::<2, Int>::from_data(ids, device),
        delta: tensor(delta, [SAMPLES, positions, SIDE], device),
        table: SIDE,
    });
    found
}

/// Nothing but zeros.
fn nothing(device: &Device) -> Forms {
    let mut found = lookup(4, &[0.0; SAMPLES * 4 * SIDE], device);
    found.forms.push(SampleGradient::Zero {
        samples: SAMPLES,
        elements: SIDE * SIDE,
        device: device.clone(),
    });
    found
}

fn name(form: &SampleGradient) -> String {
    let kind = match form {
        SampleGradient::Full(_) => "full",
        SampleGradient::Outer { .. } => "outer",
        SampleGradient::Rows { .. } => "rows",
        SampleGradient::Zero { .. } => "zero",
        _ => "unknown",
    };
    format!("{kind} of {} positions", form.positions())
}

/// One position and several, so many that they are worth a ghost and so many that they are not; rows
/// of a table; zeros.
fn all(device: &Device) -> [Forms; 5] {
    let delta = draw(SAMPLES * 5 * SIDE, 3);
    [
        product(1, device),
        product(3, device),
        product(9, device),
        lookup(5, &delta, device),
        nothing(device),
    ]
}

/// Statistics of gradients that come after others, so that they are joined to what is there.
fn collect(config: &StatisticsConfig, gradient: SampleGradient, device: &Device) -> Statistics {
    let shape = [SIDE, SIDE];
    let matrix = Parameter::new("w", shape, Role::Matrix, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix]).expect("a parameter");
    let statistics = config.init_for(&catalogue, &HeadLayout::none(), "m".into(), device);
    let mut statistics: Statistics = statistics.expect("statistics");
    let others = draw(SAMPLES * SIDE * SIDE, 4);
    let others = SampleGradient::full(tensor(&others, [SAMPLES, SIDE * SIDE], device));
    for (start, gradient) in [(0, others), (SAMPLES, gradient)] {
        let begun = statistics.begin("t", &samples(start..start + SAMPLES));
        begun.expect("new samples");
        statistics.put("w", gradient).expect("the parameter");
        statistics.commit().expect("finite squares");
    }
    statistics
}

fn agree(name: &str, found: SampleMoments, expected: SampleMoments) {
    assert_eq!(found.count, expected.count, "{name}");
    for (what, found, expected) in [
        ("mean", found.mean, expected.mean),
        ("variance", found.variance, expected.variance),
    ] {
        assert_eq!(found.is_some(), expected.is_some(), "{name}: {what}");
        if let (Some(found), Some(expected)) = (found, expected) {
            let name = format!("{name}: {what}");
            assert_close(&name, &found, &expected, PRODUCTS, 1e-2);
        }
    }
}

#[rstest]
fn every_form_of_gradients_gives_the_same_statistics(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(false, true)] compensated: bool,
    #[values(
        Scheme::OutputChannel,
        Scheme::InputChannel,
        Scheme::Tensor,
        Scheme::Buckets { size: 7 }
    )]
    scheme: Scheme,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let both = StatisticsConfig::new()
        .with_compensated(compensated)
        .with_schemes(vec![(ParamGroup::all(), scheme)]);
    let read = |welford: &Welford| welford.read().expect("values");
    let configs = [
        both.clone(),
        both.clone().with_variance(false),
        both.clone().with_elementwise(false),
        both.clone().with_elementwise(false).with_ghost(false),
        both.with_grouped(false),
    ];
    for config in configs {
        for forms in all(&device) {
            let expected = collect(&config, forms.full(&device), &device);
            let expected = expected.task("t").expect("the task");
            for form in forms.forms {
                let name = format!("{} with {config:?}", name(&form));
                let found = collect(&config, form, &device);
                let found = found.task("t").expect("the task");
                assert_eq!(found.samples(), expected.samples());
                let [f, e] = [found, expected].map(|task| task.parameter("w").expect("it"));
                assert_eq!(f.elementwise().is_some(), config.elementwise);
                assert_eq!(f.groups().len(), usize::from(config.grouped));
                if let (Some(f), Some(e)) = (f.elementwise(), e.elementwise()) {
                    assert_eq!(f.variance().is_some(), config.variance);
                    agree(&format!("elements of {name}"), read(f), read(e));
                }
                for ((_, f), (_, e)) in f.groups().iter().zip(e.groups()) {
                    agree(&format!("groups of {name}"), read(f), read(e));
                }
                agree(
                    &format!("trace of {name}"),
                    found.layers(),
                    expected.layers(),
                );
            }
        }
    }
}

#[rstest]
fn sums_over_uses_are_sums_of_gradients(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let values = |tensor: Tensor<2>| tensor.into_data().iter::<f64>().collect::<Vec<f64>>();
    let mut uses = Vec::new();
    for forms in all(&device) {
        let gradients: Vec<f64> = forms.gradients.iter().map(|&g| g.into()).collect();
        let full = forms.full(&device);
        for form in forms.forms.into_iter().chain([full]) {
            let found = values(form.to_full());
            assert_close(&name(&form), &found, &gradients, REORDERED, 1.0);
            uses.push(form);
        }
    }
    for a in &uses {
        for b in &uses {
            let sum = SampleGradient::sum([a.clone(), b.clone()]).expect("two uses");
            assert_eq!(sum.dims(), [SAMPLES, SIDE * SIDE]);
            let expected = values(a.to_full() + b.to_full());
            let name = format!("{} and {}", name(a), name(b));
            assert_close(&name, &values(sum.to_full()), &expected, REORDERED, 1.0);
        }
    }
    let gradients = uses.iter().map(SampleGradient::to_full);
    let expected = gradients.reduce(|sum, gradient| sum + gradient);
    let expected = values(expected.expect("uses"));
    let sum = SampleGradient::sum(uses).expect("uses");
    assert_close("all", &values(sum.to_full()), &expected, REORDERED, 1.0);
    assert!(SampleGradient::sum([]).is_none());
}

/// Whoever changes what statistics know of samples, or where they lie, forgets the batch that was begun.
#[rstest]
fn a_batch_that_was_begun_does_not_outlive_a_change(#[values(0, 1)] change: usize) {
    let config = StatisticsConfig::new();
    let mut counted = statistics(&config);
    counted.begin("task", &samples(0..2)).expect("new samples");
    for (path, gradient) in batch(0..2) {
        counted.put(&path, gradient).expect("a parameter");
    }
    counted.prepare().expect("a batch");
    if change == 0 {
        let mut other = statistics(&config);
        other.push("task", batch(0..2)).expect("a batch");
        counted.merge(other).expect("other samples");
    } else {
        let skipped = &samples(0..1)[0];
        counted.skip("task", skipped, "w").expect("a new sample");
    }
    assert!(matches!(counted.commit(), Err(Error::NoBatch)));
    let seen = counted.task("task").expect("a task").samples().len();
    assert_eq!(seen, 2 - change);
}

/// Products of positions are not in a file: who goes on from one says again whether they are allowed.
#[test]
fn ghosts_stay_away_after_a_file() {
    let shape = [32, 32];
    let matrix = Parameter::new("w", shape, Role::Matrix, Orientation::InputOutput);
    let catalogue = Catalogue::new(vec![matrix]).expect("a parameter");
    let config = StatisticsConfig::new().with_elementwise(false);
    let init = |config: &StatisticsConfig| -> Statistics {
        let statistics = config.init_for(&catalogue, &HeadLayout::none(), "m".into(), &flex());
        statistics.expect("statistics")
    };
    let ways = |statistics: &mut Statistics, id: &str| {
        let sample = Sample::new(id, 1).expect("a token");
        statistics.begin("task", &[sample]).expect("a new sample");
        let side = Tensor::<3>::ones([1, 2, 32], &flex());
        let outer = SampleGradient::Outer {
            left: side.clone(),
            right: side,
        };
        statistics.put("w", outer).expect("a parameter");
        statistics.finish().expect("a batch")[0].1
    };
    let (allowed, refused) = (init(&config), init(&config.with_ghost(false)));
    assert_eq!(ways(&mut allowed.clone(), "first"), Way::Ghost);
    let mut before = refused.clone();
    assert_ne!(ways(&mut before, "first"), Way::Ghost);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    before.save(&path).expect("a file");
    let loaded: Statistics = Statistics::load(&path, &flex()).expect("statistics");
    let mut again = loaded.with_ghosts_of(&refused);
    assert_ne!(ways(&mut again, "second"), Way::Ghost);
}
