//! What is called a conflict, and what is none: attacks with a known truth, over seeds and shapes.

use std::collections::BTreeSet;

use fisher_core::store::GradientStore;
use fisher_metrics::conflicts::{ConflictReport, PairOrder, Verdict};
use fisher_metrics::correction::Correction;
use fisher_metrics::damping::Ridge;
use rstest::rstest;

use crate::made::{Made, Noise, name, quiet, report};

/// Both spaces, so that no attack passes in one alone.
fn both(store: &GradientStore) -> [ConflictReport; 2] {
    [None, Some(Ridge::new())].map(|ridge| report(quiet().with_whitening(ridge), store))
}

fn warned(report: &ConflictReport, words: &str) -> bool {
    report
        .warnings
        .iter()
        .any(|warning| warning.contains(words))
}

/// Task a lives in the first half of the elements, b in the second: every cosine across is 0 but for
/// what each sample brings of the other half.
#[rstest]
fn orthogonal_tasks_do_not_conflict(
    #[values([16, 16], [32, 32], [12, 40])] counts: [usize; 2],
    #[values(0, 1, 2)] seed: u64,
    #[values(0.0, 0.5)] spill: f32,
) {
    let mut noise = Noise::new(seed);
    let store = Made::new(counts, 20, 16).store(|task, _, _| {
        let mut row = noise.normals(16);
        let half = |k: usize| (k < 8) == (task == 0);
        row.iter_mut()
            .enumerate()
            .filter(|(k, _)| !half(*k))
            .for_each(|(_, x)| *x *= spill);
        row.iter_mut()
            .enumerate()
            .filter(|(k, _)| half(*k))
            .for_each(|(_, x)| *x += 1.0);
        row
    });
    for report in both(&store) {
        assert_eq!(
            (report.count(Verdict::Opposed), report.total),
            (0, 0),
            "{report}"
        );
        assert!(report.slices.iter().all(|s| s.conflicts == 0));
        // They are apart, and that is not called a conflict.
        assert!(report.count(Verdict::Apart) > 10, "{report}");
    }
}

/// One expected gradient per token; a longer sample has less noise beside it.
#[rstest]
#[case([32, 32], [4, 64])]
#[case([8, 120], [4, 64])]
#[case([24, 24], [12, 20])]
fn tasks_that_agree_do_not_conflict_whatever_their_lengths(
    #[case] counts: [usize; 2],
    #[case] lengths: [u64; 2],
    #[values(0, 1, 2)] seed: u64,
) {
    let mut noise = Noise::new(seed);
    let made = Made {
        tokens: if lengths == [4, 64] {
            |task, _| [4, 64][task]
        } else {
            |task, _| [12, 20][task]
        },
        ..Made::new(counts, 20, 32)
    };
    let store = made.store(|task, _, slice| {
        let tokens = lengths[task] as f32;
        let mean = |k: usize| 0.3 * ((1 + k * 7 + slice) as f32).sin();
        let row = noise.normals(32).into_iter().enumerate();
        row.map(|(k, x)| tokens * mean(k) + tokens.sqrt() * x)
            .collect()
    });
    for report in both(&store) {
        assert_eq!(
            (report.count(Verdict::Opposed), report.total),
            (0, 0),
            "{report}"
        );
        assert!(report.count(Verdict::Aligned) >= 18, "{report}");
        assert!(warned(&report, "differ in length"), "{:?}", report.warnings);
        let together = report.together.expect("gradients").inner;
        assert!(together.interval[0] > 0.0 && together.p_low > 0.99);
    }
    // Among samples of like length: here there are none in both tasks, so nothing can be apart.
    let like = report(quiet().with_like_lengths(true), &store);
    let apart = |r: &ConflictReport| {
        r.slices
            .iter()
            .filter(|s| s.apart.is_some_and(|a| a.q <= 0.05))
            .count()
    };
    if lengths == [4, 64] {
        assert_eq!(apart(&like), 0, "{like}");
        assert!(apart(&report(quiet(), &store)) > 0);
    }
}

