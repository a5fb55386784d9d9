//! The report of [`Conflicts`](super::Conflicts).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::collision::MeanGradients;
use super::component::{Component, HotSpot, Involved};
use super::config::ConflictsConfig;
use super::lengths::Lengths;
use crate::damping::Health;
use crate::jackknife::Jackknife;
use crate::report::{GradientSource, SampleRef};

/// What is said of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// The expected cosine across the tasks is negative.
    Opposed,
    /// The expected cosine across the tasks is positive.
    Aligned,
    /// Directions of gradients differ by task, and the sign of their cosine is not known.
    Apart,
    /// None of these could be told.
    Unresolved,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Opposed => "opposed",
            Self::Aligned => "aligned",
            Self::Apart => "apart",
            Self::Unresolved => "unresolved",
        })
    }
}

/// The answer to one question of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The statistic: of `apart` the mean cosine across the tasks less half the sum of the means within,
    /// of `opposed` and `aligned` t.
    pub statistic: f64,
    /// p.
    pub p: f64,
    /// q over all slices.
    pub q: f64,
}

/// Two samples, and the cosine of their gradients in a slice.
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
    /// `½‖ĝ_i − ĝ_j‖ = √((1 − cos)/2)` of the unit vectors, from 0 to 1.
    pub separation: f64,
    /// At most α for conflicts, `None` where the pair was only listed. The larger of two numbers: the
    /// least ratio, over all thresholds that call the pair, of decoys (and one) to pairs called in its
    /// slice, and the slice's q of calling as many pairs. Where no pair of any slice conflicts, calling
    /// any is as rare as α; the share of false ones among pairs called is held at α only where signs of
    /// other pairs are independent.
    pub q: Option<f64>,
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
    /// q; 1 where the cosine is positive or below the floor.
    pub q: Vec<Vec<f64>>,
}

/// One slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceConflicts {
    /// The parameter, head, layer or chosen set.
    pub name: String,
    /// Its elements.
    pub elements: usize,
    /// What is said of it: `opposed` or `aligned` where `q ≤ α` for that, else `apart` likewise.
    pub verdict: Verdict,
    /// Mean cosine between the tasks; `None` where no sample of one has a direction.
    pub mean_cosine: Option<f64>,
    /// Its sign, with an interval that lies below 0 where the slice is opposed and above where it is
    /// aligned ([`ConflictReport::bounds`]); `None` where a task has fewer than two samples with a
    /// direction, or nothing varies.
    pub sign: Option<Jackknife>,
    /// Whether directions differ by task; `None` where fewer than two samples of a task have one.
    pub apart: Option<Answer>,
    /// Whether all relabellings were counted.
    pub exact: bool,
    /// Whether the expected cosine is negative.
    pub opposed: Option<Answer>,
    /// Whether it is positive.
    pub aligned: Option<Answer>,
    /// The mean gradients, of the samples as they are compared (whitened, where they are).
    pub gradients: Option<MeanGradients>,
    /// How many pairs conflict here.
    pub conflicts: usize,
    /// The least |cos| of these; `None` where there are none.
    pub threshold: Option<f64>,
    /// The share of ways to draw the signs of samples that would call as many pairs.
    pub p_pairs: f64,
    /// q of that over all slices: no pair here has a smaller one.
    pub q_pairs: f64,
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
    /// The settings. With `whitening` all numbers are of whitened gradients.
    pub settings: ConflictsConfig,
    /// Ids of the samples compared.
    pub samples: [Vec<String>; 2],
    /// How many of either task count as independent: clusters, with copies put together.
    pub independent: [usize; 2],
    /// Groups of samples that are copies of each other.
    pub copies: Vec<Vec<SampleRef>>,
    /// Lengths of the samples.
    pub lengths: Lengths,
    /// All slices, in the model's order.
    pub slices: Vec<SliceConflicts>,
    /// One-sided levels of the lower and the upper end of the intervals of mean cosines, the same for
    /// all slices: those at which a lower end above 0 is an aligned slice and an upper end below 0 an
    /// opposed one. Of the ends that leave 0 out, at most α are expected to miss the true mean, question
    /// by question ([`Correction::coverage`](crate::correction::Correction::coverage)).
    pub bounds: [f64; 2],
    /// The mean gradients over all slices together; `None` where slices overlap.
    pub together: Option<MeanGradients>,
    /// Conflicts in all slices: a pair of samples counts in every slice where it conflicts.
    pub total: usize,
    /// The conflicts of smallest q (and then smallest cosine).
    pub conflicts: Vec<Conflict>,
    /// The pairs of lowest cosine in any slice, whether they conflict or not: a description, not a test.
    pub lowest: Vec<Conflict>,
    /// Samples linked by conflicts, the largest component first.
    pub components: Vec<Component>,
    /// Slices with conflicts, the largest share of pairs first.
    pub hot_spots: Vec<HotSpot>,
    /// Samples with conflicts, most first: those to look at.
    pub involved: Vec<Involved>,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

