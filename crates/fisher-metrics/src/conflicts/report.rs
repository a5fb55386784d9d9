//! The report of [`Conflicts`](super::Conflicts).

use std::fmt;

use fisher_core::sample::Sample;
use fisher_core::store::GradientStore;
use serde::{Deserialize, Serialize};

use super::cluster::{Cluster, Hit, HotSpot, Involved, clusters, hot_spots, involved};
use super::config::ConflictsConfig;
use super::test::{MeanCosine, Tested, separation};
use crate::damping::Health;
use crate::permutation::Relabelled;
use crate::picture::{ColorScale, HeatMap, Picture};
use crate::report::{GradientSource, SampleRef};

/// Version of the form of [`ConflictReport`].
const SCHEMA: u64 = 1;

/// Two samples that collide in a slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conflict {
    /// The sample of the first task.
    pub a: SampleRef,
    /// The sample of the second task.
    pub b: SampleRef,
    /// The slice.
    pub slice: String,
    /// `cos(g_i, g_j)`.
    pub cosine: f64,
    /// `√((1 − cos)/2)`.
    pub separation: f64,
    /// p of the pair.
    pub p: f64,
    /// q of the pair among those of its slice.
    pub q: f64,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b, slice) = (&self.a, &self.b, &self.slice);
        let cosine = format!("{:.2}", self.cosine).replace('-', "−");
        let q = significant(self.q);
        write!(
            f,
            "{b} conflicts with {a} on {slice} (cos {cosine}, q = {q})"
        )
    }
}

/// Three decimals, or as many as the number needs.
fn significant(x: f64) -> String {
    if x < 0.0005 {
        format!("{x:.1e}")
    } else {
        format!("{x:.3}")
    }
}

/// Every pair of samples in a slice: rows are samples of the first task, columns of the second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// Ids of the first task's samples that have a direction here.
    pub a: Vec<String>,
    /// Likewise of the second task's.
    pub b: Vec<String>,
    /// Cosines.
    pub cosine: Vec<Vec<f64>>,
    /// p-values.
    pub p: Vec<Vec<f64>>,
    /// q-values within the slice.
    pub q: Vec<Vec<f64>>,
}

/// One slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceConflicts {
    /// The parameter, head, layer or chosen set.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// Mean cosine between the tasks; `None` where no sample of one has a direction.
    pub mean_cosine: Option<MeanCosine>,
    /// The test; `None` where fewer than two samples of a task have a direction.
    pub test: Option<Relabelled>,
    /// q of the slice.
    pub q: Option<f64>,
    /// Whether `q ≤ α`.
    pub selected: bool,
    /// How many pairs conflict here.
    pub conflicts: usize,
    /// Samples of either task without a direction here: their gradient is 0.
    pub without_direction: [Vec<String>; 2],
    /// State of the whitening F, where gradients were whitened.
    pub health: Option<Health>,
    /// Every pair, if that was asked for.
    pub pairs: Option<Pairs>,
}

/// The conflicts between two tasks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConflictReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks.
    pub tasks: [String; 2],
    /// Hash of the model's weights.
    pub model: String,
    /// The gradients compared.
    pub gradients: GradientSource,
    /// The settings.
    pub settings: ConflictsConfig,
    /// Ids of the samples compared.
    pub samples: [Vec<String>; 2],
    /// All slices, in the model's order.
    pub slices: Vec<SliceConflicts>,
    /// Slices tested.
    pub tested: usize,
    /// Slices selected.
    pub selected: usize,
    /// `α R/m`, the level of the pairs.
    pub pair_level: f64,
    /// Conflicts in all slices.
    pub total: usize,
    /// The conflicts of smallest q (and then smallest cosine).
    pub conflicts: Vec<Conflict>,
    /// Clusters, largest first.
    pub clusters: Vec<Cluster>,
    /// Slices with conflicts, the largest share of pairs first.
    pub hot_spots: Vec<HotSpot>,
    /// Samples with conflicts, most first.
    pub involved: Vec<Involved>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

