//! The report as a table, and what to warn of.

use std::fmt;

use fisher_core::moments::FEWEST_FOR_INTERVAL;

use super::super::estimate::Estimate;
use super::config::Cutoff;
use super::report::{SliceSpectrum, SpectrumReport};

/// Fewer samples than this for each direction spread eigenvalues visibly: at ten, equal ones by 0.47 to 1.73.
const PER_DIRECTION: f64 = 10.0;

/// The slices and all of them together.
fn all(report: &SpectrumReport) -> impl Iterator<Item = &SliceSpectrum> {
    report.slices.iter().chain(&report.together)
}

pub(super) fn warnings(report: &SpectrumReport) -> Vec<String> {
    let mut warnings = Vec::new();
    let (word, n) = (report.settings.by.word(), report.independent);
    if let Some(first) = report.copies.first() {
        let names: Vec<String> = first.iter().take(3).map(ToString::to_string).collect();
        warnings.push(format!(
            "of {} samples {n} are independent: some are copies (in every {word} cosine above 0.999 and norms \
             within 1 %), such as {}",
            report.samples.len(),
            names.join(" and ")
        ));
    }
    if n < 2 {
        warnings.push(
            "there is one independent sample: its Fisher has nothing to be compared with, and no error is known"
                .into(),
        );
    }
    let zero = report.slices.iter().filter(|s| s.rank == 0);
    let zero: Vec<&str> = zero.map(|s| &*s.name).collect();
    if let Some(first) = zero.first() {
        warnings.push(format!(
            "in {} of {} {word}s all gradients are 0, such as {first}: there is no spectrum",
            zero.len(),
            report.slices.len()
        ));
    }
    let few = |s: &&SliceSpectrum| {
        let participation = s.unbiased_participation;
        participation.is_some_and(|p| n as f64 <= PER_DIRECTION * p.value)
    };
    let spread = |s: &SliceSpectrum| -> Option<(f64, String)> {
        let d = s.unbiased_participation?.value;
        Some((d, s.name.clone()))
    };
    let found: Vec<_> = all(report).filter(few).filter_map(spread).collect();
    let most = found.iter().max_by(|x, y| x.0.total_cmp(&y.0));
    if let Some((d, name)) = most {
        let root = (d / n as f64).sqrt();
        let [low, high] = [(1.0 - root).max(0.0).powi(2), (1.0 + root).powi(2)];
        warnings.push(format!(
            "{n} independent samples are few for the directions there are in {} of {} spectra, most in {name} \
             (participation {d:.1}): eigenvalues are spread out, the largest too large and the smallest too small; \
             were all equal there, they would come out from {low:.2} to {high:.2} times as large",
            found.len(),
            all(report).count()
        ));
    }
    let rests = |s: &&SliceSpectrum| s.rank > 0 && s.trace.effective < FEWEST_FOR_INTERVAL;
    let found: Vec<&SliceSpectrum> = all(report).filter(rests).collect();
    if let (Some(first), true) = (found.first(), n > 1) {
        warnings.push(format!(
            "in {} of {} spectra the trace rests on fewer than {FEWEST_FOR_INTERVAL} samples, such as {} \
             ({:.1} effective): there is no interval",
            found.len(),
            all(report).count(),
            first.name,
            first.trace.effective
        ));
    }
    warnings
}

impl SpectrumReport {
    /// The samples that make the first eigenvectors, in sentences: at most `limit`, of all slices together or else
    /// of the slices with the largest eigenvalue.
    pub fn sentences(&self, limit: usize) -> Vec<String> {
        let mut order: Vec<&SliceSpectrum> = self.slices.iter().collect();
        order.sort_by(|x, y| y.largest().total_cmp(&x.largest()));
        let first = self.together.iter().chain(order);
        let said = first.filter_map(|slice| {
            let first = slice.top.first()?;
            let share = 100.0 * first.eigenvalue / slice.trace.value;
            let parts = first.parts.iter().take(3).map(|part| {
                format!("{} ({:.0} %)", part.sample, 100.0 * part.share)
            });
            let parts: Vec<String> = parts.collect();
            let held = first.held_out.map_or_else(String::new, |held| {
                format!(
                    ", and {held:.2e} in samples that were held out from finding its direction"
                )
            });
            Some(format!(
                "the largest eigenvalue of {} is {:.2e}, {share:.0} % of the trace of these samples{held}; it is made by {}",
                slice.name,
                first.eigenvalue,
                parts.join(", ")
            ))
        });
        said.take(limit).collect()
    }
}

fn with_interval(estimate: Option<Estimate>) -> String {
    let Some(estimate) = estimate else {
        return "–".into();
    };
    match estimate.interval {
        Some([low, high]) => format!("{:.1} ({low:.1} … {high:.1})", estimate.value),
        None => format!("{:.1}", estimate.value),
    }
}

impl fmt::Display for SpectrumReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.settings.by.word();
        let independent = match self.independent == self.samples.len() {
            true => String::new(),
            false => format!(", {} independent", self.independent),
        };
        let c = match self.settings.cutoff {
            Cutoff::Absolute(c) => format!("{c:e}"),
            Cutoff::Relative(share) => format!("{share} tr F"),
        };
        writeln!(
            f,
            "Full Fisher of {} ({} samples{independent}), {} {word}s",
            self.task,
            self.samples.len(),
            self.slices.len()
        )?;
        let shown = 16;
        let mut order: Vec<&SliceSpectrum> = self.slices.iter().collect();
        order.sort_by(|x, y| y.trace.value.total_cmp(&x.trace.value));
        let rows: Vec<&SliceSpectrum> = self.together.iter().chain(order).take(shown).collect();
        let names = rows.iter().map(|s| s.name.chars().count());
        let width = names.max().unwrap_or(0);
        writeln!(
            f,
            "{:<width$}  {:>9}  {:>9}  {:>9}  {:>7}  {:>9}  {:>25}  {:>9}  {:>14}",
            "",
            "trace",
            "λ₁",
            "held out",
            "tr/λ₁",
            "(tr)²/tr²",
            "unbiased",
            "dimension",
            "50/90/99 %"
        )?;
        let none = || "–".to_owned();
        for slice in &rows {
            let held = slice.top.first().and_then(|top| top.held_out);
            let held = held.map_or_else(none, |x| format!("{x:.2e}"));
            let stable = slice.stable_rank.map_or_else(none, |x| format!("{x:.1}"));
            let plain = slice.participation.map_or_else(none, |x| format!("{x:.1}"));
            let unbiased = with_interval(slice.unbiased_participation);
            let dimension = slice
                .dimension
                .map_or_else(none, |e| format!("{:.1}", e.value));
            let holding = slice
                .holding
                .map_or_else(none, |[a, b, c]| format!("{a}/{b}/{c}"));
            writeln!(
                f,
                "{:<width$}  {:>9.2e}  {:>9.2e}  {held:>9}  {stable:>7}  {plain:>9}  {unbiased:>25}  {dimension:>9}  {holding:>14}",
                slice.name,
                slice.trace.value,
                slice.largest()
            )?;
        }
        let spectra = all(self).count();
        if spectra > rows.len() {
            writeln!(f, "… and {} {word}s of smaller trace", spectra - rows.len())?;
        }
        writeln!(
            f,
            "  Eigenvalues are exact for these samples. λ₁ is too large for more of them, and what is held out too small; \
             the dimension Σ λ/(λ + c), c = {c}, is too small. Intervals: {} %, each by itself.",
            100.0 * self.settings.level
        )?;
        for sentence in self.sentences(3) {
            writeln!(f, "  {sentence}.")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}