impl ConflictReport {
    /// How many slices have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.slices.iter().filter(|s| s.verdict == verdict).count()
    }

    /// How many pairs of samples conflict somewhere, each counted once.
    pub fn pairs(&self) -> usize {
        self.components.iter().map(|c| c.pairs).sum()
    }

    /// Independent samples that it takes of either task for a pair to be able to conflict in one slice
    /// alone: 1/α pairs, and as many ways to draw signs as leave a p that is at most α when corrected for the number
    /// of slices.
    pub fn needed(&self) -> usize {
        let alpha = self.settings.alpha;
        let slices = self.settings.correction.factor(self.slices.len().max(1));
        (1.0 / alpha).sqrt().max((slices / alpha).log2()).ceil() as usize
    }

    /// What is known of the signs of the expected cosines, in words.
    pub fn signs(&self) -> String {
        let [opposed, aligned, apart, unresolved] = [
            Verdict::Opposed,
            Verdict::Aligned,
            Verdict::Apart,
            Verdict::Unresolved,
        ]
        .map(|verdict| self.count(verdict));
        let (all, word) = (self.slices.len(), self.settings.by.word());
        let apart = match apart {
            0 => String::new(),
            n => format!("; in {n} gradients differ by task, without a known sign"),
        };
        let within = format!("q ≤ {}, {}", self.settings.alpha, self.space());
        if opposed + aligned == 0 {
            return format!(
                "whether samples of the tasks pull together or against each other is unresolved in {} \
                 ({within}{apart})",
                match all {
                    1 => format!("the one {word}"),
                    all => format!("all {all} {word}s"),
                }
            );
        }
        format!(
            "the expected cosine between samples of the tasks is negative in {opposed} and positive in {aligned} \
             of {all} {word}s, and unresolved in {} ({within}{apart})",
            unresolved + self.count(Verdict::Apart)
        )
    }

    /// The conflicts by number, in words: pairs of samples, and in how many slices each; or that none was
    /// found, and whether one could have been.
    pub fn counted(&self) -> String {
        let word = self.settings.by.word();
        let times = match self.total {
            1 => format!("once in all {word}s"),
            n => format!("{n} times in all {word}s"),
        };
        match self.pairs() {
            0 => self.none(),
            1 => format!("1 pair of samples conflicts, {times}"),
            n => format!("{n} pairs of samples conflict, {times}"),
        }
    }

    /// That no pair was found to conflict, and whether one could have been.
    fn none(&self) -> String {
        let [n, m] = self.independent;
        let (needed, alpha) = (self.needed(), self.settings.alpha);
        if n.min(m) >= needed {
            return "no pair of samples was found to conflict".into();
        }
        let independent = match self.samples.each_ref().map(Vec::len) == self.independent {
            true => "",
            false => "independent ",
        };
        let found = match ((n * m) as f64) < 1.0 / alpha || 0.5f64.powi(n.min(m) as i32) > alpha {
            true => "no conflict of samples could be found",
            false => "no pair of samples was found to conflict",
        };
        format!(
            "{found}: {n} + {m} {independent}samples are too few to find one in a single {}, which takes {needed} \
             of each task at least",
            self.settings.by.word()
        )
    }

    /// The slices from the most surely opposed to the most surely aligned, those without a test last.
    pub fn by_evidence(&self) -> Vec<&SliceConflicts> {
        let mut slices: Vec<&SliceConflicts> = self.slices.iter().collect();
        let key = |s: &SliceConflicts| s.sign.map_or((2.0, 0.0), |t| (t.p_low, t.t));
        slices.sort_by(|x, y| {
            let ((p, t), (q, u)) = (key(x), key(y));
            p.total_cmp(&q).then(t.total_cmp(&u))
        });
        slices
    }

    /// What was compared: raw or whitened gradients.
    pub fn space(&self) -> &'static str {
        match self.settings.whitening {
            None => "raw gradients",
            Some(_) => "whitened gradients",
        }
    }
}
