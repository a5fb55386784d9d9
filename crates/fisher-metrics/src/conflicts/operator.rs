//! The operator that finds which samples of two tasks collide, where, and how surely.

use burn::module::ParamGroup;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Parameter};
use fisher_core::sample::Sample;
use fisher_core::store::GradientStore;

use super::config::{ConflictsConfig, SliceBy};
use super::report::{ConflictReport, summarize};
use super::test::{Candidate, MeanCosine, Resamples, Tested, separation};
use crate::damping::Health;
use crate::error::{Error, Result, check_argument};
use crate::pairs::{BLOCKS, Rows, Slice, Work, bar, fisher, head_slices};
use crate::permutation::Relabellings;

impl ConflictsConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when no set of
    /// parameters was chosen.
    pub fn init(&self) -> Result<Conflicts> {
        let between = |name, found: f64| {
            let fits = found > 0.0 && found < 1.0;
            check_argument(fits, name, "between 0 and 1", found)
        };
        between("alpha", self.alpha)?;
        between("level", self.level)?;
        let separation = self.min_separation;
        let fits = (0.0..=1.0).contains(&separation);
        check_argument(fits, "min_separation", "from 0 to 1", separation)?;
        check_argument(self.relabellings > 0, "relabellings", "above 0", 0.0)?;
        if matches!(&self.by, SliceBy::Chosen(sets) if sets.is_empty()) {
            return Err(Error::Settings {
                what: "no set of parameters was chosen; give at least one, or compare by parameter",
            });
        }
        if let Some(ridge) = &self.whitening {
            ridge.check()?;
        }
        Ok(Conflicts {
            config: self.clone(),
        })
    }
}

/// Finds conflicts between the samples of two tasks.
///
/// | | |
/// |---|---|
/// | score of a pair | `cos(g_i, g_j)` over the slice, of raw or whitened gradients |
/// | separation | `d = ½‖ĝ_i − ĝ_j‖ = √((1 − cos)/2)` of the unit vectors, from 0 to 1 |
/// | is the slice in conflict? | mean cosine across the tasks less half the sum of the means within each; p by relabelling samples, one-sided |
/// | is the pair? | `p_ij = (1 + #{cosines within tasks ≤ cos_ij}) / (1 + their number)` |
/// | conflict | `cos < 0`, `d` large enough, the slice selected at level α, and the pair at level `α R/m` among its slice's pairs, `R` of `m` slices being selected (Benjamini & Bogomolov 2014) |
///
/// A slice is selected where cosines across the tasks are lower than within them. That alone says
/// that the tasks pull differently, not that they pull apart: look at the sign of the mean cosine,
/// and at the pairs, which must be negative to be called conflicts.
///
/// A slice's p-value holds for any number of samples and any distribution, if the samples of both
/// tasks are exchangeable where nothing collides; whitening leaves that exact when both tasks have
/// as many samples, since then F is the same for every relabelling. A pair's p-value ranks it
/// among the pairs of one task. Coordinates are never permuted.
///
/// A sample whose gradient is 0 over a slice has no direction there and is left out of it.
#[derive(Debug, Clone)]
pub struct Conflicts {
    config: ConflictsConfig,
}

impl Conflicts {
    /// Compare every sample of task `a` with every sample of task `b`.
    ///
    /// Where slices are heads, they are those of the store ([`GradientStore::heads`]). Products are
    /// computed on its device, in float64 where that has it.
    ///
    /// # Errors
    /// [`Error::Settings`] when both tasks are the same, [`Error::TooFewSamples`] when a task has
    /// fewer than two samples, [`Error::NotCollected`] when there
    /// is no head, errors of a pattern that matches nothing, and those of reading the store.
    pub fn forward(&self, store: &GradientStore, [a, b]: [&str; 2]) -> Result<ConflictReport> {
        let config = &self.config;
        if a == b {
            return Err(Error::Settings {
                what: "a task does not conflict with itself; name two tasks",
            });
        }
        for task in [a, b] {
            if store.samples(task).len() < 2 {
                return Err(Error::too_few_samples(store, task));
            }
        }
        let units = self.units(store.catalogue(), store.heads())?;
        let work = Work::new(store.device(), config.memory);
        let bar = bar(config.progress, "conflicts", units.len());
        let rows = [Rows::of(store, &[a]), Rows::of(store, &[b])];
        let both = Rows::of(store, &[a, b]);
        let resamples = Resamples::new(rows[0].len(), rows[1].len(), config);
        let largest = |unit: &Vec<Slice>| {
            unit.iter()
                .map(|s| self.need(s, both.len()))
                .max()
                .unwrap_or(0)
        };
        let at_once = |unit: &Vec<Slice>| work.at_once(largest(unit)).min(unit.len());
        let test = |unit: &Vec<Slice>| {
            let mut tested = Vec::new();
            for slices in unit.chunks(at_once(unit).max(1)) {
                tested.extend(self.unit(slices, &rows, &both, &work, &resamples)?);
            }
            bar.inc(1);
            Ok(tested)
        };
        let slices: Vec<Vec<Tested>> =
            work.map(&units, |unit| at_once(unit) * largest(unit), test)?;
        bar.finish_and_clear();
        let slices: Vec<Tested> = slices.into_iter().flatten().collect();
        let samples = [a, b].map(|task| store.samples(task).to_vec());
        Ok(self.report(store, [a, b], &samples, slices))
    }

