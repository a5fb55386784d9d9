//! Means and squared deviations of many columns, on the host in float64.

/// Welford's mean and M2 of each column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    pub(super) count: u64,
    pub(super) mean: Vec<f64>,
    pub(super) m2: Vec<f64>,
}

impl Moments {
    pub(super) fn new(columns: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; columns],
            m2: vec![0.0; columns],
        }
    }

    pub(super) fn push(&mut self, row: impl Iterator<Item = f64>) {
        self.count += 1;
        let n = self.count as f64;
        for ((mean, m2), x) in self.mean.iter_mut().zip(&mut self.m2).zip(row) {
            let before = x - *mean;
            *mean += before / n;
            *m2 += before * (x - *mean);
        }
    }

    /// Chan, Golub & LeVeque's update: as if the other's samples had come here.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let [ours, theirs] = [self.count, other.count].map(|n| n as f64);
        let all = ours + theirs;
        let pairs = self.mean.iter_mut().zip(&mut self.m2);
        for ((mean, m2), (of, m2_of)) in pairs.zip(other.mean.iter().zip(&other.m2)) {
            let apart = of - *mean;
            *mean += apart * (theirs / all);
            *m2 += m2_of + apart * apart * (ours * theirs / all);
        }
        self.count += other.count;
    }

    /// Of the mean; `None` for fewer than two samples.
    pub(super) fn errors(&self) -> Option<Vec<f64>> {
        let n = self.count as f64;
        let error = |m2: &f64| (m2 / (n - 1.0) / n).sqrt();
        (self.count > 1).then(|| self.m2.iter().map(error).collect())
    }
}
