//! Samples that depend on each other: named clusters, and copies.

use std::collections::{BTreeMap, HashSet};

use fisher_core::sample::Sample;
use fisher_core::store::GradientStore;

use super::budget::Work;
use super::joined::Joined;
use super::rows::Rows;
use super::slices::Slice;
use crate::error::Result;

/// Two samples are copies where the cosine of their gradients is above this in every slice.
const COPY: f64 = 0.999;
/// And the norms differ by no more than this share.
const NORM: f64 = 0.01;

/// Which samples count as one.
pub(crate) struct Dependence<const N: usize> {
    /// The cluster of each sample of every task, from 0 without gaps, in the order of the samples.
    pub(crate) clusters: [Vec<usize>; N],
    /// Groups of copies, by task and number of the sample.
    pub(crate) copies: Vec<Vec<(usize, usize)>>,
    /// Whether a name of a cluster is in two tasks.
    pub(crate) shared: bool,
}

impl<const N: usize> Dependence<N> {
    /// Of the samples of these tasks, all of which are `rows`, one task after the other: samples of one named cluster, and copies within a task, are one
    /// cluster. Copies of another task's samples are found, and not put together.
    pub(crate) fn find(
        store: &GradientStore,
        tasks: [&str; N],
        slices: &[&Slice],
        rows: &Rows,
        work: &Work,
    ) -> Result<Self> {
        let samples = tasks.map(|task| store.samples(task));
        let mut starts = [0; N];
        for task in 1..N {
            starts[task] = starts[task - 1] + samples[task - 1].len();
        }
        let pairs = copies(slices, rows, work)?;
        let names = |of: &[Sample]| -> HashSet<String> {
            let named = of.iter().filter_map(Sample::cluster);
            named.map(Into::into).collect()
        };
        let named = samples.map(names);
        let shared = named.iter().enumerate().any(|(task, names)| {
            let others = &named[..task];
            others.iter().any(|other| !names.is_disjoint(other))
        });
        let clusters = std::array::from_fn(|task| {
            let mut joined = Joined::new(samples[task].len());
            let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
            for (i, sample) in samples[task].iter().enumerate() {
                if let Some(name) = sample.cluster() {
                    joined.join(i, *seen.entry(name).or_insert(i));
                }
            }
            let inside = |i: usize| {
                i.checked_sub(starts[task])
                    .filter(|&i| i < samples[task].len())
            };
            for (i, j) in &pairs {
                if let (Some(i), Some(j)) = (inside(*i), inside(*j)) {
                    joined.join(i, j);
                }
            }
            joined.numbers()
        });
        let mut joined = Joined::new(rows.len());
        pairs.iter().for_each(|(i, j)| joined.join(*i, *j));
        let mut groups: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for i in 0..rows.len() {
            let task = starts.partition_point(|start| *start <= i) - 1;
            let sample = (task, i - starts[task]);
            groups.entry(joined.root(i)).or_default().push(sample);
        }
        Ok(Self {
            clusters,
            copies: groups.into_values().filter(|g| g.len() > 1).collect(),
            shared,
        })
    }
}

/// Pairs of rows that are copies. The largest slice goes first: it leaves the fewest to look at.
fn copies(slices: &[&Slice], rows: &Rows, work: &Work) -> Result<Vec<(usize, usize)>> {
    let mut order = slices.to_vec();
    order.sort_by_key(|slice| std::cmp::Reverse(slice.elements));
    // Those that may still be copies, with the slices in which they have a direction; all pairs before the
    // first slice, which are never listed.
    let mut pairs: Option<Vec<(usize, usize, usize)>> = None;
    for slice in order {
        let members: Vec<usize> = match &pairs {
            None => (0..rows.len()).collect(),
            Some(pairs) => {
                let mut members: Vec<usize> = pairs.iter().flat_map(|p| [p.0, p.1]).collect();
                members.sort_unstable();
                members.dedup();
                members
            }
        };
        if members.is_empty() {
            break;
        }
        let chosen = rows.pick(&members);
        let gram = work.gram(std::slice::from_ref(slice), &chosen, |_, _| 1.0)?;
        let mut place = vec![0; rows.len()];
        members
            .iter()
            .zip(0..)
            .for_each(|(&row, at)| place[row] = at);
        let product = |i: usize, j: usize| gram[0][place[i] * members.len() + place[j]];
        let left = |(i, j, directions): (usize, usize, usize)| {
            let [x, y] = [product(i, i).sqrt(), product(j, j).sqrt()];
            let alike = product(i, j) > COPY * x * y && (x - y).abs() <= NORM * x.max(y);
            let stays = alike || (x == 0.0 && y == 0.0);
            stays.then_some((i, j, directions + usize::from(x > 0.0)))
        };
        let all = |i: usize| (i + 1..rows.len()).map(move |j| (i, j, 0));
        pairs = Some(match pairs {
            None => (0..rows.len()).flat_map(all).filter_map(left).collect(),
            Some(pairs) => pairs.into_iter().filter_map(left).collect(),
        });
    }
    let found = pairs
        .into_iter()
        .flatten()
        .filter(|(_, _, directions)| *directions > 0);
    Ok(found.map(|(i, j, _)| (i, j)).collect())
}
