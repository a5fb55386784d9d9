//! The report in words, as a table and as a picture; and what to warn of.

use std::fmt;

use super::report::{Conflict, ConflictReport, SliceConflicts, Verdict};
use super::slice::{Setting, Tested};
use crate::pairs::SliceBy;
use crate::picture::{ColorScale, HeatMap, Picture};

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b, slice) = (&self.a, &self.b, &self.slice);
        let cosine = format!("{:.2}", self.cosine).replace('-', "−");
        match self.q {
            Some(q) => {
                let q = significant(q);
                write!(
                    f,
                    "{b} pulls against {a} on {slice} (cos {cosine}, q = {q})"
                )
            }
            None => write!(f, "{b} and {a} on {slice}: cos {cosine}"),
        }
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

pub(super) fn warnings(
    report: &ConflictReport,
    tested: &[Tested],
    setting: &Setting,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let word = report.settings.by.word();
    let (alpha, slices) = (report.settings.alpha, &report.slices);
    let [a, b] = &report.tasks;
    let [mut within, mut across] = [0, 0];
    for group in &report.copies {
        let [of_a, of_b] = [a, b].map(|task| group.iter().filter(|s| s.task == *task).count());
        within += usize::from(of_a > 1 || of_b > 1);
        across += usize::from(of_a > 0 && of_b > 0);
    }
    if let Some(first) = report.copies.first() {
        let names: Vec<String> = first.iter().take(3).map(ToString::to_string).collect();
        let more = match first.len() - names.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let (groups, are) = groups(report.copies.len());
        warnings.push(format!(
            "{groups} of samples {are} copies (in every {word} cosine above 0.999 and norms within 1 %), \
             such as {}{more}",
            names.join(" and ")
        ));
    }
    if within > 0 {
        let (groups, are) = groups(within);
        warnings.push(format!(
            "{groups} of copies {are} within a task: such copies count as one sample in every test"
        ));
    }
    if across > 0 {
        let (groups, are) = groups(across);
        warnings.push(format!(
            "{groups} of copies {are} in both tasks, and the tests take samples of {a} and of {b} as \
             independent of each other"
        ));
    }
    if setting.dependence.shared {
        warnings.push(format!(
            "some clusters are in both tasks, and the tests take samples of {a} and of {b} as \
             independent of each other"
        ));
    }
    if report.lengths.p <= alpha {
        let [x, y] = report.lengths.medians;
        let strata = match report.settings.like_lengths {
            true => " even among samples of like length",
            false => "",
        };
        warnings.push(format!(
            "samples of {a} and of {b} differ in length{strata} (medians {x} and {y} active tokens, p = \
             {}): {word}s can be apart by that alone{}",
            significant(report.lengths.p),
            match report.settings.like_lengths {
                true => "",
                false => "; `like_lengths` relabels among samples of like length only",
            }
        ));
    }
    let of = |fits: &dyn Fn(&SliceConflicts, &Tested) -> bool| -> Vec<&SliceConflicts> {
        let both = slices.iter().zip(tested);
        both.filter(|(s, t)| fits(s, t)).map(|(s, _)| s).collect()
    };
    let correction = report.settings.correction;
    let asked = slices.iter().filter(|s| s.apart.is_some()).count();
    let [asked, all] = [asked, slices.len()].map(|tests| correction.factor(tests));
    let of_slices = |what: &str, found: &[&SliceConflicts]| of_slices(what, found, word);
    warnings.extend(of_slices(
        &format!(
            "by relabelling no single {word} can be told apart, because the smallest p there is, corrected for \
             the number of {word}s, is above α,"
        ),
        &of(&|s, t| s.apart.is_some() && asked * t.least[0] > alpha),
    ));
    let needed = (1.0 / alpha).ceil();
    warnings.extend(of_slices(
        &format!(
            "no pair can conflict, because it takes {needed} pairs of independent samples at least,"
        ),
        &of(&|_, t| (t.independent.iter().product::<usize>() as f64) < needed),
    ));
    warnings.extend(of_slices(
        &format!(
            "no pair can conflict in one {word} alone, because the smallest p that drawing signs of samples can \
             give, corrected for the number of {word}s, is above α,"
        ),
        &of(&|_, t| all * t.least[1] > alpha),
    ));
    if setting.overlapping {
        warnings.push(
            "the chosen sets overlap: a conflict in what two of them share counts in both, and there is no \
             inner product over all sets together"
                .into(),
        );
    }
    warnings.extend(of_slices(
        "the damping is more than 1 % of the median F, so that it decides more than F does,",
        &of(&|s, _| s.health.is_some_and(|h| h.swamped())),
    ));
    warnings.extend(of_slices(
        "the gradients of some samples are 0, and these samples were left out,",
        &of(&|s, _| s.without_direction.iter().any(|ids| !ids.is_empty())),
    ));
    warnings.extend(of_slices(
        "fewer than two independent samples of a task have a gradient, or nothing varies, so that there \
         is no test of the sign,",
        &of(&|s, _| s.sign.is_none()),
    ));
    warnings
}

