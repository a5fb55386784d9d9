//! The scores of two halves of a task: how far it agrees with itself.

use fisher_core::grouping::GroupReduction;
use fisher_core::store::GradientStore;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;

use super::scores::Scores;
use crate::error::{Error, Result, ScoreKind};
use crate::jackknife::{clusters, members};

impl Scores {
    /// F of two random halves of the samples of `task` in `store`, in the places and with the
    /// reduction of these scores, for every one of `splits` ways to halve. Clusters are not torn apart.
    /// The store is read once; `splits + 1` numbers are held for every score.
    ///
    /// Statistics of one's own halves do as well: collect every other sample as another task.
    ///
    /// # Errors
    /// [`Error::Kinds`] unless these scores are F, [`Error::TooFewSamples`] for fewer than two samples
    /// or clusters, and those of reading the store.
    pub fn halves(
        &self,
        store: &GradientStore,
        task: &str,
        splits: usize,
        seed: u64,
    ) -> Result<Vec<[Self; 2]>> {
        if self.kind != ScoreKind::Fisher {
            return Err(Error::Kinds {
                ours: self.kind,
                theirs: ScoreKind::Fisher,
            });
        }
        let samples = store.samples(task);
        let mut clusters = members(&clusters(samples));
        // By name, so that halves do not depend on the order in which samples came.
        clusters.sort_by_key(|of| of.iter().map(|&i| samples[i].id()).min());
        if clusters.len() < 2 {
            return Err(Error::too_few_samples(store, task));
        }
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let sides: Vec<Vec<bool>> = (0..splits)
            .map(|_| first_half(&clusters, samples.len(), rng))
            .collect();
        let empty = |_| [self.clone(), self.clone()];
        let mut found: Vec<[Self; 2]> = (0..splits).map(empty).collect();
        for (at, set) in self.sets.iter().enumerate() {
            let groups = set.grouping.group_of_elements();
            let mut sizes = vec![0.0; set.values.len()];
            groups.iter().flatten().for_each(|&g| sizes[g] += 1.0);
            if self.provenance.reduction == GroupReduction::Sum {
                sizes.fill(1.0);
            }
            let zeros = vec![0.0; set.values.len()];
            let mut sums = vec![[zeros.clone(), zeros.clone()]; splits];
            let mut own = zeros;
            for (number, sample) in samples.iter().enumerate() {
                let row = store.row(task, number, &set.path, 0..groups.len())?;
                own.fill(0.0);
                for (group, &g) in groups.iter().zip(&*row) {
                    if let Some(group) = group {
                        own[*group] += f64::from(g) * f64::from(g);
                    }
                }
                let tokens = sample.tokens() as f64;
                for (sums, first) in sums.iter_mut().zip(&sides) {
                    let into = &mut sums[usize::from(!first[number])];
                    into.iter_mut()
                        .zip(&own)
                        .for_each(|(sum, c)| *sum += c / tokens);
                }
            }
            for ((sums, first), found) in sums.into_iter().zip(&sides).zip(&mut found) {
                let count = first.iter().filter(|first| **first).count();
                let counts = [count, samples.len() - count];
                for ((sums, n), found) in sums.into_iter().zip(counts).zip(found) {
                    let sums = sums.into_iter().zip(&sizes);
                    found.sets[at].values = sums.map(|(sum, size)| sum / size / n as f64).collect();
                }
            }
        }
        Ok(found)
    }
}

/// Whether each sample is in the first half: clusters in random order, as long as each brings the
/// halves nearer to one size.
fn first_half(clusters: &[Vec<usize>], samples: usize, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let mut order: Vec<&Vec<usize>> = clusters.iter().collect();
    order.shuffle(rng);
    let mut first = vec![false; samples];
    let mut taken = 0;
    for cluster in &order[..order.len() - 1] {
        let more = taken + cluster.len();
        if (2 * more).abs_diff(samples) < (2 * taken).abs_diff(samples) {
            taken = more;
            cluster.iter().for_each(|&i| first[i] = true);
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_halves_and_clusters_whole() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        for n in 2..12 {
            let alone: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
            for _ in 0..20 {
                let first = first_half(&alone, n, rng);
                let count = first.iter().filter(|first| **first).count();
                assert!(count == n / 2 || count == n.div_ceil(2), "{count} of {n}");
            }
        }
        let clusters = [vec![0, 3, 4], vec![1], vec![2, 5], vec![6]];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let first = first_half(&clusters, 7, rng);
            assert!(first[0] == first[3] && first[3] == first[4] && first[2] == first[5]);
            let count = first.iter().filter(|first| **first).count();
            assert!((2..=4).contains(&count), "{first:?}");
            seen.insert(first);
        }
        assert!(seen.len() > 3);
    }
}