/// Lengths that overlap: relabelling among samples of like length takes out what length alone does.
#[rstest]
fn like_lengths_are_compared(#[values(0, 1, 2)] seed: u64) {
    let mut noise = Noise::new(seed);
    let tokens = |task: usize, i: usize| {
        if i.is_multiple_of(6) == (task == 0) {
            64
        } else {
            4
        }
    };
    let made = Made {
        tokens,
        ..Made::new([36, 36], 20, 32)
    };
    let store = made.store(|task, i, _| {
        let tokens = tokens(task, i) as f32;
        let row = noise.normals(32).into_iter();
        row.map(|x| 0.3 * tokens + tokens.sqrt() * x).collect()
    });
    let apart = |like: bool| {
        let report = report(quiet().with_like_lengths(like), &store);
        assert_eq!(warned(&report, "differ in length"), !like);
        report
            .slices
            .iter()
            .filter(|s| s.apart.is_some_and(|a| a.q <= 0.05))
            .count()
    };
    assert!(apart(false) >= 15, "{}", apart(false));
    assert!(apart(true) <= 1, "{}", apart(true));
}

/// Two samples at cosine −1 among samples of nothing: listed, not called, and it is said what it takes.
#[rstest]
fn one_pair_is_listed_and_not_called(
    #[values([4, 4], [16, 16], [40, 24])] counts: [usize; 2],
    #[values(0, 1)] seed: u64,
) {
    let mut noise = Noise::new(seed);
    let shared = Noise::new(99).normals(24);
    let store = Made::new(counts, 3, 24).store(|task, i, slice| match (task, i, slice) {
        (0, 1, 1) => shared.clone(),
        (1, 2, 1) => shared.iter().map(|x| -x).collect(),
        _ => noise.normals(24),
    });
    let report = report(quiet(), &store);
    assert_eq!(report.total, 0, "{report}");
    let first = &report.lowest[0];
    assert_eq!(
        (&*first.a.id, &*first.b.id, &*first.slice),
        ("1", "2", "p01")
    );
    assert!((first.cosine + 1.0).abs() < 1e-6 && first.q.is_none());
    assert!(format!("{report}").contains("sample 2 of b and sample 1 of a on p01: cos −1.00"));
    assert_eq!(
        warned(&report, "it takes 20 pairs of independent samples at least"),
        counts == [4, 4]
    );
    // Three parameters: log2(3 · 20) samples, that a p of all signs of either task can be small enough.
    assert_eq!(report.needed(), 6);
    let said = report.counted();
    let few = counts.iter().any(|n| *n < 6);
    assert_eq!(
        said.contains("samples are too few to find one in a single parameter"),
        few,
        "{said}"
    );
    assert_eq!(
        said.contains("takes 6 of each task at least"),
        few,
        "{said}"
    );
    let none = "no conflict of samples could be found: 4 + 4 samples";
    assert_eq!(said.contains(none), counts == [4, 4], "{said}");
}

/// `pairs` disjoint pairs at cosine near −1, and blocks of samples that all pull apart.
#[rstest]
#[case::disjoint(24, 1)]
#[case::blocks(32, 8)]
fn strong_pairs_are_found(
    #[case] planted: usize,
    #[case] block: usize,
    #[values([36, 36], [48, 40])] counts: [usize; 2],
    #[values(0, 1, 2)] seed: u64,
    #[values(1, 10)] slices: usize,
) {
    let mut noise = Noise::new(seed);
    let elements = 64;
    let store = Made::new(counts, slices, elements).store(|task, i, slice| {
        let mut row = noise.normals(elements);
        if slice == 0 && i < planted {
            // Rows of a Hadamard matrix: dense, and orthogonal to each other.
            let sign =
                |k: usize| [3.0, -3.0][(task + (k & (1 + i / block)).count_ones() as usize) % 2];
            row.iter_mut().enumerate().for_each(|(k, x)| *x += sign(k));
        }
        row
    });
    for report in both(&store) {
        let hit = |c: &&fisher_metrics::conflicts::Conflict| {
            let [a, b]: [usize; 2] = [&c.a.id, &c.b.id].map(|id| id.parse().expect("a number"));
            c.slice == name(0) && a < planted && a / block == b / block
        };
        let right = report.conflicts.iter().filter(hit).count();
        assert_eq!(right, planted * block, "{report}");
        // At most α of those called are wrong on average, in a single run more or fewer.
        assert!(
            report.total - right <= 4 + right / 4,
            "{right} of {}",
            report.total
        );
        assert!(
            report
                .conflicts
                .iter()
                .all(|c| c.q.is_some_and(|q| q <= 0.05))
        );
        let few = report.settings.clone().with_memory(3000);
        let pairs = |report: &ConflictReport| -> BTreeSet<_> {
            let of = report.conflicts.iter();
            of.map(|c| (c.slice.clone(), c.a.id.clone(), c.b.id.clone()))
                .collect()
        };
        assert_eq!(pairs(&crate::made::report(few, &store)), pairs(&report));
        let sentence = &report.sentences(1)[0];
        assert!(sentence.contains(" pulls against sample "), "{sentence}");
    }
}

