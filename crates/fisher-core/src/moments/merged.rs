//! Chan's formula on values in the host's memory.

/// Mean and M2 of so many samples, elementwise; no M2 where no variance is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Merged {
    pub(crate) count: u64,
    pub(crate) mean: Vec<f64>,
    pub(crate) m2: Option<Vec<f64>>,
}

impl Merged {
    /// Of no samples.
    pub(crate) fn new(elements: usize, variance: bool) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; elements],
            m2: variance.then(|| vec![0.0; elements]),
        }
    }

    /// Take in what others have seen: as [`Welford::merge`](super::Welford::merge), operation by operation.
    pub(crate) fn merge(&mut self, mut other: Self) {
        if other.count == 0 {
            return;
        }
        let all = self.count + other.count;
        // The mean moves from the side of more samples, so by the smaller step.
        if other.count > self.count {
            std::mem::swap(self, &mut other);
        }
        if other.count > 0 {
            let (before, added, after) = (self.count as f64, other.count as f64, all as f64);
            let share = before * (added / after);
            if let (Some(ours), Some(theirs)) = (&mut self.m2, &other.m2) {
                let steps = other.mean.iter().zip(&self.mean).map(|(b, a)| b - a);
                for ((m2, more), step) in ours.iter_mut().zip(theirs).zip(steps) {
                    *m2 += step * share * step;
                    *m2 += more;
                }
            }
            for (mean, theirs) in self.mean.iter_mut().zip(&other.mean) {
                *mean += (theirs - *mean) * (added / after);
            }
        }
        self.count = all;
    }
}
