//! From tested slices to the report: slices held against each other, pairs called, and what to warn of.

use fisher_core::sample::Sample;
use fisher_core::store::GradientStore;

use super::collision::Sums;
use super::component::{Hit, components, hot_spots, involved};
use super::lengths::Lengths;
use super::report::{Answer, Conflict, ConflictReport, Pairs, SliceConflicts, Verdict};
use super::slice::{Candidate, Setting, Tested};
use super::words::warnings;
use crate::report::{GradientSource, SampleRef};

/// Version of the form of [`ConflictReport`].
const SCHEMA: u64 = 2;

pub(super) fn summarize(
    store: &GradientStore,
    tasks: [&str; 2],
    setting: &Setting,
    tested: &[Tested],
    lengths: Lengths,
) -> ConflictReport {
    let config = setting.config;
    let samples = tasks.map(|task| store.samples(task).to_vec());
    let answers = |question: &dyn Fn(&Tested) -> Option<(f64, f64)>| -> Vec<Option<Answer>> {
        let asked: Vec<_> = tested.iter().map(question).collect();
        let p: Vec<f64> = asked.iter().flatten().map(|(_, p)| *p).collect();
        let mut q = config.correction.q_values(&p).into_iter();
        let mut answer = |(statistic, p)| q.next().map(|q| Answer { statistic, p, q });
        asked
            .into_iter()
            .map(|asked| asked.and_then(&mut answer))
            .collect::<Vec<_>>()
    };
    let apart = answers(&|s| s.relabelled.map(|t| (t.statistic, t.p_low)));
    let opposed = answers(&|s| s.sign.map(|t| (t.t, t.p_low)));
    let aligned = answers(&|s| s.sign.map(|t| (t.t, t.p_high)));
    let tests = opposed.iter().flatten().count();
    let bounds = [&aligned, &opposed].map(|answers| {
        let selected = answers.iter().flatten().filter(|a| a.q <= config.alpha);
        config
            .correction
            .coverage(config.alpha, tests, selected.count())
    });
    let flipped: Vec<f64> = tested.iter().map(|s| s.flipped).collect();
    let flipped = config.correction.q_values(&flipped);

    let mut hits: Vec<Hit> = Vec::new();
    for (slice, of) in tested.iter().enumerate() {
        if flipped[slice] <= config.alpha {
            let q = |c: &Candidate| c.q.max(flipped[slice]);
            hits.extend(
                of.called
                    .iter()
                    .map(|c| hit(slice, of, Candidate { q: q(c), ..*c })),
            );
        }
    }
    hits.sort_by(|x, y| {
        let (a, b) = (&x.found, &y.found);
        a.q.total_cmp(&b.q)
            .then(a.cosine.total_cmp(&b.cosine))
            .then(x.place().cmp(&y.place()))
    });
    let listed = tested.iter().enumerate();
    let listed = listed.flat_map(|(slice, of)| of.lowest.iter().map(move |c| hit(slice, of, *c)));
    let mut lowest: Vec<Hit> = listed.collect();
    lowest.sort_by(|x, y| {
        let order = x.found.cosine.total_cmp(&y.found.cosine);
        order.then(x.place().cmp(&y.place()))
    });
    lowest.truncate(config.lowest);

    let sample = |task: usize, number: usize| SampleRef {
        task: tasks[task].into(),
        id: samples[task][number].id().into(),
    };
    let told = |hit: &Hit, q: Option<f64>| Conflict {
        a: sample(0, hit.samples[0]),
        b: sample(1, hit.samples[1]),
        slice: tested[hit.slice].name.clone(),
        cosine: hit.found.cosine,
        separation: ((1.0 - hit.found.cosine) / 2.0).sqrt(),
        q,
    };
    let mut counts = vec![0; tested.len()];
    let mut thresholds: Vec<Option<f64>> = vec![None; tested.len()];
    for hit in &hits {
        counts[hit.slice] += 1;
        let size = hit.found.cosine.abs();
        let least = thresholds[hit.slice].map_or(size, |least| least.min(size));
        thresholds[hit.slice] = Some(least);
    }
    let clusters = setting.dependence.clusters.each_ref().map(|of| &of[..]);
    let gradients = |sums: &Sums| sums.gradients(clusters, config.level);
    let yes = |answer: Option<Answer>| answer.is_some_and(|answer| answer.q <= config.alpha);
    let slice = |(i, of): (usize, &Tested)| SliceConflicts {
        name: of.name.clone(),
        elements: of.elements,
        verdict: match () {
            () if yes(opposed[i]) => Verdict::Opposed,
            () if yes(aligned[i]) => Verdict::Aligned,
            () if yes(apart[i]) => Verdict::Apart,
            () => Verdict::Unresolved,
        },
        mean_cosine: of.mean,
        sign: of.sign.map(|sign| sign.bounded(bounds)),
        apart: apart[i],
        exact: of.relabelled.is_some_and(|test| test.exact),
        opposed: opposed[i],
        aligned: aligned[i],
        gradients: of.sums.as_ref().and_then(gradients),
        conflicts: counts[i],
        threshold: thresholds[i],
        p_pairs: of.flipped,
        q_pairs: flipped[i],
        without_direction: [0, 1].map(|task| absent(&samples[task], &of.present[task])),
        health: of.health,
        pairs: of
            .all
            .as_ref()
            .map(|all| pairs(of, all, &samples, flipped[i])),
    };
    let slices: Vec<SliceConflicts> = tested.iter().enumerate().map(slice).collect();
    let mut together: Option<Sums> = None;
    let added = tested.iter().filter(|_| !setting.overlapping);
    for sums in added.filter_map(|of| of.sums.as_ref()) {
        match &mut together {
            Some(all) => all.add(sums),
            None => together = Some(sums.clone()),
        }
    }
    let copies = setting.dependence.copies.iter();
    let copies = copies.map(|group| group.iter().map(|(task, i)| sample(*task, *i)).collect());
    let mut report = ConflictReport {
        schema: SCHEMA,
        tasks: tasks.map(Into::into),
        model: store.model().into(),
        gradients: GradientSource::of(store),
        settings: config.clone(),
        samples: [0, 1].map(|task| samples[task].iter().map(|s| s.id().into()).collect()),
        independent: clusters.map(|of| of.iter().max().map_or(0, |last| last + 1)),
        copies: copies.collect(),
        lengths,
        bounds,
        together: together.as_ref().and_then(gradients),
        total: hits.len(),
        conflicts: hits
            .iter()
            .take(config.listed)
            .map(|h| told(h, Some(h.found.q)))
            .collect(),
        lowest: lowest.iter().map(|h| told(h, None)).collect(),
        components: components(&hits, &samples, &sample),
        hot_spots: hot_spots(&hits, tested),
        involved: involved(&hits, &sample),
        warnings: Vec::new(),
        slices,
    };
    report.warnings = warnings(&report, tested, setting);
    report
}

