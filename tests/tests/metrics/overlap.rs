//! How far masks agree beyond chance, and beside what one task agrees with itself.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::grouping::{GroupReduction, HeadLayout};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::Error;
use fisher_metrics::pruning::{
    Advice, Masks, OverlapConfig, OverlapReport, PruningConfig, Scope, Scores, Suggestion,
};
use fisher_tests::backend::Backend;
use fisher_tests::golden::{CASES, Golden, TASKS};
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rstest::rstest;

use crate::stored;

fn masks(scores: &Scores, sparsity: f64, scope: Scope) -> Masks {
    let pruning = PruningConfig::new(sparsity)
        .with_scope(scope)
        .with_protected_roles(Vec::new());
    let pruning = pruning.init().expect("a share");
    pruning.forward(scores).expect("masks")
}

fn overlap(a: &Masks, b: &Masks) -> OverlapReport {
    let overlap = OverlapConfig::new().init().expect("settings");
    overlap.forward(a, b).expect("one model")
}

/// Scores of elements of made-up tensors.
fn scores(task: &str, tensors: &[Vec<f64>]) -> Scores {
    let parameter = |(i, values): (usize, &Vec<f64>)| {
        let path = format!("layers.{i}.w");
        Parameter::new(
            path,
            [1, values.len()],
            Role::Matrix,
            Orientation::InputOutput,
        )
    };
    let parameters = tensors.iter().enumerate().map(parameter);
    let catalogue = Catalogue::new(parameters.collect()).expect("parameters");
    let device = Device::flex();
    let statistics =
        StatisticsConfig::new().init_for(&catalogue, &HeadLayout::none(), "m".into(), &device);
    let mut statistics: Statistics = statistics.expect("statistics");
    let mut batch = GradientBatch::new(vec![Sample::new("0", 1).expect("tokens")]);
    for (i, values) in tensors.iter().enumerate() {
        let roots: Vec<f64> = values.iter().map(|v| v.sqrt()).collect();
        let data = TensorData::new(roots, [1, values.len()]);
        let tensor = Tensor::<2>::from_data(data, (&device, DType::F64));
        batch.insert(format!("layers.{i}.w"), Gradient::token_sum(tensor));
    }
    statistics.push(task, batch).expect("gradients");
    Scores::elementwise(&statistics, task).expect("scores")
}

/// Tensors of independent scores, each of a scale of its own.
fn random(rng: &mut ChaCha8Rng, scales: &[f64], elements: usize) -> Vec<Vec<f64>> {
    let tensor = |scale: &f64| (0..elements).map(|_| scale * rng.random::<f64>()).collect();
    scales.iter().map(tensor).collect()
}

#[rstest]
fn golden_agreement_agrees(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    for case in CASES {
        let golden = Golden::load(case);
        let expected = golden.topic("overlap");
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        let mut statistics: Statistics = golden.statistics(&StatisticsConfig::new(), &device);
        let half = |task: &str, second: bool| format!("{task}, {second}");
        for task in TASKS {
            let count = golden.samples(task).len();
            let all = golden.batch(task, 0..count, &device);
            statistics.push(task, all).expect("gradients");
            for (second, range) in [(false, 0..count / 2), (true, count / 2..count)] {
                let batch = golden.batch(task, range, &device);
                let pushed = statistics.push(&half(task, second), batch);
                pushed.expect("gradients");
            }
        }
        for (scope, name) in [(Scope::Global, "global"), (Scope::Tensor, "tensor")] {
            for sparsity in [0.5, 0.7, 0.9] {
                let [a, b] = TASKS.map(|task| {
                    let scores = Scores::grouped(&statistics, task).expect("scores");
                    masks(&scores, sparsity, scope)
                });
                let found = overlap(&a, &b).all.stratified.expect("a chance");
                let expected = number(&expected["stratified"][format!("{name}@{sparsity}")]);
                assert_close("stratified", &[found], &[expected], GOLDEN, 1.0);
            }
            let of = |task: &str| {
                let scores = Scores::elementwise(&statistics, task).expect("scores");
                masks(&scores, 0.5, scope)
            };
            let halves = TASKS.map(|task| [[false, true].map(|second| of(&half(task, second)))]);
            let whole = TASKS.map(of);
            let report = OverlapConfig::new().init().expect("settings");
            let report = report
                .forward_with_halves([&whole[0], &whole[1]], [&halves[0], &halves[1]])
                .expect("one model");
            let ceiling = report.ceiling.expect("halves");
            let expected = &expected["halves"][name];
            for (found, expected) in [
                (ceiling.within[0], &expected["within"][0]),
                (ceiling.within[1], &expected["within"][1]),
                (ceiling.jaccard_within[0], &expected["jaccard_within"][0]),
                (ceiling.jaccard_within[1], &expected["jaccard_within"][1]),
                (ceiling.across, &expected["across"]),
                (ceiling.jaccard_across, &expected["jaccard_across"]),
                (ceiling.relative, &expected["relative"]),
                // Halved in one way.
                (ceiling.spread.map(|[low, _]| low), &expected["relative"]),
                (ceiling.spread.map(|[_, high]| high), &expected["relative"]),
            ] {
                let found = found.expect("a number");
                assert_close("halves", &[found], &[number(expected)], GOLDEN, 1.0);
            }
        }
    }
}

