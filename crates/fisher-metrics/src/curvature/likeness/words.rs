//! The report as a table, and what to warn of.

use std::fmt;

use super::report::{LikenessReport, SliceLikeness};

pub(super) fn warnings(report: &LikenessReport, shared: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let word = report.settings.by.word();
    let [a, b] = &report.tasks;
    if let Some(first) = report.copies.first() {
        let names: Vec<String> = first.iter().take(3).map(ToString::to_string).collect();
        warnings.push(format!(
            "{} groups of samples are copies (in every {word} cosine above 0.999 and norms within 1 %), such as \
             {}; within a task they count as one",
            report.copies.len(),
            names.join(" and ")
        ));
    }
    let across = report.copies.iter().filter(|group| {
        let tasks = [a, b].map(|task| group.iter().any(|s| s.task == *task));
        tasks == [true, true]
    });
    if shared || across.count() > 0 {
        warnings.push(format!(
            "{a} and {b} share clusters or copies, and all numbers take their samples as independent of each other"
        ));
    }
    for (task, count) in report.tasks.iter().zip(report.independent) {
        if count < 3 {
            warnings.push(format!(
                "{task} has {count} independent samples, and it takes three for an error and for p"
            ));
        }
    }
    let zero = report.slices.iter().filter(|s| s.traces.contains(&0.0));
    let zero: Vec<&str> = zero.map(|s| &*s.name).collect();
    if let Some(first) = zero.first() {
        warnings.push(format!(
            "in {} of {} {word}s all gradients of a task are 0, such as {first}: there is nothing to compare",
            zero.len(),
            report.slices.len()
        ));
    }
    warnings
}

impl SliceLikeness {
    /// What is known of the overlap, in a sentence.
    pub fn sentence(&self) -> String {
        let name = &self.name;
        let Some(overlap) = self.overlap else {
            return format!("the overlap on {name} is not resolved");
        };
        let [low, high] = overlap.interval;
        let said = match () {
            () if high < 1.0 && low > 0.0 => "the Fishers are alike in part",
            () if high < 1.0 => "they are not equal, and 0 is not excluded",
            () if low > 0.0 => "1 is not excluded: no difference but for a factor was found",
            () => "neither 0 nor 1 is excluded",
        };
        format!(
            "the overlap on {name} is {:.2} ({low:.2} … {high:.2}): {said}",
            overlap.value
        )
    }
}

impl fmt::Display for LikenessReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let [n, m] = self.samples.each_ref().map(Vec::len);
        let word = self.settings.by.word();
        writeln!(
            f,
            "Full Fishers of {a} ({n} samples) and {b} ({m}), {} {word}s",
            self.slices.len()
        )?;
        let shown = 16;
        let mut order: Vec<&SliceLikeness> = self.slices.iter().collect();
        let key = |s: &SliceLikeness| s.overlap.map_or(f64::INFINITY, |o| o.value);
        order.sort_by(|x, y| key(x).total_cmp(&key(y)));
        let rows: Vec<&SliceLikeness> = self.together.iter().chain(order).take(shown).collect();
        let names = rows.iter().map(|s| s.name.chars().count());
        let width = names.max().unwrap_or(0);
        writeln!(
            f,
            "{:<width$}  {:>6}  {:>8}  {:>15}  {:>6}  {:>6}  {:>7}  {:>6}  {:>6}",
            "", "plain", "unbiased", "interval", "p", "angles", "halves:", "across", "within"
        )?;
        let two = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.2}"));
        for slice in &rows {
            let interval = slice.overlap.map_or_else(
                || "–".to_owned(),
                |o| format!("{:.2} … {:.2}", o.interval[0], o.interval[1]),
            );
            let p = slice
                .p
                .map_or_else(|| "–".to_owned(), |p| format!("{p:.3}"));
            let angles = slice.angles.as_ref();
            let within = angles.and_then(|angles| match angles.within {
                [Some(a), Some(b)] => Some(0.5 * (a + b)),
                _ => None,
            });
            writeln!(
                f,
                "{:<width$}  {:>6}  {:>8}  {interval:>15}  {p:>6}  {:>6}  {:>7}  {:>6}  {:>6}",
                slice.name,
                two(slice.plain),
                two(slice.overlap.map(|o| o.value).or(slice.unbiased)),
                two(angles.map(|angles| angles.mean_square)),
                "",
                two(angles.and_then(|angles| angles.across)),
                two(within),
            )?;
        }
        let all = self.slices.len() + usize::from(self.together.is_some());
        if all > rows.len() {
            writeln!(f, "… and {} {word}s that overlap more", all - rows.len())?;
        }
        writeln!(
            f,
            "  Overlaps are cosines between the Fishers; the plain one is too small. p: of an overlap as small where samples \
             are relabelled, of each {word} by itself. Angles: mean squared cosine between the spaces of up to {} \
             eigenvectors, of all samples and of halves. Intervals: {} %, each by itself.",
            self.settings.top,
            100.0 * self.settings.level
        )?;
        if let Some(together) = &self.together {
            writeln!(f, "  {}.", together.sentence())?;
        }
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}