fn hit(slice: usize, of: &Tested, found: Candidate) -> Hit {
    let [a, b] = &of.present;
    Hit {
        slice,
        samples: [a[found.pair / b.len()], b[found.pair % b.len()]],
        found,
    }
}

fn absent(samples: &[Sample], present: &[usize]) -> Vec<String> {
    let absent = samples
        .iter()
        .enumerate()
        .filter(|(i, _)| present.binary_search(i).is_err());
    absent.map(|(_, sample)| sample.id().into()).collect()
}

/// Every pair, no q smaller than the slice's.
fn pairs(
    of: &Tested,
    [cosine, q]: &[Vec<f64>; 2],
    samples: &[Vec<Sample>; 2],
    least: f64,
) -> Pairs {
    let ids = |task: usize| {
        of.present[task]
            .iter()
            .map(move |&i| samples[task][i].id().into())
    };
    let columns = of.present[1].len().max(1);
    let table = |values: &[f64], least: f64| {
        let rows = values.chunks(columns);
        rows.map(|row| row.iter().map(|x| x.max(least)).collect())
            .collect()
    };
    Pairs {
        a: ids(0).collect(),
        b: ids(1).collect(),
        cosine: table(cosine, f64::NEG_INFINITY),
        q: table(q, least),
    }
}