/// Masks that are independent within each tensor agree by chance alone, though the tensors' scales make
/// them agree on which tensors to keep.
#[rstest]
fn scales_of_tensors_are_no_agreement(
    #[values(0.1, 0.5, 0.9)] sparsity: f64,
    #[values(2.0, 3.0, 10.0)] ratio: f64,
    #[values(1, 2)] seed: u64,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let scales: Vec<f64> = (0..6).map(|i| f64::powi(ratio, i)).collect();
    let [a, b] = ["a", "b"].map(|task| {
        let scores = scores(task, &random(rng, &scales, 3000));
        masks(&scores, sparsity, Scope::Global)
    });
    let all = overlap(&a, &b).all;
    assert!(
        all.stratified.is_none_or(|kappa| kappa.abs() < 0.05),
        "{all:?}"
    );
    let pooled = all.kappa.expect("a chance");
    assert!(pooled > 0.1, "{pooled}");
}

/// Independent masks at low sparsity share nearly all they keep, and suggest nothing of it.
#[rstest]
fn independent_masks_do_not_need_the_same_weights(
    #[values(1, 2, 3)] seed: u64,
    #[values(Scope::Global, Scope::Tensor)] scope: Scope,
) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let [a, b] = [0, 1].map(|_| random(rng, &[1.0, 4.0], 4000));
    // A half is the whole, with noise of its own.
    let mut half = |task: &str, of: &[Vec<f64>]| {
        let noisy = of.iter().map(|values| {
            let noisy = values.iter().map(|x| x + 0.2 * rng.random::<f64>());
            noisy.collect()
        });
        scores(task, &noisy.collect::<Vec<_>>())
    };
    let halves_a = [half("a", &a), half("a", &a)];
    let halves_b = [half("b", &b), half("b", &b)];
    let whole = [scores("a", &a), scores("b", &b)];
    let mut reports = Vec::new();
    for sparsity in [0.05, 0.1, 0.5] {
        let masks = |scores: &Scores| masks(scores, sparsity, scope);
        let [of_a, of_b] = [&halves_a, &halves_b].map(|half| [half.each_ref().map(masks)]);
        let [a, b] = whole.each_ref().map(masks);
        let config = OverlapConfig::new().with_rule_of_thumb(Some(Default::default()));
        let overlap = config.init().expect("settings");
        let report = overlap.forward_with_halves([&a, &b], [&of_a, &of_b]);
        let report = report.expect("one model");
        assert!(report.all.stratified.expect("chance").abs() < 0.05);
        if sparsity <= 0.1 {
            // What the rule of thumb makes of it.
            assert!(report.all.jaccard.expect("some") > 0.8);
            let (_, thumb) = report.rule_of_thumb.expect("asked for");
            assert_eq!(thumb, Some(Advice::Surgery));
        }
        reports.push(report);
    }
    let suggestion = Suggestion::of(&reports).expect("reports");
    assert_eq!(suggestion.advice, Some(Advice::Arithmetic), "{suggestion}");
    assert!(
        suggestion
            .to_string()
            .contains("suggests plain task arithmetic")
    );

    // The same task under two names reaches its own ceiling, at all sparsities together.
    let masks = |scores: &Scores| masks(scores, 0.5, scope);
    let itself = halves_a.each_ref().map(masks);
    let mut again = itself.clone();
    again.iter_mut().for_each(|half| half.task = "b".into());
    let overlap = OverlapConfig::new().init().expect("settings");
    let same = overlap.forward_with_halves(
        [&itself[0], &again[1]],
        [std::slice::from_ref(&itself), std::slice::from_ref(&again)],
    );
    let suggestion = Suggestion::of([&same.expect("one model")]).expect("a report");
    assert_eq!(suggestion.advice, Some(Advice::Surgery), "{suggestion}");

    // Without halves there is no measure, and where a task does not agree with itself neither.
    reports.iter_mut().for_each(|report| report.ceiling = None);
    let suggestion = Suggestion::of(&reports).expect("reports");
    assert_eq!(suggestion.advice, None);
    assert!(
        suggestion.to_string().contains("is not resolved"),
        "{suggestion}"
    );
    let noise = overlap.forward_with_halves(
        [&itself[0], &again[0]],
        [&[[masks(&whole[0]), masks(&whole[1])]], &[again.clone()]],
    );
    let suggestion = Suggestion::of([&noise.expect("one model")]).expect("a report");
    assert_eq!(suggestion.advice, None);
    assert!(
        suggestion.to_string().contains("too few to tell"),
        "{suggestion}"
    );
}

