//! The operator that compares two tasks' full Fishers.

use fisher_core::store::GradientStore;

use super::super::gram::Gram;
use super::super::moments::Moments;
use super::angles::Spaces;
use super::config::LikenessConfig;
use super::overlap::{Across, overlap, ratio};
use super::report::{LikenessReport, SliceLikeness};
use super::words::warnings;
use crate::error::{Error, Result, check_argument, check_level};
use crate::pairs::{Dependence, Rows, Slice, Work, bar};
use crate::permutation::Relabellings;
use crate::report::{GradientSource, SampleRef, finite};

/// Version of the report's form.
const SCHEMA: u64 = 1;

impl LikenessConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when no set of
    /// parameters was chosen.
    pub fn init(&self) -> Result<Likeness> {
        self.by.check()?;
        check_level(self.level)?;
        check_argument(self.relabellings > 0, "relabellings", "above 0", 0.0)?;
        check_argument(self.top > 0, "top", "above 0", 0.0)?;
        Ok(Likeness {
            config: self.clone(),
        })
    }
}

/// Compares the full Fishers of two tasks: do their losses curve in the same directions?
///
/// The **overlap** `tr F_A F_B / √(tr F_A² tr F_B²)` is the cosine between the two matrices, from 0 (no direction in common)
/// to 1 (equal but for a factor). As it stands it is too small: `tr F²` counts every sample with itself. The unbiased
/// overlap takes pairs of different clusters alone; two tasks of one distribution have 1. Its error is the
/// two-sample jackknife's, and `p` the share of relabellings of samples (clusters whole) that have as small an overlap: small
/// where the tasks' gradients are not of one distribution. That is not yet a difference of any size, and an overlap
/// that is below 1 by its interval is one.
///
/// **Principal angles** lie between the spaces of the first eigenvectors of each. Spaces of few samples are noisy: so that 0.5 can be
/// read, halves of the same task are compared with each other beside halves of different tasks.
///
/// Nothing depends on the scale of either loss but `p`, which compares distributions.
#[derive(Debug, Clone)]
pub struct Likeness {
    config: LikenessConfig,
}

/// What the slices share.
struct Setting<'a> {
    config: &'a LikenessConfig,
    clusters: [&'a [usize]; 2],
    relabellings: Option<Relabellings>,
    rounding: f64,
}

