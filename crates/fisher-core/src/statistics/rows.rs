//! The totals of every sample, or of every cluster of samples.

use std::collections::{HashMap, HashSet};

use crate::moments::{effective, skewness};

/// Numbers that are held of a task.
const HELD: usize = 1 << 20;

/// Sums of values over units of samples: what is needed to compare values sample by sample.
///
/// A unit is a cluster where samples name one, and else a sample by itself. Where more would be held than
/// memory is given for, units are put together, two and two, and units that come later are filled to as many
/// samples: fewer units of like size, from which errors follow as well.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rows {
    columns: usize,
    /// `[units, columns]`
    sums: Vec<f64>,
    /// Samples of each unit.
    sizes: Vec<u64>,
    /// The unit of every sample, in the order in which they came.
    unit_of: Vec<u32>,
    clusters: HashMap<String, u32>,
    /// Samples that a unit without a cluster is filled to.
    width: u64,
    /// The unit that is being filled.
    open: Option<u32>,
    /// Whether a sample named its cluster, also where units were given up.
    clustered: bool,
    held: usize,
}

/// Sums over units of samples, of some values: see [`TaskStatistics::layer_units`](super::TaskStatistics::layer_units).
#[derive(Debug, Clone, PartialEq)]
pub struct UnitSums {
    /// Sums over the samples of each unit, `[units][values]`.
    pub sums: Vec<Vec<f64>>,
    /// How many samples each unit has.
    pub sizes: Vec<u64>,
}

/// What units say of the error of means over samples.
#[derive(Default)]
pub(super) struct UnitErrors {
    pub(super) units: u64,
    pub(super) standard_error: Option<Vec<f64>>,
    pub(super) effective: Option<Vec<f64>>,
    pub(super) skewness: Option<Vec<f64>>,
}

impl UnitSums {
    /// What the sums of each unit deviate from what its samples come to at the `mean`,
    /// `Σ_(i∈c) (C_i − mean)`, `[units][values]`.
    pub fn residuals(&self, mean: &[f64]) -> Vec<Vec<f64>> {
        let units = self.sums.iter().zip(&self.sizes);
        let residual = |(sums, size): (&Vec<f64>, &u64)| {
            let values = sums.iter().zip(mean);
            values
                .map(|(sum, mean)| sum - *size as f64 * mean)
                .collect()
        };
        units.map(residual).collect()
    }

    /// Of independent units: `s.e. = √(G/(G−1) · Σ_c r_c²) / n` from their residuals `r`.
    pub(super) fn errors(&self, mean: &[f64]) -> UnitErrors {
        let units = self.sizes.len();
        let (g, n) = (units as f64, self.sizes.iter().sum::<u64>() as f64);
        let residuals = self.residuals(mean);
        let power = |k: usize, p: i32| residuals.iter().map(|r| r[k].powi(p)).sum::<f64>();
        let all = |of: &dyn Fn(usize) -> f64| {
            (units > 1).then(|| (0..mean.len()).map(of).collect::<Vec<f64>>())
        };
        UnitErrors {
            units: units as u64,
            standard_error: all(&|k| (g / (g - 1.0) * power(k, 2)).sqrt() / n),
            effective: all(&|k| {
                let sums = || self.sums.iter().map(|sums| sums[k]);
                let average = sums().sum::<f64>() / g;
                effective(g, average, sums().map(|s| (s - average).powi(2)).sum())
            }),
            skewness: all(&|k| skewness(g, power(k, 2), power(k, 3))),
        }
    }
}

