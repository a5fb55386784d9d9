//! How far the masks of two tasks agree.

use std::collections::BTreeMap;
use std::fmt;

use burn::config::Config;
use fisher_core::provenance::Provenance;
use serde::{Deserialize, Serialize};

use super::advice::Advice;
use super::masks::{Mask, Masks};
use crate::error::{Error, Result, check_argument};

/// Version of the form of [`OverlapReport`].
const SCHEMA: u64 = 2;

/// Thresholds on the Jaccard index, a rule of thumb: independent masks of sparsity `s` have an index of
/// `(1 − s)/(1 + s)`, which is above 0.70 at low sparsity and below 0.40 at high.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RuleOfThumb {
    /// Below this index: plain task arithmetic.
    pub arithmetic_below: f64,
    /// Above this index: gradient surgery or adapters.
    pub surgery_above: f64,
}

impl Default for RuleOfThumb {
    fn default() -> Self {
        Self {
            arithmetic_below: 0.40,
            surgery_above: 0.70,
        }
    }
}

impl RuleOfThumb {
    fn advice(&self, jaccard: f64) -> Advice {
        match jaccard {
            j if j > self.surgery_above => Advice::Surgery,
            j if j < self.arithmetic_below => Advice::Arithmetic,
            _ => Advice::WeightedArithmetic,
        }
    }
}

/// Configuration of [`Overlap`].
#[derive(Config, Debug)]
pub struct OverlapConfig {
    /// Advice by the Jaccard index, beside what [`Suggestion`](super::Suggestion) has to say.
    pub rule_of_thumb: Option<RuleOfThumb>,
}

impl OverlapConfig {
    /// The operator.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 ≤ arithmetic_below ≤ surgery_above ≤ 1`.
    pub fn init(&self) -> Result<Overlap> {
        if let Some(rule) = self.rule_of_thumb {
            let (low, high) = (rule.arithmetic_below, rule.surgery_above);
            let fits = (0.0..=1.0).contains(&high);
            check_argument(fits, "surgery_above", "between 0 and 1", high)?;
            let fits = (0.0..=high).contains(&low);
            check_argument(
                fits,
                "arithmetic_below",
                "between 0 and `surgery_above`",
                low,
            )?;
        }
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
    /// Cohen's κ, agreement beyond chance; `None` where chance alone agrees always. Over several tensors
    /// it counts as agreement that one tensor's scores are larger than another's.
    pub kappa: Option<f64>,
    /// κ with chance taken within each tensor, `p_e = Σ_t (n_t/N) p_e,t`: about 0 for masks that are
    /// independent within each tensor, whatever the tensors' scales. κ itself over one tensor.
    pub stratified: Option<f64>,
}

/// What halves of the tasks' samples have in common, as means over several ways to halve. Masks of
/// halves are noisier than masks of all samples, so that halves are compared with halves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Ways in which samples were halved.
    pub splits: usize,
    /// Stratified κ between two halves of A, and of B: a task agrees with itself no better.
    pub within: [Option<f64>; 2],
    /// Their Jaccard index.
    pub jaccard_within: [Option<f64>; 2],
    /// Stratified κ between a half of A and one of B, over all four pairs of each split.
    pub across: Option<f64>,
    /// The Jaccard index of these.
    pub jaccard_across: Option<f64>,
    /// `across / √(within A · within B)`; `None` where a task does not agree with itself (κ ≤ 0).
    pub relative: Option<f64>,
    /// The lowest and the highest of that, way by way to halve: it is known no better. `None` where one is
    /// undefined.
    pub spread: Option<[f64; 2]>,
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
    /// Over everything.
    pub all: Agreement,
    /// By layer.
    pub layers: BTreeMap<String, Agreement>,
    /// By `{path}|{label}`.
    pub tensors: BTreeMap<String, Agreement>,
    /// What halves of the tasks have in common; `None` where there are none.
    pub ceiling: Option<Ceiling>,
    /// The rule of thumb, if it was asked for, and what it says of the Jaccard index over everything;
    /// `None` where that is undefined.
    pub rule_of_thumb: Option<(RuleOfThumb, Option<Advice>)>,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    n: usize,
    a: usize,
    b: usize,
    both: usize,
    /// `Σ_t n_t p_e,t` over the tensors.
    chance: f64,
}

impl Counts {
    fn of(a: &Mask, b: &Mask) -> Self {
        let mut counts = Self {
            n: a.keep.len(),
            a: a.keep.count_ones(..),
            b: b.keep.count_ones(..),
            both: a.keep.intersection_count(&b.keep),
            chance: 0.0,
        };
        counts.chance = counts.by_chance();
        counts
    }

    fn add(&mut self, other: Self) {
        self.n += other.n;
        self.a += other.a;
        self.b += other.b;
        self.both += other.both;
        self.chance += other.chance;
    }

    /// How many of `n` entries independent masks would agree on.
    fn by_chance(self) -> f64 {
        let [n, a, b] = [self.n, self.a, self.b].map(|x| x as f64);
        if n > 0.0 {
            (a * b + (n - a) * (n - b)) / n
        } else {
            0.0
        }
    }

    fn agreement(self) -> Agreement {
        let Self { n, a, b, both, .. } = self;
        let ratio = |x: usize, y: usize| (y > 0).then(|| x as f64 / y as f64);
        let union = a + b - both;
        let [n_, a_, b_] = [n, a, b].map(|x| x as f64);
        let agree = (both + (n - union)) as f64;
        // Chance is exact where it agrees on everything, and else off by rounding.
        let kappa = |chance: f64| {
            let left = n_ - chance;
            (left > 1e-12 * n_).then(|| (agree - chance) / left)
        };
        Agreement {
            n,
            both,
            only_a: a - both,
            only_b: b - both,
            jaccard: ratio(both, union),
            intersection_over_n: if n > 0 { both as f64 / n_ } else { 0.0 },
            overlap_coefficient: ratio(both, a.min(b)),
            expected_intersection: if n > 0 { a_ * b_ / n_ } else { 0.0 },
            kappa: kappa(self.by_chance()),
            stratified: kappa(self.chance),
        }
    }
}

