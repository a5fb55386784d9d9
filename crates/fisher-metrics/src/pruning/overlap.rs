//! How far the masks of two tasks agree.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use fisher_core::provenance::Provenance;
use serde::{Deserialize, Serialize};

use super::masks::{Mask, Masks};
use crate::error::{Error, Result, check_argument};

/// Version of the form of [`OverlapReport`].
const SCHEMA: u64 = 1;

/// Configuration of [`Overlap`].
#[derive(Config, Debug)]
pub struct OverlapConfig {
    /// Above this Jaccard index: gradient surgery or adapters.
    #[config(default = 0.70)]
    pub surgery_above: f64,
    /// Below this Jaccard index: plain task arithmetic.
    #[config(default = 0.40)]
    pub arithmetic_below: f64,
}

impl OverlapConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 ≤ arithmetic_below ≤ surgery_above ≤ 1`.
    pub fn init(&self) -> Result<Overlap> {
        let (low, high) = (self.arithmetic_below, self.surgery_above);
        let fits = (0.0..=1.0).contains(&high);
        check_argument(fits, "surgery_above", "between 0 and 1", high)?;
        let fits = (0.0..=high).contains(&low);
        check_argument(
            fits,
            "arithmetic_below",
            "between 0 and `surgery_above`",
            low,
        )?;
        Ok(Overlap {
            config: self.clone(),
        })
    }
}

/// Compares what two tasks keep.
#[derive(Debug, Clone)]
pub struct Overlap {
    config: OverlapConfig,
}

/// How two sets `A` and `B` of kept entries, out of `N`, agree.
///
/// At 50 % sparsity two random masks have a Jaccard index of 1/3: only κ compares between
/// sparsities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// `N`.
    pub n: usize,
    /// `|A∩B|`.
    pub both: usize,
    /// `|A∖B|`.
    pub only_a: usize,
    /// `|B∖A|`.
    pub only_b: usize,
    /// `|A∩B| / |A∪B|`; `None` when neither keeps anything.
    pub jaccard: Option<f64>,
    /// `|A∩B| / N`.
    pub intersection_over_n: f64,
    /// `|A∩B| / min(|A|, |B|)`; `None` when one keeps nothing.
    pub overlap_coefficient: Option<f64>,
    /// `|A||B| / N`: what independent masks would share.
    pub expected_intersection: f64,
    /// Cohen's κ, agreement beyond chance; `None` where chance alone agrees always.
    pub kappa: Option<f64>,
}

/// What the overlap suggests for merging the two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// They need the same weights: gradient surgery or adapters.
    Surgery,
    /// They share some: task arithmetic with chosen weights.
    WeightedArithmetic,
    /// They share little: plain task arithmetic.
    Arithmetic,
}

/// The overlap of two tasks' masks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// Version of this form.
    pub schema: u64,
    /// The tasks `A` and `B`.
    pub tasks: [String; 2],
    /// Where the masks' statistics come from.
    pub provenance: [Provenance; 2],
    /// Shares that the masks prune.
    pub sparsity: [f64; 2],
    /// The thresholds of the advice.
    pub thresholds: [f64; 2],
    /// Over everything.
    pub all: Agreement,
    /// By layer.
    pub layers: BTreeMap<String, Agreement>,
    /// By `{path}|{label}`.
    pub tensors: BTreeMap<String, Agreement>,
    /// From the Jaccard index over everything; `None` where that is undefined.
    pub advice: Option<Advice>,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    n: usize,
    a: usize,
    b: usize,
    both: usize,
}

impl Counts {
    fn of(a: &Mask, b: &Mask) -> Self {
        Self {
            n: a.keep.len(),
            a: a.keep.count_ones(..),
            b: b.keep.count_ones(..),
            both: a.keep.intersection_count(&b.keep),
        }
    }

    fn add(&mut self, other: Self) {
        self.n += other.n;
        self.a += other.a;
        self.b += other.b;
        self.both += other.both;
    }

    fn agreement(self) -> Agreement {
        let Self { n, a, b, both } = self;
        let ratio = |x: usize, y: usize| (y > 0).then(|| x as f64 / y as f64);
        let union = a + b - both;
        let [n_, a_, b_] = [n, a, b].map(|x| x as f64);
        let chance = (a_ * b_ + (n_ - a_) * (n_ - b_)) / (n_ * n_);
        let agree = (both + (n - union)) as f64 / n_;
        Agreement {
            n,
            both,
            only_a: a - both,
            only_b: b - both,
            jaccard: ratio(both, union),
            intersection_over_n: both as f64 / n_,
            overlap_coefficient: ratio(both, a.min(b)),
            expected_intersection: a_ * b_ / n_,
            kappa: (chance < 1.0).then(|| (agree - chance) / (1.0 - chance)),
        }
    }
}

impl Overlap {
    /// Compare the masks `a` and `b` of two tasks of one model.
    ///
    /// # Errors
    /// [`Error::Keys`], [`Error::Sizes`] or [`Error::Groups`] when they are not of the same groups,
    /// [`Error::Argument`] when they are of none.
    pub fn forward(&self, a: &Masks, b: &Masks) -> Result<OverlapReport> {
        let some = !a.masks.is_empty();
        check_argument(some, "masks", "of at least one parameter", 0.0)?;
        let mut theirs: BTreeMap<String, &Mask> = b.counted().map(|m| (m.key(), m)).collect();
        let mut all = Counts::default();
        let mut layers: BTreeMap<String, Counts> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for ours in a.counted() {
            let key = ours.key();
            let theirs = theirs
                .remove(&key)
                .ok_or_else(|| Error::keys(key.clone(), "the first masks", "the second"))?;
            if ours.keep.len() != theirs.keep.len() {
                return Err(Error::sizes(key, ours.keep.len(), theirs.keep.len()));
            }
            if ours.grouping != theirs.grouping {
                return Err(Error::Groups { key });
            }
            let counts = Counts::of(ours, theirs);
            all.add(counts);
            layers.entry(ours.layer.clone()).or_default().add(counts);
            tensors.insert(key, counts.agreement());
        }
        if let Some(key) = theirs.into_keys().next() {
            return Err(Error::keys(key, "the second masks", "the first"));
        }
        let all = all.agreement();
        let config = &self.config;
        let advice = all.jaccard.map(|jaccard| match jaccard {
            j if j > config.surgery_above => Advice::Surgery,
            j if j < config.arithmetic_below => Advice::Arithmetic,
            _ => Advice::WeightedArithmetic,
        });
        Ok(OverlapReport {
            schema: SCHEMA,
            tasks: [a.task.clone(), b.task.clone()],
            provenance: [a.provenance.clone(), b.provenance.clone()],
            sparsity: [a.sparsity, b.sparsity],
            thresholds: [config.arithmetic_below, config.surgery_above],
            all,
            layers: layers
                .into_iter()
                .map(|(k, c)| (k, c.agreement()))
                .collect(),
            tensors,
            advice,
        })
    }
}

impl fmt::Display for OverlapReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.tasks;
        let width = self
            .layers
            .keys()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max(3);
        writeln!(
            f,
            "{:<width$}  {:>8}  {:>7}  {:>8}  {:>8}  {:>8}  {:>8}",
            "",
            "Jaccard",
            "κ",
            "both",
            "expected",
            format!("only {a:.3}"),
            format!("only {b:.3}")
        )?;
        let rows = self.layers.iter().map(|(k, v)| (&**k, v));
        for (name, row) in rows.chain([("all", &self.all)]) {
            let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.3}"));
            writeln!(
                f,
                "{name:<width$}  {:>8}  {:>7}  {:>8}  {:>8.0}  {:>8}  {:>8}",
                number(row.jaccard),
                number(row.kappa),
                row.both,
                row.expected_intersection,
                row.only_a,
                row.only_b
            )?;
        }
        let advice = match self.advice {
            Some(Advice::Surgery) => {
                "the tasks need the same weights: gradient surgery or adapters"
            }
            Some(Advice::WeightedArithmetic) => "task arithmetic with chosen weights",
            Some(Advice::Arithmetic) => "plain task arithmetic",
            None => "nothing is kept, so nothing can be said",
        };
        write!(f, "To merge {a} and {b}: {advice}.")
    }
}