    /// Slices that are read together.
    fn units(&self, catalogue: &Catalogue, heads: &HeadLayout) -> Result<Vec<Vec<Slice>>> {
        let whole = |p: &Parameter| {
            let all = std::iter::once(0..p.elements());
            (p.path().to_owned(), all.collect::<Vec<_>>())
        };
        let parameters = catalogue.parameters();
        Ok(match &self.config.by {
            SliceBy::Parameter => parameters
                .iter()
                .map(|p| vec![Slice::new(p.path().into(), [whole(p)])])
                .collect(),
            SliceBy::Head => {
                let blocks = head_slices(heads, catalogue, &BLOCKS)?;
                blocks.into_iter().map(|block| block.slices).collect()
            }
            SliceBy::Layer => {
                let layers = catalogue.layers().into_iter();
                let slice = |(name, of): (String, Vec<&Parameter>)| {
                    vec![Slice::new(name, of.into_iter().map(whole))]
                };
                layers.map(slice).collect()
            }
            SliceBy::Chosen(sets) => {
                let set = |(name, group): &(String, ParamGroup)| {
                    let chosen = catalogue.filter(group)?;
                    let parts = chosen.parameters().iter().map(whole);
                    Ok(vec![Slice::new(name.clone(), parts)])
                };
                sets.iter().map(set).collect::<Result<_>>()?
            }
        })
    }

    /// Bytes that are held of a slice while it is tested.
    fn need(&self, slice: &Slice, samples: usize) -> usize {
        let whitening = usize::from(self.config.whitening.is_some());
        32 * samples * samples + 16 * whitening * slice.elements
    }

    fn unit(
        &self,
        slices: &[Slice],
        rows: &[Rows; 2],
        both: &Rows,
        work: &Work,
        resamples: &Resamples,
    ) -> Result<Vec<Tested>> {
        let (grams, health) = match &self.config.whitening {
            None => (work.gram(slices, both, |_, _| 1.0)?, None),
            Some(ridge) => {
                let tasks = [(&rows[0], 0.5), (&rows[1], 0.5)];
                let mut pooled = fisher(slices, &tasks, work.bytes)?;
                let health = pooled.iter().map(|f| ridge.health(&mut f.clone()));
                let health: Vec<Health> = health.collect();
                for (scale, health) in pooled.iter_mut().zip(&health) {
                    let lambda = health.ridge_lambda_applied;
                    scale
                        .iter_mut()
                        .for_each(|f| *f = ridge.damped(*f, lambda).sqrt().recip());
                }
                let scale = |slice: usize, at: usize| pooled[slice][at];
                (work.gram(slices, both, scale)?, Some(health))
            }
        };
        let tested = slices
            .iter()
            .zip(grams)
            .enumerate()
            .map(|(i, (slice, gram))| {
                let health = health.as_ref().map(|health| health[i]);
                self.test(slice, &gram, rows[0].len(), health, work.slack, resamples)
            });
        Ok(tested.collect())
    }

    /// Cosines and p-values of one slice from its inner products.
    fn test(
        &self,
        slice: &Slice,
        gram: &[f64],
        first: usize,
        health: Option<Health>,
        slack: f64,
        resamples: &Resamples,
    ) -> Tested {
        let n = gram.len().isqrt();
        let norms: Vec<f64> = (0..n).map(|i| gram[i * n + i].sqrt()).collect();
        let present: Vec<usize> = (0..n).filter(|&i| norms[i] > 0.0).collect();
        let present_first = present.iter().filter(|&&i| i < first).count();
        let cosine =
            |i: usize, j: usize| (gram[i * n + j] / (norms[i] * norms[j])).clamp(-1.0, 1.0);
        let cosines: Vec<f64> = present
            .iter()
            .flat_map(|&i| present.iter().map(move |&j| (i, j)))
            .map(|(i, j)| cosine(i, j))
            .collect();
        let m = present.len();
        let relabelled = (present_first > 1 && m - present_first > 1).then(|| {
            let all = m == n;
            let own = || {
                let config = &self.config;
                let second = m - present_first;
                Relabellings::new(present_first, second, config.relabellings, config.seed)
            };
            if all {
                resamples.relabellings.test(&cosines, slack)
            } else {
                own().test(&cosines, slack)
            }
        });
        let within = |range: std::ops::Range<usize>| {
            let pairs = range
                .clone()
                .flat_map(move |i| (i + 1..range.end).map(move |j| (i, j)));
            let cosines = &cosines;
            pairs.map(move |(i, j)| cosines[i * m + j])
        };
        let mut within: Vec<f64> = within(0..present_first)
            .chain(within(present_first..m))
            .collect();
        within.sort_by(f64::total_cmp);

        let mut cross = Vec::with_capacity(present_first * (m - present_first));
        for i in 0..present_first {
            cross.extend_from_slice(&cosines[i * m + present_first..(i + 1) * m]);
        }
        let p = |cosine: &f64| {
            let below = within.partition_point(|w| w <= &(cosine + slack));
            (1 + below) as f64 / (1 + within.len()) as f64
        };
        let p: Vec<f64> = cross.iter().map(p).collect();
        let q = self.config.correction.q_values(&p);
        let mean = cross.iter().sum::<f64>() / cross.len() as f64;
        let interval = if m == n {
            resamples.interval(&cross, first, self.config.level)
        } else {
            // Draws are for all samples; the others are as good as any.
            Resamples::new(present_first, m - present_first, &self.config).interval(
                &cross,
                present_first,
                self.config.level,
            )
        };
        let (here, there) = present.split_at(present_first);
        Tested {
            name: slice.name.clone(),
            elements: slice.elements,
            health,
            relabelled,
            mean: (!cross.is_empty()).then_some(MeanCosine { mean, interval }),
            present: [here.to_vec(), there.iter().map(|i| i - first).collect()],
            candidates: self.candidates(&cross, &p, &q),
            all: self.config.keep_pairs.then_some([cross, p, q]),
        }
    }