/// One sentence for all sparsities: what some suggest and others contradict is neither.
#[test]
fn contradictions_are_one_sentence() {
    let [a, b] = ["a", "b"].map(|task| {
        masks(
            &scores(task, &[vec![1.0, 2.0, 3.0, 4.0]]),
            0.5,
            Scope::Global,
        )
    });
    let halves = |masks: &Masks| [[masks.clone(), masks.clone()]];
    let overlap = OverlapConfig::new().init().expect("settings");
    let report = overlap.forward_with_halves([&a, &b], [&halves(&a), &halves(&b)]);
    let report = report.expect("one model");
    let at = |relative: f64| {
        let mut report = report.clone();
        let ceiling = report.ceiling.as_mut().expect("halves");
        ceiling.relative = Some(relative);
        ceiling.spread = Some([relative; 2]);
        report
    };
    let advice = |of: &[f64]| {
        let reports: Vec<OverlapReport> = of.iter().map(|r| at(*r)).collect();
        Suggestion::of(&reports).expect("reports").advice
    };
    assert_eq!(advice(&[0.1, 0.2]), Some(Advice::Arithmetic));
    assert_eq!(advice(&[0.8, 1.1]), Some(Advice::Surgery));
    assert_eq!(advice(&[0.3, 0.7]), Some(Advice::WeightedArithmetic));
    assert_eq!(advice(&[0.1, 0.9]), None);
    // Nor is anything suggested by what is known no better than that.
    let mut vague = at(0.85);
    vague.ceiling.as_mut().expect("halves").spread = Some([0.5, 1.2]);
    let suggestion = Suggestion::of([&vague]).expect("a report");
    assert_eq!(suggestion.advice, None);
    let sentence = suggestion.to_string();
    for said in [
        "is not resolved",
        "by 85 % of what halves",
        "50 % to 120 % over ways",
    ] {
        assert!(sentence.contains(said), "{sentence}");
    }
    // Six samples suggest nothing, whatever they agree on.
    let clear = || Suggestion::of([&at(0.9)]).expect("a report");
    assert_eq!(clear().from_samples([16, 40]).advice, Some(Advice::Surgery));
    let few = clear().from_samples([6, 40]);
    assert_eq!(few.advice, None);
    let sentence = few.to_string();
    assert!(
        sentence.contains("not resolved: 6 and 40 samples are too few"),
        "{sentence}"
    );
    // A sparsity without a ceiling says nothing, and then neither do all of them together.
    let mut without = at(0.1);
    without.ceiling.as_mut().expect("halves").relative = None;
    let suggestion = Suggestion::of([&at(0.1), &without]).expect("reports");
    assert_eq!(suggestion.advice, None);
    assert_eq!((suggestion.sparsities, suggestion.measured), (2, 1));
    let sentence = suggestion.to_string();
    assert!(sentence.contains("at 1 of 2 sparsities"), "{sentence}");
    assert_eq!(Suggestion::of([]), None);
    let error = overlap.forward_with_halves([&a, &b], [&halves(&a), &[]]);
    assert!(matches!(error, Err(Error::Argument { .. })));
}