pub(super) fn summarize(
    config: &ConflictsConfig,
    store: &GradientStore,
    tasks: [&str; 2],
    samples: &[Vec<Sample>; 2],
    tested: &[Tested],
    q: &[Option<f64>],
    pair_level: f64,
) -> ConflictReport {
    let is_selected = |slice: usize| q[slice].is_some_and(|q| q <= config.alpha);
    let mut hits: Vec<Hit> = Vec::new();
    for (slice, of) in tested.iter().enumerate().filter(|(i, _)| is_selected(*i)) {
        let [a, b] = &of.present;
        let found = of.candidates.iter().filter(|c| c.q <= pair_level);
        hits.extend(found.map(|&found| Hit {
            slice,
            samples: [a[found.pair / b.len()], b[found.pair % b.len()]],
            found,
        }));
    }
    hits.sort_by(|x, y| {
        let place = |h: &Hit| (h.slice, h.found.pair);
        let (a, b) = (&x.found, &y.found);
        a.q.total_cmp(&b.q)
            .then(a.cosine.total_cmp(&b.cosine))
            .then(place(x).cmp(&place(y)))
    });
    let sample = |task: usize, number: usize| SampleRef {
        task: tasks[task].into(),
        id: samples[task][number].id().into(),
    };
    let conflict = |hit: &Hit| Conflict {
        a: sample(0, hit.samples[0]),
        b: sample(1, hit.samples[1]),
        slice: tested[hit.slice].name.clone(),
        cosine: hit.found.cosine,
        separation: separation(hit.found.cosine),
        p: hit.found.p,
        q: hit.found.q,
    };
    let counts = |slice: usize| hits.iter().filter(|h| h.slice == slice).count();
    let ids = |task: usize, numbers: &[usize]| -> Vec<String> {
        let ids = numbers.iter().map(|&i| samples[task][i].id().to_owned());
        ids.collect()
    };
    let slices: Vec<SliceConflicts> = tested
        .iter()
        .enumerate()
        .map(|(i, of)| SliceConflicts {
            name: of.name.clone(),
            elements: of.elements,
            mean_cosine: of.mean,
            test: of.relabelled,
            q: q[i],
            selected: is_selected(i),
            conflicts: counts(i),
            without_direction: [0, 1].map(|task| {
                let absent = (0..samples[task].len()).filter(|i| !of.present[task].contains(i));
                ids(task, &absent.collect::<Vec<_>>())
            }),
            health: of.health,
            pairs: of.all.as_ref().map(|all| {
                let [a, b] = [0, 1].map(|task| ids(task, &of.present[task]));
                let table = |values: &[f64]| {
                    let rows = values.chunks(b.len().max(1));
                    rows.map(<[f64]>::to_vec).collect()
                };
                let [cosine, p, q] = all.each_ref().map(|values| table(values));
                Pairs { a, b, cosine, p, q }
            }),
        })
        .collect();
    ConflictReport {
        schema: SCHEMA,
        tasks: tasks.map(Into::into),
        model: store.model().into(),
        gradients: GradientSource::of(store),
        settings: config.clone(),
        samples: [0, 1].map(|task| samples[task].iter().map(|s| s.id().into()).collect()),
        tested: q.iter().flatten().count(),
        selected: slices.iter().filter(|s| s.selected).count(),
        pair_level,
        total: hits.len(),
        conflicts: hits.iter().take(config.listed).map(conflict).collect(),
        clusters: clusters(&hits, samples, &sample),
        hot_spots: hot_spots(&hits, tested),
        involved: involved(&hits, &sample),
        warnings: warnings(&slices, &least_p(tested), pair_level),
        slices,
    }
}

/// The smallest p that a pair of each slice can have.
fn least_p(tested: &[Tested]) -> Vec<f64> {
    let within = |of: &Tested| -> usize {
        let pairs = of
            .present
            .iter()
            .map(|p| p.len() * p.len().saturating_sub(1) / 2);
        pairs.sum()
    };
    tested
        .iter()
        .map(|of| 1.0 / (1 + within(of)) as f64)
        .collect()
}

fn warnings(slices: &[SliceConflicts], least_p: &[f64], pair_level: f64) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: &str, found: Vec<&SliceConflicts>| {
        if let Some(first) = found.first() {
            let (count, name) = (found.len(), &first.name);
            warnings.push(format!("{what} in {count} slices, such as {name}"));
        }
    };
    let of = |fits: &dyn Fn(&&SliceConflicts) -> bool| slices.iter().filter(fits).collect();
    let hopeless = slices.iter().zip(least_p);
    let hopeless = hopeless.filter(|(s, least)| s.selected && **least > pair_level);
    warn(
        "no pair can reach the level of pairs, because a p-value of a pair is at least one over the \
         pairs within the tasks (more samples would do),",
        hopeless.map(|(s, _)| s).collect(),
    );
    warn(
        "the damping is more than 1 % of the median F, so that it decides more than F does,",
        of(&|s| s.health.is_some_and(|h| h.swamped())),
    );
    warn(
        "the gradients of some samples are 0, and these samples were left out,",
        of(&|s| s.without_direction.iter().any(|ids| !ids.is_empty())),
    );
    warn(
        "fewer than two samples of a task have a gradient, so that there is no test,",
        of(&|s| s.test.is_none()),
    );
    warnings
}

