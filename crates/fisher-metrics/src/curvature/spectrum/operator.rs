//! The operator that finds the spectrum.

use fisher_core::store::GradientStore;

use super::super::gram::Gram;
use super::config::{Cutoff, SpectrumConfig};
use super::report::SpectrumReport;
use super::slice::Setting;
use super::words::warnings;
use crate::error::{Error, Result, check_argument, check_level};
use crate::pairs::{Dependence, Rows, Slice, Work, bar};
use crate::report::{GradientSource, SampleRef};

/// Version of the report's form.
const SCHEMA: u64 = 1;

impl SpectrumConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] when a number is out of range, [`Error::Settings`] when no set of
    /// parameters was chosen.
    pub fn init(&self) -> Result<Spectrum> {
        self.by.check()?;
        check_level(self.level)?;
        let (Cutoff::Absolute(c) | Cutoff::Relative(c)) = self.cutoff;
        check_argument(c > 0.0 && c.is_finite(), "cutoff", "above 0 and finite", c)?;
        Ok(Spectrum {
            config: self.clone(),
        })
    }
}

/// Finds the eigenvalues of the full empirical Fisher `F = (1/n) Σ_i g_i g_iᵀ / T_i`, by slice and of all slices
/// together, and what follows from them.
///
/// `K_ij = ⟨g_i, g_j⟩ / (n √(T_i T_j))` has the same eigenvalues as F but for zeros, and is no larger than `[n, n]`: they are exact,
/// for any number of parameters, as far as the stored gradients and the products are.
///
/// They are exact for the Fisher of these samples, which is not that of more of them: eigenvalues of a sample are spread out,
/// the largest too large and the smallest too small (Marčenko & Pastur 1967; n samples of d equal directions have
/// eigenvalues from `(1 − √(d/n))²` to `(1 + √(d/n))²` times the true one). What is known of the Fisher that the samples
/// were drawn from stands beside: see [`SliceSpectrum`](super::SliceSpectrum).
///
/// Samples of one cluster, and samples that are copies of each other in every slice, are left out together in errors, lie in
/// one half of a split, and make no pair.
#[derive(Debug, Clone)]
pub struct Spectrum {
    config: SpectrumConfig,
}

impl Spectrum {
    /// The spectrum of a task's samples in the store.
    ///
    /// Where slices are heads, they are those of the store ([`GradientStore::heads`]). Products are computed on its device,
    /// in float64 where that has it, else in float32, where eigenvalues below a millionth of the trace are
    /// rounding.
    ///
    /// # Errors
    /// [`Error::NoSamples`] when the task has none, [`Error::NotCollected`] when there is no head,
    /// [`Error::NotFinite`] naming the slice, errors of a pattern that matches nothing, and those of reading the store.
    pub fn forward(&self, store: &GradientStore, task: &str) -> Result<SpectrumReport> {
        let config = &self.config;
        let samples = store.samples(task);
        if samples.is_empty() {
            return Err(Error::no_samples(task));
        }
        let units = config.by.units(store.catalogue(), store.heads())?;
        let slices: Vec<&Slice> = units.iter().flatten().collect();
        let work = Work::new(store.device(), config.memory);
        let bar = bar(config.progress, "spectrum", units.len());
        let rows = Rows::of(store, &[task]);
        let dependence = Dependence::find(store, [task], &slices, &rows, &work)?;
        let setting = Setting {
            config,
            task,
            ids: samples.iter().map(|sample| sample.id()).collect(),
            clusters: &dependence.clusters[0],
            rounding: work.slack,
        };
        let disjoint = slices.len() > 1 && !config.by.overlap(&slices);
        // A matrix of products, one of eigenvectors, and what finding them takes.
        let need = 48 * rows.len() * rows.len();
        let at_once = |unit: &Vec<Slice>| work.at_once(need).min(unit.len()).max(1);
        let of_unit = |unit: &Vec<Slice>| {
            let (mut found, mut sum) = (Vec::new(), None::<Gram>);
            for slices in unit.chunks(at_once(unit)) {
                let grams = work.gram(slices, &rows, |_, _| 1.0)?;
                for (slice, gram) in slices.iter().zip(grams) {
                    let gram = Gram::new(gram, &rows.tokens);
                    found.push(setting.spectrum(&slice.name, slice.elements, &gram)?);
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
        let together = all.map(|gram| setting.spectrum("together", elements, &gram));
        let together = together.transpose()?;
        bar.finish_and_clear();
        let copy = |&(_, i): &(usize, usize)| SampleRef {
            task: task.into(),
            id: samples[i].id().into(),
        };
        let copies = dependence.copies.iter();
        let mut report = SpectrumReport {
            schema: SCHEMA,
            task: task.into(),
            model: store.model().into(),
            gradients: GradientSource::of(store),
            settings: config.clone(),
            samples: setting.ids.iter().map(|id| (*id).into()).collect(),
            independent: setting.clusters.iter().max().map_or(0, |last| last + 1),
            copies: copies.map(|of| of.iter().map(copy).collect()).collect(),
            slices: found,
            together,
            warnings: Vec::new(),
        };
        report.warnings = warnings(&report);
        Ok(report)
    }
}