/// All entries, those of every layer, and those of every tensor.
type Compared = (Counts, BTreeMap<String, Counts>, BTreeMap<String, Counts>);

impl Overlap {
    /// Compare the masks `a` and `b` of two tasks of one model.
    ///
    /// # Errors
    /// [`Error::Keys`], [`Error::Sizes`] or [`Error::Groups`] when they are not of the same groups,
    /// [`Error::Argument`] when they are of none.
    pub fn forward(&self, a: &Masks, b: &Masks) -> Result<OverlapReport> {
        let (all, layers, tensors) = compare(a, b)?;
        let all = all.agreement();
        let rule = self.config.rule_of_thumb;
        let agreements = |counts: BTreeMap<String, Counts>| {
            let agreements = counts.into_iter().map(|(k, c)| (k, c.agreement()));
            agreements.collect()
        };
        Ok(OverlapReport {
            schema: SCHEMA,
            tasks: [a.task.clone(), b.task.clone()],
            provenance: [a.provenance.clone(), b.provenance.clone()],
            sparsity: [a.sparsity, b.sparsity],
            all,
            layers: agreements(layers),
            tensors: agreements(tensors),
            ceiling: None,
            rule_of_thumb: rule.map(|rule| (rule, all.jaccard.map(|j| rule.advice(j)))),
        })
    }

    /// The same, beside what halves of each task have in common: the masks of two halves of its samples
    /// for every way in which both tasks' were halved
    /// ([`Scores::halves`](super::Scores::halves)).
    ///
    /// # Errors
    /// As [`Overlap::forward`], and [`Error::Argument`] without halves or where the tasks' differ in
    /// number.
    pub fn forward_with_halves(
        &self,
        [a, b]: [&Masks; 2],
        [halves_a, halves_b]: [&[[Masks; 2]]; 2],
    ) -> Result<OverlapReport> {
        let splits = halves_a.len();
        let fits = splits > 0 && splits == halves_b.len();
        let found = halves_b.len() as f64;
        check_argument(fits, "halves", "as many of both tasks, and some", found)?;
        let mut report = self.forward(a, b)?;
        let kappa = |of: &[Agreement]| mean(of.iter().map(|a| a.stratified));
        let jaccard = |of: &[Agreement]| mean(of.iter().map(|a| a.jaccard));
        let relative = |between: Option<f64>, [a, b]: [Option<f64>; 2]| {
            let ceiling = a.zip(b).filter(|(a, b)| *a > 0.0 && *b > 0.0);
            between.zip(ceiling).map(|(k, (a, b))| k / (a * b).sqrt())
        };
        let [mut of_a, mut of_b, mut across] = [const { Vec::new() }; 3];
        let mut spread = Some([f64::INFINITY, f64::NEG_INFINITY]);
        for (a, b) in halves_a.iter().zip(halves_b) {
            let in_a = compare(&a[0], &a[1])?.0.agreement();
            let in_b = compare(&b[0], &b[1])?.0.agreement();
            let mut between = Vec::new();
            for a in a {
                for b in b {
                    between.push(compare(a, b)?.0.agreement());
                }
            }
            let here = relative(kappa(&between), [in_a.stratified, in_b.stratified]);
            spread = spread
                .zip(here)
                .map(|([low, high], x)| [low.min(x), high.max(x)]);
            of_a.push(in_a);
            of_b.push(in_b);
            across.extend(between);
        }
        let within = [kappa(&of_a), kappa(&of_b)];
        let between = kappa(&across);
        report.ceiling = Some(Ceiling {
            splits,
            within,
            jaccard_within: [jaccard(&of_a), jaccard(&of_b)],
            across: between,
            jaccard_across: jaccard(&across),
            relative: relative(between, within),
            spread,
        });
        Ok(report)
    }
}

/// Of all, or of nothing.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values = values.collect::<Option<Vec<f64>>>()?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

fn compare(a: &Masks, b: &Masks) -> Result<Compared> {
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
        tensors.insert(key, counts);
    }
    if let Some(key) = theirs.into_keys().next() {
        return Err(Error::keys(key, "the second masks", "the first"));
    }
    Ok((all, layers, tensors))
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
                number(row.stratified),
                row.both,
                row.expected_intersection,
                row.only_a,
                row.only_b
            )?;
        }
        if let Some(ceiling) = &self.ceiling {
            let number = |x: Option<f64>| x.map_or("undefined".into(), |x| format!("{x:.3}"));
            let [of_a, of_b] = ceiling.within.map(number);
            writeln!(
                f,
                "Halves of samples, over {} splits: κ {of_a} within {a}, {of_b} within {b}, {} across",
                ceiling.splits,
                number(ceiling.across)
            )?;
        }
        if let Some((rule, advice)) = self.rule_of_thumb {
            let advice = advice.map_or("nothing is kept".into(), |advice| advice.to_string());
            writeln!(
                f,
                "By a rule of thumb on the Jaccard index ({} and {}), which independent masks meet too: \
                 {advice}",
                rule.arithmetic_below, rule.surgery_above
            )?;
        }
        write!(f, "κ: chance within each tensor; pooled over all, {}", {
            let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.3}"));
            number(self.all.kappa)
        })
    }
}