/// Tasks that agree on most samples, which the model knows: by cosine the agreement stands in the way, by
/// product it does not.
#[rstest]
fn conflicts_beside_agreement_are_found_by_product(#[values(0, 1, 2)] seed: u64) {
    let mut noise = Noise::new(seed);
    let elements = 32;
    let shared = Noise::new(77).normals(elements);
    let store = Made::new([40, 40], 4, elements).store(|task, i, _| {
        // The first twelve want opposite things; the others the same, with small gradients.
        let (sign, size) = if i < 12 {
            ([1.0, -1.0][task], 1.0)
        } else {
            (1.0, 0.02)
        };
        let row = noise.normals(elements).into_iter().zip(&shared);
        row.map(|(x, u)| size * (sign * u + 0.5 * x)).collect()
    });
    let [cosine, product] = [PairOrder::Cosine, PairOrder::Product]
        .map(|order| report(quiet().with_order(order), &store));
    assert_eq!(cosine.total, 0, "{cosine}");
    let hit = |c: &&fisher_metrics::conflicts::Conflict| {
        [&c.a.id, &c.b.id]
            .iter()
            .all(|id| id.parse::<usize>().is_ok_and(|i| i < 12))
    };
    let right = product.conflicts.iter().filter(hit).count();
    assert!(right >= 4 * 130, "{product}");
    assert!(
        product.total - right <= product.total / 5,
        "{right} of {}",
        product.total
    );
}

/// Of many slices one is opposed: there are draws enough to select it.
#[rstest]
fn one_slice_among_many_is_selected(
    #[values(51, 130)] slices: usize,
    #[values([16, 16], [24, 12])] counts: [usize; 2],
    #[values(0, 1)] seed: u64,
) {
    let made = Made::new(counts, slices, 16);
    let config = quiet();
    let mean = |task: usize, _: usize, slice: usize| match slice {
        7 => [30.0, -30.0][task],
        _ => 0.0,
    };
    let report = made.shifted(config.clone(), seed, mean);
    let found = &report.slices[7];
    assert!(found.mean_cosine.expect("pairs") < -0.97);
    assert_eq!(found.verdict, Verdict::Opposed);
    for answer in [found.apart, found.opposed] {
        assert!(answer.expect("an answer").q <= 0.05, "{answer:?}");
    }
    assert!(found.aligned.expect("an answer").q > 0.9);
    assert_eq!(found.conflicts, counts[0] * counts[1]);
    assert!(report.pairs() >= found.conflicts && report.pairs() <= report.total);
    // Intervals and verdicts are one statement.
    for slice in &report.slices {
        let [low, high] = slice.sign.expect("a test").interval;
        assert_eq!(high < 0.0, slice.verdict == Verdict::Opposed, "{slice:?}");
        assert_eq!(low > 0.0, slice.verdict == Verdict::Aligned, "{slice:?}");
    }
    assert_eq!(report.by_evidence()[0].name, name(7));
    let signs = report.signs();
    let [opposed, aligned] = [Verdict::Opposed, Verdict::Aligned].map(|of| report.count(of));
    let said = format!("is negative in {opposed} and positive in {aligned} of");
    assert!(signs.contains(&said), "{signs}");
    assert!(!report.collision().is_some_and(|said| said.contains('±')));
    assert!(!warned(&report, "no single parameter"));
    // With few relabellings none could be, and that is said.
    let few = made.shifted(config.with_relabellings(Some(500)), seed, mean);
    assert!(warned(&few, "no single parameter can be told apart"));
    assert!(few.slices[7].apart.expect("an answer").q > 0.05);
}

/// Samples that are there several times count once, and that they are is said.
#[rstest]
fn copies_are_one_sample(
    #[values(0, 1, 2)] seed: u64,
    #[values(1, 4)] times: usize,
    #[values(None, Some(Ridge::new()))] ridge: Option<Ridge>,
) {
    let mut noise = Noise::new(seed);
    let (slices, elements) = (40, 16);
    let mut first: Vec<Vec<Vec<f32>>> = vec![Vec::new(); slices];
    // 5 samples of a are there again, or one of them four times more.
    let store = Made::new([32, 32], slices, elements).store(|task, i, slice| {
        if task == 0 && i >= 32 - 5 {
            return first[slice][if times == 1 { i - 27 } else { (i - 27) / 5 }].clone();
        }
        let row = noise.normals(elements);
        if task == 0 {
            first[slice].push(row.clone());
        }
        row
    });
    let report = report(quiet().with_whitening(ridge), &store);
    let groups: Vec<usize> = report.copies.iter().map(Vec::len).collect();
    assert_eq!(groups, if times == 1 { vec![2; 5] } else { vec![6] });
    assert_eq!(report.independent, [27, 32]);
    assert!(warned(&report, "copies (in every parameter"));
    assert!(report.count(Verdict::Unresolved) >= 39, "{report}");
    assert_eq!(report.total, 0);
    if report.count(Verdict::Unresolved) == 40 {
        let signs = report.signs();
        assert!(
            signs.contains("is unresolved in all 40 parameters"),
            "{signs}"
        );
    }
}

