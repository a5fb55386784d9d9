//! How conflicts hang together: connected components, slices where they gather, and the samples that
//! have most part in them.

use std::collections::BTreeMap;

use fisher_core::sample::Sample;
use serde::{Deserialize, Serialize};

use super::slice::{Candidate, Tested};
use crate::pairs::Joined;
use crate::report::SampleRef;

/// Samples that are linked by conflicts: a connected component.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// The samples.
    pub samples: Vec<SampleRef>,
    /// Pairs of them that conflict somewhere.
    pub pairs: usize,
}

/// A slice where samples conflict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HotSpot {
    /// The slice.
    pub slice: String,
    /// Conflicting pairs.
    pub conflicts: usize,
    /// Their share of all pairs there.
    pub share: f64,
    /// Their mean cosine.
    pub mean_cosine: f64,
}

/// How much a sample has part in the conflicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Involved {
    /// The sample.
    pub sample: SampleRef,
    /// Conflicts it is part of, in all slices.
    pub conflicts: usize,
    /// Samples of the other task that it conflicts with somewhere.
    pub partners: usize,
}

/// A conflict by numbers: of the slice, of the samples.
pub(super) struct Hit {
    pub(super) slice: usize,
    pub(super) samples: [usize; 2],
    pub(super) found: Candidate,
}

impl Hit {
    /// Its place in the order of slices and pairs, to break ties.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.slice, self.found.pair)
    }
}

/// Connected components of the graph of conflicts.
pub(super) fn components(
    hits: &[Hit],
    samples: &[Vec<Sample>; 2],
    sample: &impl Fn(usize, usize) -> SampleRef,
) -> Vec<Component> {
    let first = samples[0].len();
    let mut joined = Joined::new(first + samples[1].len());
    let mut edges: Vec<[usize; 2]> = hits.iter().map(|h| h.samples).collect();
    edges.sort_unstable();
    edges.dedup();
    edges.iter().for_each(|[a, b]| joined.join(*a, first + b));
    let mut found: BTreeMap<usize, Component> = BTreeMap::new();
    let mut nodes: Vec<usize> = edges.iter().flat_map(|[a, b]| [*a, first + b]).collect();
    nodes.sort_unstable();
    nodes.dedup();
    for node in nodes {
        let component = found.entry(joined.root(node)).or_insert(Component {
            samples: Vec::new(),
            pairs: 0,
        });
        component.samples.push(match node.checked_sub(first) {
            Some(other) => sample(1, other),
            None => sample(0, node),
        });
    }
    for [a, _] in edges {
        if let Some(component) = found.get_mut(&joined.root(a)) {
            component.pairs += 1;
        }
    }
    let mut components: Vec<Component> = found.into_values().collect();
    components.sort_by_key(|c| std::cmp::Reverse((c.samples.len(), c.pairs)));
    components
}

pub(super) fn hot_spots(hits: &[Hit], tested: &[Tested]) -> Vec<HotSpot> {
    let mut sums: BTreeMap<usize, (usize, f64)> = BTreeMap::new();
    for hit in hits {
        let sum = sums.entry(hit.slice).or_default();
        sum.0 += 1;
        sum.1 += hit.found.cosine;
    }
    let spot = |(slice, (conflicts, cosines)): (usize, (usize, f64))| HotSpot {
        slice: tested[slice].name.clone(),
        conflicts,
        share: conflicts as f64 / tested[slice].pairs() as f64,
        mean_cosine: cosines / conflicts as f64,
    };
    let mut spots: Vec<HotSpot> = sums.into_iter().map(spot).collect();
    spots.sort_by(|x, y| y.share.total_cmp(&x.share));
    spots
}

pub(super) fn involved(hits: &[Hit], sample: &impl Fn(usize, usize) -> SampleRef) -> Vec<Involved> {
    let mut partners: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for hit in hits {
        let [a, b] = hit.samples;
        partners.entry((0, a)).or_default().push(b);
        partners.entry((1, b)).or_default().push(a);
    }
    let of = |((task, number), mut partners): ((usize, usize), Vec<usize>)| {
        let conflicts = partners.len();
        partners.sort_unstable();
        partners.dedup();
        Involved {
            sample: sample(task, number),
            conflicts,
            partners: partners.len(),
        }
    };
    let mut involved: Vec<Involved> = partners.into_iter().map(of).collect();
    involved.sort_by_key(|i| std::cmp::Reverse(i.conflicts));
    involved
}