impl Rows {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            columns,
            sums: Vec::new(),
            sizes: Vec::new(),
            unit_of: Vec::new(),
            clusters: HashMap::new(),
            width: 1,
            open: None,
            clustered: false,
            held: HELD,
        }
    }

    /// Give the units up: of samples of weights that moved.
    pub(super) fn give_up(&mut self) {
        *self = Self {
            clustered: self.clustered,
            held: self.held,
            ..Self::new(self.columns)
        };
    }

    /// Of units that were saved, and the cluster of every sample; `Err` when they do not fit.
    pub(super) fn of_saved<'a>(
        columns: usize,
        sums: Vec<f64>,
        unit_of: Vec<u32>,
        clusters: impl ExactSizeIterator<Item = Option<&'a str>>,
    ) -> Result<Self, String> {
        let units = unit_of.iter().map(|unit| *unit as usize + 1).max();
        let units = units.unwrap_or(0);
        if clusters.len() != unit_of.len() || units.checked_mul(columns) != Some(sums.len()) {
            return Err("its units of samples do not fit its samples".into());
        }
        let mut rows = Self {
            sizes: vec![0; units],
            sums,
            ..Self::new(columns)
        };
        for (cluster, unit) in clusters.zip(&unit_of) {
            rows.clustered |= cluster.is_some();
            rows.sizes[*unit as usize] += 1;
            if let Some(cluster) = cluster
                && *rows.clusters.entry(cluster.to_owned()).or_insert(*unit) != *unit
            {
                return Err(format!("cluster `{cluster}` is in two of its units"));
            }
        }
        if rows.sizes.contains(&0) {
            return Err("one of its units has no sample".into());
        }
        // As wide as the first unit without a cluster, which was filled before others were begun.
        let named: HashSet<u32> = rows.clusters.values().copied().collect();
        let plain = (0..units as u32).filter(|unit| !named.contains(unit));
        let sizes = plain.map(|unit| rows.sizes[unit as usize]);
        rows.width = sizes.max().unwrap_or(1);
        rows.unit_of = unit_of;
        Ok(rows)
    }

    /// Take in the values of a sample.
    pub(super) fn push(&mut self, cluster: Option<&str>, values: &[f64]) {
        self.clustered |= cluster.is_some();
        let known = match cluster {
            Some(cluster) => self.clusters.get(cluster).copied(),
            None => self.open,
        };
        let unit = known.unwrap_or_else(|| self.add(cluster));
        self.unit_of.push(unit);
        self.sizes[unit as usize] += 1;
        let at = unit as usize * self.columns;
        for (sum, value) in self.sums[at..at + self.columns].iter_mut().zip(values) {
            *sum += value;
        }
        if cluster.is_none() {
            let full = self.sizes[unit as usize] >= self.width;
            self.open = (!full).then_some(unit);
        }
        self.bound();
    }

    fn add(&mut self, cluster: Option<&str>) -> u32 {
        let unit = self.sizes.len() as u32;
        self.sizes.push(0);
        self.sums.resize(self.sums.len() + self.columns, 0.0);
        if let Some(cluster) = cluster {
            self.clusters.insert(cluster.to_owned(), unit);
        }
        unit
    }

    /// Take in the units of other samples.
    pub(super) fn merge(&mut self, other: Self) {
        let mut names: HashMap<u32, Vec<&String>> = HashMap::new();
        for (name, unit) in &other.clusters {
            names.entry(*unit).or_default().push(name);
        }
        let mut places = Vec::new();
        for (unit, size) in other.sizes.iter().enumerate() {
            let names = names.remove(&(unit as u32)).unwrap_or_default();
            // Units that share a cluster are one.
            let known = names.iter().find_map(|name| self.clusters.get(*name));
            let place = known.copied().unwrap_or_else(|| self.add(None));
            for name in names {
                let before = self.clusters.insert(name.clone(), place);
                if let Some(before) = before.filter(|before| *before != place) {
                    self.join(before, place);
                    let earlier = places.iter_mut().filter(|place| **place == before);
                    earlier.for_each(|earlier| *earlier = place);
                }
            }
            self.sizes[place as usize] += size;
            let (to, from) = (place as usize * self.columns, unit * self.columns);
            for k in 0..self.columns {
                self.sums[to + k] += other.sums[from + k];
            }
            places.push(place);
        }
        let moved = other.unit_of.iter().map(|unit| places[*unit as usize]);
        self.unit_of.extend(moved);
        self.clustered |= other.clustered;
        self.width = self.width.max(other.width);
        self.open = None;
        self.drop_empty();
        self.bound();
    }

    /// Put all of unit `from` into unit `to`, and leave it empty.
    fn join(&mut self, from: u32, to: u32) {
        for unit in self.unit_of.iter_mut().chain(self.clusters.values_mut()) {
            if *unit == from {
                *unit = to;
            }
        }
        let (here, there) = (from as usize, to as usize);
        self.sizes[there] += std::mem::take(&mut self.sizes[here]);
        for k in 0..self.columns {
            let moved = std::mem::take(&mut self.sums[here * self.columns + k]);
            self.sums[there * self.columns + k] += moved;
        }
    }

    /// Put units together, the smallest with the largest of those below the width, until no more is held
    /// than may be.
    fn bound(&mut self) {
        while self.sums.len() > self.held && self.sizes.len() > 2 {
            self.width *= 2;
            let small = |unit: &u32| 2 * self.sizes[*unit as usize] <= self.width;
            let units: Vec<u32> = (0..self.sizes.len() as u32).filter(small).collect();
            let mut joined: Vec<Option<u32>> = vec![None; self.sizes.len()];
            for pair in units.chunks_exact(2) {
                joined[pair[1] as usize] = Some(pair[0]);
            }
            let mut next = 0;
            let mut numbers = Vec::with_capacity(joined.len());
            for first in joined {
                numbers.push(match first {
                    Some(first) => numbers[first as usize],
                    None => {
                        next += 1;
                        next - 1
                    }
                });
            }
            self.open = None;
            self.renumber(|unit| numbers[unit as usize]);
        }
    }

    fn drop_empty(&mut self) {
        if !self.sizes.contains(&0) {
            return;
        }
        let mut next = 0;
        let numbers = self.sizes.iter().map(|size| {
            let number = next;
            next += u32::from(*size > 0);
            number
        });
        let numbers: Vec<u32> = numbers.collect();
        self.renumber(|unit| numbers[unit as usize]);
    }

    /// Add every unit to the one that has its new number, which is not above the old one.
    fn renumber(&mut self, number: impl Fn(u32) -> u32) {
        let columns = self.columns;
        let mut units = 0;
        for unit in 0..self.sizes.len() {
            let size = std::mem::take(&mut self.sizes[unit]);
            let to = number(unit as u32) as usize;
            for k in 0..columns {
                let moved = std::mem::take(&mut self.sums[unit * columns + k]);
                self.sums[to * columns + k] += moved;
            }
            self.sizes[to] += size;
            if size > 0 {
                units = units.max(to + 1);
            }
        }
        self.sizes.truncate(units);
        self.sums.truncate(units * columns);
        let all = self.unit_of.iter_mut().chain(self.clusters.values_mut());
        all.for_each(|unit| *unit = number(*unit));
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether any sample named a cluster.
    pub(super) fn has_clusters(&self) -> bool {
        self.clustered
    }

    /// `[units, columns]`
    pub(super) fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Samples of every unit.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// The unit of every sample.
    pub(super) fn unit_of(&self) -> &[u32] {
        &self.unit_of
    }

    /// The number of samples.
    pub(super) fn samples(&self) -> u64 {
        self.unit_of.len() as u64
    }

    /// Some of the columns.
    pub(super) fn units(&self, columns: std::ops::Range<usize>) -> UnitSums {
        let rows = self.sums.chunks(self.columns.max(1));
        UnitSums {
            sums: rows.map(|row| row[columns.clone()].to_vec()).collect(),
            sizes: self.sizes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(samples: &[(Option<u8>, f64)], held: usize) -> Rows {
        let mut rows = Rows {
            held,
            ..Rows::new(1)
        };
        for (cluster, value) in samples {
            let name = cluster.map(|c| c.to_string());
            rows.push(name.as_deref(), &[*value]);
        }
        rows
    }

    /// Sums of units, and which samples are in one unit.
    fn partition(rows: &Rows) -> Vec<(Vec<usize>, f64)> {
        let mut units: Vec<(Vec<usize>, f64)> =
            rows.sums.iter().map(|sum| (Vec::new(), *sum)).collect();
        for (sample, unit) in rows.unit_of.iter().enumerate() {
            units[*unit as usize].0.push(sample);
        }
        units.sort_by(|a, b| a.0.cmp(&b.0));
        units
    }

    proptest! {
        /// Every unit is the sum of its samples, a cluster is in one unit, and memory is bounded.
        #[test]
        fn units_are_sums_of_whole_clusters(
            samples in prop::collection::vec((prop::option::of(0u8..5), 0u32..9), 0..40),
            cut in 0usize..40,
            held in 3usize..60,
        ) {
            let samples: Vec<(Option<u8>, f64)> =
                samples.into_iter().map(|(c, x)| (c, f64::from(x))).collect();
            let cut = cut.min(samples.len());
            let mut rows = filled(&samples[..cut], held);
            rows.merge(filled(&samples[cut..], held));
            prop_assert!(rows.sums.len() <= held);
            prop_assert_eq!(rows.sizes.iter().sum::<u64>(), samples.len() as u64);
            let mut homes: HashMap<u8, u32> = HashMap::new();
            for ((cluster, _), unit) in samples.iter().zip(&rows.unit_of) {
                if let Some(cluster) = cluster {
                    prop_assert_eq!(homes.entry(*cluster).or_insert(*unit), unit);
                }
            }
            for (members, sum) in partition(&rows) {
                prop_assert!(!members.is_empty());
                prop_assert_eq!(members.iter().map(|i| samples[*i].1).sum::<f64>(), sum);
            }
            if held == 59 && samples.len() < 50 {
                prop_assert_eq!(partition(&rows), partition(&filled(&samples, held)));
            }
            // What is saved is read.
            let names: Vec<Option<String>> =
                samples.iter().map(|(c, _)| c.map(|c| c.to_string())).collect();
            let names = names.iter().map(Option::as_deref);
            let read = Rows::of_saved(1, rows.sums.clone(), rows.unit_of.clone(), names);
            let read = read.expect("units");
            prop_assert_eq!(&read.sums, &rows.sums);
            prop_assert_eq!((read.sizes, read.unit_of), (rows.sizes, rows.unit_of));
            prop_assert_eq!((read.clusters, read.clustered), (rows.clusters, rows.clustered));
        }
    }

    /// Far more samples than are held: units stay of like size.
    #[test]
    fn units_grow_alike() {
        // Of 0 to 6 at random (the finalizer of MurmurHash3).
        let value = |i: u64| {
            let mut z = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            z = (z ^ (z >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            ((z ^ (z >> 33)) % 7) as f64
        };
        let samples: Vec<(Option<u8>, f64)> = (0..6000).map(|i| (None, value(i))).collect();
        let rows = filled(&samples, 120);
        let (least, most) = (rows.sizes.iter().min(), rows.sizes.iter().max());
        assert!(
            rows.sizes.len() >= 60 && most <= Some(&128),
            "{least:?} {most:?}"
        );
        let small = rows.sizes.iter().filter(|size| **size < 32).count();
        assert!(small <= 2, "{:?}", rows.sizes);
        // The error is that of samples.
        let units = rows.units(0..1);
        let mean = units.sums.iter().map(|s| s[0]).sum::<f64>() / 6000.0;
        let error = units.errors(&[mean]).standard_error.expect("units")[0];
        assert!(
            (0.5..1.5).contains(&(error / (2.0 / 6000f64.sqrt()))),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |sums: Vec<f64>, units: Vec<u32>, names: [Option<&str>; 2]| {
            Rows::of_saved(1, sums, units, names.into_iter())
        };
        assert!(of(vec![1.0, 2.0], vec![0, 1], [None, Some("a")]).is_ok());
        assert!(of(vec![1.0], vec![0, 1], [None, None]).is_err());
        assert!(of(vec![1.0, 2.0, 3.0], vec![0, 2], [None, None]).is_err());
        assert!(of(vec![1.0, 2.0], vec![0, 1], [Some("a"), Some("a")]).is_err());
    }
}