/// Copies of another task's samples are told, and so are clusters that lie in both tasks.
#[test]
fn copies_across_tasks_are_told() {
    let mut noise = Noise::new(3);
    let mut kept: Vec<Vec<f32>> = Vec::new();
    let store = Made::new([12, 12], 1, 16).store(|task, i, _| {
        if task == 1 && i < 3 {
            return kept[i].clone();
        }
        kept.push(noise.normals(16));
        kept[kept.len() - 1].clone()
    });
    let report = report(quiet(), &store);
    assert_eq!(report.copies.len(), 3);
    assert!(
        warned(&report, "3 groups of copies are in both tasks"),
        "{:?}",
        report.warnings
    );
    assert_eq!(report.independent, [12, 12]);
}

/// Chunks of one document share a direction: by sample nearly everything would be apart.
#[rstest]
fn clusters_count_once(
    #[values(0, 1, 2)] seed: u64,
    #[values([32, 32], [48, 24])] counts: [usize; 2],
) {
    let run = |cluster: usize| {
        let mut noise = Noise::new(seed);
        let mut document = Vec::new();
        let made = Made {
            cluster,
            ..Made::new(counts, 20, 16)
        };
        let store = made.store(|_, i, _| {
            if i.is_multiple_of(4) {
                document = noise.normals(16);
            }
            let row = noise.normals(16).into_iter().zip(&document);
            row.map(|(x, d)| 0.5 * x + d).collect()
        });
        report(quiet(), &store)
    };
    let naive = run(1);
    assert!(naive.count(Verdict::Unresolved) < 10, "{naive}");
    let told = run(4);
    assert_eq!(told.independent, counts.map(|n| n / 4));
    assert!(told.count(Verdict::Unresolved) >= 19, "{told}");
    assert_eq!(told.total, 0);
}

/// Where b's gradients share a direction and single samples of a happen to lie along it, a whole row of
/// pairs is negative at once: no conflict is called for the sign of one sample.
#[test]
fn a_row_of_one_sample_is_no_evidence() {
    let (mut called, runs) = (0, 100);
    for seed in 0..runs {
        let mut noise = Noise::new(seed);
        let store = Made::new([32, 32], 5, 8).store(|task, _, _| {
            let mut row = noise.normals(8);
            let lies = noise.uniform() < 0.08;
            let sign = if noise.uniform() < 0.5 { -10.0 } else { 10.0 };
            row[0] += match (task, lies) {
                (1, _) => 6.0,
                (_, true) => sign,
                _ => 0.0,
            };
            row
        });
        called += usize::from(report(quiet().with_seed(seed), &store).total > 0);
    }
    // α and two standard errors.
    assert!(called <= 9, "{called} of {runs}");
}

/// The same seed gives the same report, another not quite the same.
#[test]
fn seeds_decide() {
    let made = Made::new([16, 15], 6, 8);
    let json = |seed| {
        let mean = |task: usize, _, slice: usize| [0.3, -0.3][task] * (slice == 2) as u8 as f32;
        serde_json::to_value(made.shifted(quiet().with_seed(seed), 5, mean).slices).expect("JSON")
    };
    assert_eq!(json(1), json(1));
    assert_ne!(json(1), json(2));
}