impl ConflictReport {
    /// The cosines of every pair of samples in a slice, if pairs were kept; pairs that conflict are
    /// marked.
    pub fn picture(&self, slice: &str) -> Option<Picture> {
        let of = self.slices.iter().find(|s| s.name == slice)?;
        let pairs = of.pairs.as_ref()?;
        let [a, b] = &self.tasks;
        let limit = self.settings.min_separation;
        let conflict = |(cosine, q): (&f64, &f64)| {
            let apart = separation(*cosine) >= limit;
            of.selected && *cosine < 0.0 && *q <= self.pair_level && apart
        };
        let rows = pairs.cosine.iter().zip(&pairs.q);
        let marked = rows.map(|(cosines, q)| cosines.iter().zip(q).map(conflict).collect());
        let q = of.q.map_or_else(
            || "not tested".into(),
            |q| format!("q = {}", significant(q)),
        );
        Some(Picture {
            title: format!("Cosines between samples of {a} and of {b}"),
            note: format!(
                "{slice} ({q}); {} conflicting pairs are framed. Rows are samples of {a}, columns \
                 samples of {b}.",
                of.conflicts
            ),
            maps: vec![HeatMap {
                title: slice.into(),
                rows: pairs.a.clone(),
                columns: pairs.b.clone(),
                axes: [a.clone(), b.clone()],
                values: pairs
                    .cosine
                    .iter()
                    .map(|row| row.iter().copied().map(Some).collect())
                    .collect(),
                marked: marked.collect(),
                scale: ColorScale::Signed {
                    negative: "conflict".into(),
                    positive: "agreement".into(),
                },
                quantity: "cosine: dark pulls apart, light pulls together".into(),
            }],
        })
    }

    /// What was found, a sentence each: the first `limit` conflicts, then the samples that have most
    /// part in them. What leaving those out would change is not measured here.
    pub fn sentences(&self, limit: usize) -> Vec<String> {
        let conflicts = self.conflicts.iter().take(limit).map(ToString::to_string);
        let involved = self.involved.iter().take(limit.div_ceil(3)).map(|i| {
            format!(
                "{} is part of {} of the {} conflicts, with {} samples of the other task: a \
                 candidate to look at, to leave out or to weigh less",
                i.sample, i.conflicts, self.total, i.partners
            )
        });
        conflicts.chain(involved).collect()
    }
}

impl fmt::Display for ConflictReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let [n_a, n_b] = self.samples.each_ref().map(Vec::len);
        let selected = self.slices.iter().filter(|s| s.selected);
        let opposed = selected.filter(|s| s.mean_cosine.is_some_and(|m| m.mean < 0.0));
        writeln!(
            f,
            "{a} ({n_a} samples) against {b} ({n_b}): in {} of {} slices cosines across the tasks are \
             lower than within them (q ≤ {}), in {} of these negative on average; {} conflicting \
             pairs in {} clusters",
            self.selected,
            self.tested,
            self.settings.alpha,
            opposed.count(),
            self.total,
            self.clusters.len()
        )?;
        let mut order: Vec<&SliceConflicts> = self.slices.iter().collect();
        order.sort_by(|x, y| x.q.unwrap_or(2.0).total_cmp(&y.q.unwrap_or(2.0)));
        let shown = 12;
        let rows = &order[..order.len().min(shown)];
        let width = rows
            .iter()
            .map(|s| s.name.chars().count())
            .max()
            .unwrap_or(0);
        let header = ["cosine", "interval", "p", "q", "conflicts"];
        let [c, i, p, q, n] = header;
        writeln!(f, "{:<width$}  {c:>7}  {i:>17}  {p:>8}  {q:>8}  {n:>9}", "")?;
        let none = || "–".to_owned();
        for slice in rows {
            let mean = slice.mean_cosine;
            let cosine = mean.map_or_else(none, |m| format!("{:+.3}", m.mean));
            let interval = mean.and_then(|m| m.interval);
            let interval =
                interval.map_or_else(none, |[low, high]| format!("{low:+.3} … {high:+.3}"));
            let p = slice.test.map_or_else(none, |t| significant(t.p_low));
            let q = slice.q.map_or_else(none, significant);
            let (name, conflicts) = (&slice.name, slice.conflicts);
            writeln!(
                f,
                "{name:<width$}  {cosine:>7}  {interval:>17}  {p:>8}  {q:>8}  {conflicts:>9}"
            )?;
        }
        if order.len() > shown {
            writeln!(f, "… and {} slices with larger q", order.len() - shown)?;
        }
        for sentence in self.sentences(5) {
            writeln!(f, "  {sentence}.")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}