impl Likeness {
    /// Compare the samples of task `a` with those of task `b`.
    ///
    /// # Errors
    /// [`Error::Settings`] when both tasks are the same, [`Error::NoSamples`] when one has none, [`Error::NotCollected`]
    /// when there is no head, [`Error::NotFinite`] naming the slice, errors of a pattern that matches nothing, and those of
    /// reading the store.
    pub fn forward(&self, store: &GradientStore, [a, b]: [&str; 2]) -> Result<LikenessReport> {
        let config = &self.config;
        if a == b {
            return Err(Error::Settings {
                what: "a task is as it is; name two tasks to compare",
            });
        }
        for task in [a, b] {
            if store.samples(task).is_empty() {
                return Err(Error::no_samples(task));
            }
        }
        let units = config.by.units(store.catalogue(), store.heads())?;
        let slices: Vec<&Slice> = units.iter().flatten().collect();
        let work = Work::new(store.device(), config.memory);
        let bar = bar(config.progress, "likeness", units.len());
        let rows = Rows::of(store, &[a, b]);
        let dependence = Dependence::find(store, [a, b], &slices, &rows, &work)?;
        let clusters = dependence.clusters.each_ref().map(|of| &of[..]);
        let independent = clusters.map(|of| of.iter().max().map_or(0, |last| last + 1));
        let relabelled = independent.iter().all(|count| *count > 2);
        let setting = Setting {
            config,
            clusters,
            relabellings: relabelled.then(|| {
                Relabellings::of_clusters(clusters, None, config.relabellings, config.seed)
            }),
            rounding: work.slack,
        };
        let disjoint = slices.len() > 1 && !config.by.overlap(&slices);
        let need = 48 * rows.len() * rows.len();
        let at_once = |unit: &Vec<Slice>| work.at_once(need).min(unit.len()).max(1);
        let of_unit = |unit: &Vec<Slice>| {
            let (mut found, mut sum) = (Vec::new(), None::<Gram>);
            for slices in unit.chunks(at_once(unit)) {
                let grams = work.gram(slices, &rows, |_, _| 1.0)?;
                for (slice, gram) in slices.iter().zip(grams) {
                    let gram = Gram::new(gram, &rows.tokens);
                    found.push(setting.compare(&slice.name, slice.elements, &gram)?);
                    match &mut sum {
                        _ if !disjoint => {}
                        Some(sum) => sum.add(&gram),
                        None => sum = Some(gram),
                    }
                }
            }
            bar.inc(1);
            Ok((found, sum))
        };
        let (mut found, mut all) = (Vec::new(), None::<Gram>);
        let take = |(slices, sum): (Vec<_>, Option<Gram>)| {
            found.extend(slices);
            match (&mut all, sum) {
                (Some(all), Some(sum)) => all.add(&sum),
                (None, sum) => all = sum,
                (Some(_), None) => {}
            }
        };
        work.each(&units, |unit| at_once(unit) * need, of_unit, take)?;
        let elements = slices.iter().map(|slice| slice.elements).sum();
        let together = all.map(|gram| setting.compare("together", elements, &gram));
        let together = together.transpose()?;
        bar.finish_and_clear();
        let samples = [a, b].map(|task| store.samples(task));
        let copy = |&(task, i): &(usize, usize)| SampleRef {
            task: [a, b][task].into(),
            id: samples[task][i].id().into(),
        };
        let copies = dependence.copies.iter();
        let mut report = LikenessReport {
            schema: SCHEMA,
            tasks: [a, b].map(Into::into),
            model: store.model().into(),
            gradients: GradientSource::of(store),
            settings: config.clone(),
            samples: samples.map(|of| of.iter().map(|sample| sample.id().into()).collect()),
            independent,
            copies: copies.map(|of| of.iter().map(copy).collect()).collect(),
            slices: found,
            together,
            warnings: Vec::new(),
        };
        report.warnings = warnings(&report, dependence.shared);
        Ok(report)
    }
}

impl Setting<'_> {
    fn compare(&self, name: &str, elements: usize, gram: &Gram) -> Result<SliceLikeness> {
        let config = self.config;
        let first = self.clusters[0].len();
        let tasks = [0, 1].map(|task| Moments::new(gram, task * first, self.clusters[task]));
        let across = Across::new(gram, self.clusters);
        let product = finite(across.product(), name)?;
        let squares = tasks.each_ref().map(Moments::plain_square);
        for square in squares {
            finite(square, name)?;
        }
        let unbiased_squares = tasks.each_ref().map(Moments::square);
        let unbiased = match unbiased_squares {
            [Some(a), Some(b)] => ratio(product, [a, b]),
            _ => None,
        };
        let relabelled = self.relabellings.as_ref().filter(|_| unbiased.is_some());
        let relabelled = relabelled.map(|relabellings| {
            let scores: Vec<f64> = gram.values.iter().map(|k| k * k).collect();
            // Where a relabelled task has no product left, its overlap counts as small.
            let statistic =
                |cross: f64, of: [f64; 2]| ratio(cross, of).unwrap_or(f64::NEG_INFINITY);
            relabellings.test_by(&scores, 10.0 * self.rounding, statistic)
        });
        let spaces = Spaces {
            gram,
            name,
            elements,
            top: config.top,
            rounding: self.rounding,
        };
        Ok(SliceLikeness {
            name: name.into(),
            elements,
            traces: tasks
                .each_ref()
                .map(|of| of.trace_estimate(config.level).value),
            product,
            squares,
            unbiased_squares,
            plain: ratio(product, squares),
            unbiased,
            overlap: overlap(&across, tasks.each_ref(), config.level)?,
            p: relabelled.map(|found| found.p_low),
            exact: relabelled.is_some_and(|found| found.exact),
            angles: spaces.angles(self.clusters, config.splits, config.seed)?,
        })
    }
}