/// Of 20 slices 5 are opposed: false ones among those called are as rare as asked, for every question
/// and correction; true ones are found.
#[test]
fn false_discoveries_are_as_rare_as_asked() {
    let (runs, alpha) = (100, 0.1);
    for shift in [0.0f32, 2.5] {
        for correction in [
            Correction::BenjaminiHochberg,
            Correction::BenjaminiYekutieli,
        ] {
            let mut rates = vec![Vec::new(); 3];
            let mut found = 0;
            for seed in 0..runs {
                let mean = |task: usize, _: usize, slice: usize| match slice {
                    0..5 => [shift, -shift][task],
                    _ => 0.0,
                };
                let config = quiet()
                    .with_alpha(alpha)
                    .with_correction(correction)
                    .with_seed(seed);
                let report = Made::new([12, 12], 20, 8).shifted(config, 1000 + seed, mean);
                let questions =
                    |s: &fisher_metrics::conflicts::SliceConflicts| [s.apart, s.opposed, s.aligned];
                for (question, rates) in rates.iter_mut().enumerate() {
                    let yes = |i: &usize| {
                        questions(&report.slices[*i])[question].is_some_and(|a| a.q <= alpha)
                    };
                    let called: Vec<usize> = (0..20).filter(yes).collect();
                    let truth = if shift == 0.0 || question == 2 { 0 } else { 5 };
                    let wrong = called.iter().filter(|i| **i >= truth).count();
                    rates.push(wrong as f64 / called.len().max(1) as f64);
                    if question == 1 {
                        found += called.len() - wrong;
                    }
                }
            }
            for rates in rates {
                let n = rates.len() as f64;
                let mean = rates.iter().sum::<f64>() / n;
                let squares = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>();
                let error = (squares / (n - 1.0) / n).sqrt();
                assert!(
                    mean <= alpha + 2.0 * error,
                    "{shift} {correction:?}: {mean} ± {error}"
                );
            }
            let power = found as f64 / (5 * runs) as f64;
            assert!(shift == 0.0 || power > 0.8, "{correction:?} {power}");
        }
    }
}

/// Kolmogorov and Smirnov's distance to the uniform distribution.
fn distance_to_uniform(p: &mut [f64]) -> f64 {
    p.sort_by(f64::total_cmp);
    let n = p.len() as f64;
    let at = |(i, p): (usize, &f64)| (p - i as f64 / n).abs().max(((i + 1) as f64 / n - p).abs());
    p.iter().enumerate().map(at).fold(0.0, f64::max)
}

/// Where tasks are alike, relabelling gives uniform p-values, for unequal tasks and whitened ones too.
#[rstest]
fn p_values_are_uniform_under_the_null(
    #[values(None, Some(Ridge::new()))] whitening: Option<Ridge>,
    #[values([12, 12], [20, 7])] counts: [usize; 2],
) {
    let runs = 200;
    let mut p: Vec<f64> = (0..runs)
        .map(|seed| {
            let config = quiet()
                .with_whitening(whitening.clone())
                .with_relabellings(Some(499));
            let report =
                Made::new(counts, 1, 8).shifted(config.with_seed(seed), seed, |_, _, _| 0.0);
            let answer = report.slices[0].apart.expect("a test");
            assert!(!report.slices[0].exact && answer.p > 0.0);
            answer.p
        })
        .collect();
    // The distance that 200 uniform numbers exceed once in a thousand times.
    let bound = 1.95 / f64::from(runs as u32).sqrt();
    let distance = distance_to_uniform(&mut p);
    assert!(distance < bound, "{distance} of {bound}");
}

/// The sign's test holds its size where directions are skewed, and its interval covers.
#[test]
fn skewed_directions_keep_their_size() {
    let runs = 400;
    let [mut opposed, mut aligned, mut covered] = [0; 3];
    // The mean of the first element's share, which is what b's common direction sees.
    let shift = 1.0f32;
    let row = |noise: &mut Noise, task: usize| {
        let mut row: Vec<f32> = noise.normals(8).iter().map(|x| 0.3 * x).collect();
        if task == 1 {
            row[0] += 8.0;
        } else {
            row[0] = shift + (1.0 - noise.uniform()).ln();
            // All of one length, so that the expected cosine is 0.
            let rest: f32 = row[1..].iter().map(|x| x * x).sum();
            let scale = ((100.0 - row[0] * row[0]).max(0.0) / rest).sqrt();
            row[1..].iter_mut().for_each(|x| *x *= scale);
        }
        row
    };
    for seed in 0..runs {
        let mut noise = Noise::new(seed);
        let store = Made::new([24, 24], 1, 8).store(|task, _, _| row(&mut noise, task));
        let sign = report(quiet().with_relabellings(Some(1)), &store).slices[0]
            .sign
            .expect("a test");
        opposed += usize::from(sign.p_low <= 0.05);
        aligned += usize::from(sign.p_high <= 0.05);
        let [low, high] = sign.at_level(0.95).expect("a level").interval;
        covered += usize::from(low <= 0.0 && high >= 0.0);
    }
    // 0.05 and three standard errors; 0.95 less as many.
    assert!(
        opposed <= 33 && aligned <= 33,
        "{opposed} {aligned} of {runs}"
    );
    assert!(covered >= 367, "{covered} of {runs}");
}