    /// The pairs that conflict if their slice is selected with all others. Fewer selected make the
    /// level of pairs stricter, never looser, so that no other pair can become a conflict.
    fn candidates(&self, cosine: &[f64], p: &[f64], q: &[f64]) -> Vec<Candidate> {
        let config = &self.config;
        let may = |pair: &usize| {
            cosine[*pair] < 0.0
                && q[*pair] <= config.alpha
                && separation(cosine[*pair]) >= config.min_separation
        };
        let pairs = (0..cosine.len()).filter(may);
        let candidate = |pair: usize| Candidate {
            pair,
            cosine: cosine[pair],
            p: p[pair],
            q: q[pair],
        };
        pairs.map(candidate).collect()
    }

    fn report(
        &self,
        store: &GradientStore,
        tasks: [&str; 2],
        samples: &[Vec<Sample>; 2],
        tested: Vec<Tested>,
    ) -> ConflictReport {
        let config = &self.config;
        let testable: Vec<(usize, f64)> = tested
            .iter()
            .enumerate()
            .filter_map(|(i, slice)| Some((i, slice.relabelled?.p_low)))
            .collect();
        let p: Vec<f64> = testable.iter().map(|(_, p)| *p).collect();
        let mut q = vec![None; tested.len()];
        for ((i, _), value) in testable.iter().zip(config.correction.q_values(&p)) {
            q[*i] = Some(value);
        }
        let selected = q.iter().flatten().filter(|q| **q <= config.alpha).count();
        let level = config.alpha * selected as f64 / testable.len().max(1) as f64;
        summarize(config, store, tasks, samples, &tested, &q, level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflicts(config: ConflictsConfig) -> Conflicts {
        config.init().expect("settings")
    }

    /// One slice of eight and seven samples, in two dimensions, the tasks apart.
    fn tested(conflicts: &Conflicts) -> Tested {
        let (first, second) = (8, 7);
        let angle = |i: usize| {
            if i < first {
                0.1 * i as f64
            } else {
                2.8 + 0.1 * i as f64
            }
        };
        let n = first + second;
        let gram = |k: usize| (angle(k / n) - angle(k % n)).cos();
        let gram: Vec<f64> = (0..n * n).map(gram).collect();
        let slice = Slice::new(
            "s".into(),
            [("p".to_owned(), std::iter::once(0..2).collect())],
        );
        let resamples = Resamples::new(first, second, &conflicts.config);
        conflicts.test(&slice, &gram, first, None, 1e-12, &resamples)
    }

    /// What is dropped is no conflict, and only what is asked for is kept whole.
    #[test]
    fn only_pairs_that_may_conflict_are_kept() {
        let config = ConflictsConfig::new().with_min_separation(0.99);
        let kept = tested(&conflicts(config.clone().with_keep_pairs(true)));
        let [cosine, _, q] = kept.all.as_ref().expect("all pairs");
        assert_eq!((cosine.len(), kept.pairs()), (56, 56));
        let may = |k: &usize| cosine[*k] < 0.0 && q[*k] <= 0.05 && separation(cosine[*k]) >= 0.99;
        let expected: Vec<usize> = (0..56).filter(may).collect();
        assert!(!expected.is_empty() && expected.len() < 56, "{expected:?}");
        for keep in [false, true] {
            let tested = tested(&conflicts(config.clone().with_keep_pairs(keep)));
            let found = tested.candidates.iter().map(|c| c.pair);
            assert_eq!(found.collect::<Vec<_>>(), expected);
            assert_eq!(tested.all.is_some(), keep);
        }
    }
}