/// So many groups, and the verb.
fn groups(count: usize) -> (String, &'static str) {
    match count {
        1 => ("1 group".into(), "is"),
        count => (format!("{count} groups"), "are"),
    }
}

/// A warning of some slices, if there are any.
fn of_slices(what: &str, found: &[&SliceConflicts], word: &str) -> Option<String> {
    match found {
        [] => None,
        [only] => Some(format!("{what} in 1 {word}, {}", only.name)),
        [first, ..] => Some(format!(
            "{what} in {} {word}s, such as {}",
            found.len(),
            first.name
        )),
    }
}

impl ConflictReport {
    /// The cosines of every pair of samples in a slice, if pairs were kept; pairs that conflict are
    /// framed.
    pub fn picture(&self, slice: &str) -> Option<Picture> {
        let of = self.slices.iter().find(|s| s.name == slice)?;
        let pairs = of.pairs.as_ref()?;
        let [a, b] = &self.tasks;
        let alpha = self.settings.alpha;
        let conflict = |(cosine, q): (&f64, &f64)| *cosine < 0.0 && *q <= alpha;
        let rows = pairs.cosine.iter().zip(&pairs.q);
        let marked = rows.map(|(cosines, q)| cosines.iter().zip(q).map(conflict).collect());
        Some(Picture {
            title: format!("Cosines between samples of {a} and of {b}"),
            note: format!(
                "{slice} ({}, {}); {} conflicting pairs (q ≤ {alpha}) are framed. Rows are samples of \
                 {a}, columns samples of {b}.",
                self.space(),
                of.verdict,
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
                    negative: "against each other".into(),
                    positive: "with each other".into(),
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
                "{} has part in {} of the {} conflicts (each a pair in a {}), with {} samples of the \
                 other task: a candidate to look at, to leave out or to weigh less",
                i.sample,
                i.conflicts,
                self.total,
                self.settings.by.word(),
                i.partners
            )
        });
        conflicts.chain(involved).collect()
    }

