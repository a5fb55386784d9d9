//! The operator that asks what of two tasks does not go together.

use fisher_core::store::GradientStore;

use super::config::ConflictsConfig;
use super::lengths::{Lengths, octaves};
use super::report::ConflictReport;
use super::slice::{Setting, Tested};
use super::summary::summarize;
use crate::damping::Health;
use crate::error::{Error, Result, check_argument};
use crate::pairs::{Dependence, Rows, Slice, Work, bar, fisher};

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
        let fits = (0.0..=1.0).contains(&self.floor);
        check_argument(fits, "floor", "from 0 to 1", self.floor)?;
        check_argument(self.relabellings != Some(0), "relabellings", "above 0", 0.0)?;
        self.by.check()?;
        if let Some(ridge) = &self.whitening {
            ridge.check()?;
        }
        Ok(Conflicts {
            config: self.clone(),
        })
    }
}

/// Relabellings and ways to draw signs for so many slices.
fn default_draws(config: &ConflictsConfig, slices: usize) -> [usize; 2] {
    let factor = config.correction.factor(slices);
    let [many, few] = [20.0, 2.0].map(|k| (k * factor / config.alpha).ceil() as usize);
    let relabellings = match many {
        0..=AFFORDABLE => many.max(1000),
        _ => few.max(AFFORDABLE),
    };
    [relabellings, few.max(1000)]
}

/// Up to so many relabellings the smallest p is a twentieth of what selects a slice; beyond, half of it.
const AFFORDABLE: usize = 20_000;

/// Asks what of two tasks does not go together, slice by slice and pair by pair.
///
/// Of a slice three things are asked, each with its own statistic, p, and q over all slices:
///
/// | | statistic | p |
/// |---|---|---|
/// | **apart**: do directions of gradients differ by task? | mean cosine across the tasks less half the sum of the means within | by relabelling samples, one-sided; counted out where all relabellings are at most 10 000 |
/// | **opposed**: is the expected cosine across the tasks negative? | [`Jackknife`](crate::jackknife::Jackknife) of the cosines | one-sided |
/// | **aligned**: is it positive? | the same | the other side |
///
/// Apart is no conflict: tasks whose gradients are orthogonal are apart, and so are tasks that want the
/// same, where samples of one are longer.
///
/// A pair is held against the mirror image of all pairs of its slice: at |cos| ≥ t, pairs with a positive
/// cosine tell how many with a negative one are noise. With t* the least t, no smaller than the floor, at
/// which `(1 + #{cos ≥ t}) / max(1, #{cos ≤ −t}) ≤ α`, pairs with `cos ≤ −t*` conflict. Their q is the
/// least such rate over all t that call them, or the slice's own q where that is larger: the share of
/// ways to draw the signs of whole samples that would call as many pairs, the worse of both tasks,
/// corrected for the number of slices. It takes 1/α such pairs at least, and log₂(m/α) samples of
/// either task (pairs and samples of different clusters).
///
/// Pairs can be ordered by inner product instead of |cos| ([`PairOrder`](super::PairOrder)).
///
/// The cosines are those of raw gradients, or of whitened ones. Samples of a cluster
/// ([`Sample::with_cluster`](fisher_core::sample::Sample::with_cluster)) and samples that are copies of
/// each other are relabelled together, summed in the jackknife, and count as one in the mirror.
/// Coordinates are never permuted.
///
/// What is controlled: the size of each test of a slice; the false discovery rate over slices, question
/// by question; where no pair of any slice conflicts, how often any is called; and in a slice with
/// conflicts the share of false ones among them where signs of other pairs are independent.
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
        let units = config.by.units(store.catalogue(), store.heads())?;
        let work = Work::new(store.device(), config.memory);
        let bar = bar(config.progress, "conflicts", units.len());
        let both = Rows::of(store, &[a, b]);
        let slices: Vec<&Slice> = units.iter().flatten().collect();
        let dependence = Dependence::find(store, [a, b], &slices, &both, &work)?;
        let tokens = [a, b].map(|task| Rows::of(store, &[task]).tokens);
        let strata = self
            .config
            .like_lengths
            .then(|| tokens.each_ref().map(|of| octaves(of)));
        let draws = default_draws(config, slices.len());
        let draws = draws.map(|draws| config.relabellings.unwrap_or(draws));
        let mut setting = Setting {
            config,
            dependence: &dependence,
            strata,
            draws,
            slack: work.slack,
            overlapping: config.by.overlap(&slices),
            relabellings: None,
        };
        let every = tokens
            .each_ref()
            .map(|of| (0..of.len()).collect::<Vec<_>>());
        setting.relabellings = setting.relabel(every.each_ref().map(|of| &of[..]));
        let largest = |unit: &Vec<Slice>| {
            let needs = unit.iter().map(|s| self.need(s, both.len()));
            needs.max().unwrap_or(0)
        };
        let at_once = |unit: &Vec<Slice>| work.at_once(largest(unit)).min(unit.len());
        let test = |unit: &Vec<Slice>| {
            let mut tested = Vec::new();
            for slices in unit.chunks(at_once(unit).max(1)) {
                tested.extend(self.unit(slices, &both, &work, &setting)?);
            }
            bar.inc(1);
            Ok(tested)
        };
        let tested: Vec<Vec<Tested>> =
            work.map(&units, |unit| at_once(unit) * largest(unit), test)?;
        bar.finish_and_clear();
        let tested: Vec<Tested> = tested.into_iter().flatten().collect();
        let strata = setting.strata.as_ref();
        let strata = strata.map(|strata| strata.each_ref().map(|of| &of[..]));
        let lengths = Lengths::new(tokens.each_ref().map(|of| &of[..]), strata);
        Ok(summarize(store, [a, b], &setting, &tested, lengths))
    }

    /// Bytes that are held of a slice while it is tested.
    fn need(&self, slice: &Slice, samples: usize) -> usize {
        let whitening = usize::from(self.config.whitening.is_some());
        32 * samples * samples + 16 * whitening * slice.elements
    }

    fn unit(
        &self,
        slices: &[Slice],
        both: &Rows,
        work: &Work,
        setting: &Setting,
    ) -> Result<Vec<Tested>> {
        let (grams, health) = match &self.config.whitening {
            None => (work.gram(slices, both, |_, _| 1.0)?, None),
            Some(ridge) => {
                let mut pooled = fisher(slices, &[(both, 1.0)], work.bytes)?;
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
                setting.test(&slice.name, slice.elements, &gram, health)
            });
        Ok(tested.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correction::Correction;

    /// One slice among them can be selected, at no more draws than can be paid.
    #[test]
    fn draws_are_enough_and_not_too_many() {
        let config = ConflictsConfig::new();
        assert_eq!(default_draws(&config, 1), [1000, 1000]);
        assert_eq!(default_draws(&config, 40), [16_000, 1600]);
        assert_eq!(default_draws(&config, 300), [20_000, 12_000]);
        assert_eq!(default_draws(&config, 4096), [163_840, 163_840]);
        let harsh = config.with_correction(Correction::BenjaminiYekutieli);
        for slices in [1, 7, 300, 4096] {
            let least = harsh.correction.factor(slices);
            for draws in default_draws(&harsh, slices) {
                assert!(least / (1 + draws) as f64 <= harsh.alpha, "{slices}");
            }
        }
    }
}