/// Halves from a store are F of some half of the samples, in groups as in elements; and both halves
/// together are all samples.
#[rstest]
fn halves_of_a_store_are_halves(
    #[values(GroupReduction::Mean, GroupReduction::Sum)] reduction: GroupReduction,
) {
    let device = Device::flex();
    for case in CASES {
        let golden = Golden::load(case);
        let store = stored(&golden, &GradientStoreConfig::new(1 << 24), 3, &device);
        let config = StatisticsConfig::new().with_reduction(reduction);
        let mut statistics: Statistics = golden.statistics(&config, &device);
        let task = TASKS[0];
        let samples = golden.samples(task);
        let n = samples.len();
        statistics
            .push(task, golden.batch(task, 0..n, &device))
            .expect("it");
        for i in 0..n {
            let one = golden.batch(task, i..i + 1, &device);
            statistics.push(&format!("{i}"), one).expect("gradients");
        }
        let scores = |task: &str| {
            [
                Scores::grouped(&statistics, task).expect("groups"),
                Scores::elementwise(&statistics, task).expect("elements"),
            ]
        };
        let values = |scores: &Scores| -> Vec<f64> {
            let sets = scores.sets().iter();
            sets.flat_map(|set| set.values().to_vec()).collect()
        };
        for (at, all) in scores(task).iter().enumerate() {
            let each: Vec<Vec<f64>> = (0..n)
                .map(|i| values(&scores(&format!("{i}"))[at]))
                .collect();
            let subsets: Vec<Vec<f64>> = (0u32..1 << n)
                .map(|set| {
                    let of = (0..n).filter(|i| set >> i & 1 == 1).map(|i| &each[i]);
                    let count = f64::from(set.count_ones().max(1));
                    of.fold(vec![0.0; each[0].len()], |mut sum, x| {
                        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x / count);
                        sum
                    })
                })
                .collect();
            let found = all.halves(&store, task, 4, 7).expect("halves");
            let again = all.halves(&store, task, 4, 7).expect("halves");
            assert_eq!(found.len(), 4);
            for (halves, again) in found.iter().zip(&again) {
                let [x, y] = halves.each_ref().map(values);
                assert_eq!(x, values(&again[0]));
                let off = |x: &[f64], set: u32| {
                    let pairs = x.iter().zip(&subsets[set as usize]);
                    let largest = x.iter().fold(0.0, |m: f64, x| m.max(*x));
                    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max) / largest
                };
                let sets = 0u32..1 << n;
                let set = sets
                    .clone()
                    .min_by(|s, t| off(&x, *s).total_cmp(&off(&x, *t)));
                let set = set.expect("sets");
                assert!(off(&x, set) < GOLDEN, "{}", off(&x, set));
                assert!([n / 2, n.div_ceil(2)].contains(&(set.count_ones() as usize)));
                assert!(off(&y, sets.end - 1 - set) < GOLDEN);
            }
        }
        let [_, elements] = scores(task);
        let error = elements.halves(&store, "nobody", 1, 0);
        assert!(matches!(error, Err(Error::TooFewSamples { found: 0, .. })));
        let other = elements.map(|x| x);
        let error = other.halves(&store, task, 1, 0);
        assert!(matches!(error, Err(Error::Kinds { .. })));
    }
}