    /// The tasks as wholes, in a sentence: what the mean gradients say of a small step on the elements
    /// compared. `None` where slices overlap, or where nothing varies.
    pub fn collision(&self) -> Option<String> {
        let [a, b] = &self.tasks;
        let all = self.together?;
        let [low, high] = all.inner.interval;
        let cosine = all.cosine.map_or_else(String::new, |cosine| {
            let mut said = Vec::new();
            said.extend(
                cosine
                    .standard_error
                    .map(|e| format!("standard error {e:.2}")),
            );
            if cosine.value.abs() > 1.0 {
                said.push("beyond 1 by the noise in the norms".into());
            }
            let said = match said.len() {
                0 => String::new(),
                _ => format!(" ({})", said.join(", ")),
            };
            format!(", cosine {:.2}{said}", cosine.value)
        });
        let over = match self.settings.by {
            SliceBy::Model | SliceBy::Parameter | SliceBy::Layer => "all parameters compared",
            SliceBy::Head => "the attention heads alone",
            SliceBy::Chosen(_) => "the chosen sets alone",
        };
        let step = match self.settings.whitening {
            None => "a small step on these against one task's mean gradient",
            Some(_) => {
                "a small step on these against one task's mean gradient divided by the damped Fisher of both"
            }
        };
        let said = match () {
            () if high < 0.0 => {
                format!("it is negative: to first order, {step} raises the other's loss")
            }
            () if low > 0.0 => {
                format!("it is positive: to first order, {step} lowers the other's loss too")
            }
            () => "its sign is not resolved".to_owned(),
        };
        Some(format!(
            "the mean gradients of {a} and {b} ({}, over {over}) have inner product {:.2e} ({} % interval \
             {low:.2e} … {high:.2e}){cosine}; {said}",
            self.space(),
            all.inner.mean,
            100.0 * self.settings.level
        ))
    }
}

impl fmt::Display for ConflictReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let [n_a, n_b] = self.samples.each_ref().map(Vec::len);
        let word = self.settings.by.word();
        writeln!(
            f,
            "{a} ({n_a} samples) against {b} ({n_b}), {}: of {} {word}s {} opposed, {} aligned, {} apart \
             without a sign, {} unresolved (q ≤ {}); {}",
            self.space(),
            self.slices.len(),
            self.count(Verdict::Opposed),
            self.count(Verdict::Aligned),
            self.count(Verdict::Apart),
            self.count(Verdict::Unresolved),
            self.settings.alpha,
            self.counted()
        )?;
        let order = self.by_evidence();
        let shown = 12;
        let rows = &order[..order.len().min(shown)];
        let names = rows.iter().map(|s| s.name.chars().count());
        let width = names.max().unwrap_or(0);
        let header = [
            "cosine",
            "interval",
            "q opposed",
            "q aligned",
            "q apart",
            "conflicts",
        ];
        let [c, i, o, l, p, n] = header;
        writeln!(
            f,
            "{:<width$}  {:<10}  {c:>7}  {i:>17}  {o:>9}  {l:>9}  {p:>8}  {n:>9}",
            "", ""
        )?;
        let none = || "–".to_owned();
        for slice in rows {
            let cosine = slice.mean_cosine.map_or_else(none, |m| format!("{m:+.3}"));
            let interval = slice.sign.map_or_else(none, |sign| {
                let [low, high] = sign.interval;
                format!("{low:+.3} … {high:+.3}")
            });
            let [o, l, p] = [slice.opposed, slice.aligned, slice.apart]
                .map(|answer| answer.map_or_else(none, |answer| significant(answer.q)));
            let (name, verdict, conflicts) = (&slice.name, slice.verdict, slice.conflicts);
            writeln!(
                f,
                "{name:<width$}  {verdict:<10}  {cosine:>7}  {interval:>17}  {o:>9}  {l:>9}  {p:>8}  \
                 {conflicts:>9}"
            )?;
        }
        if order.len() > shown {
            writeln!(
                f,
                "… and {} {word}s that are less opposed",
                order.len() - shown
            )?;
        }
        let [lower, upper] = self.bounds.map(|level| 100.0 * level);
        writeln!(
            f,
            "  Ends of intervals of the mean cosine are one-sided bounds, the lower at {lower:.4} % and the \
             upper at {upper:.4} %: below 0 is opposed, above 0 is aligned."
        )?;
        if let Some(collision) = self.collision() {
            writeln!(f, "  {collision}.")?;
        }
        for sentence in self.sentences(5) {
            writeln!(f, "  {sentence}.")?;
        }
        if self.conflicts.is_empty() && !self.lowest.is_empty() {
            writeln!(f, "  The lowest cosines, untested:")?;
            for pair in self.lowest.iter().take(3) {
                writeln!(f, "    {pair}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "  Note: {warning}.")?;
        }
        Ok(())
    }
}
