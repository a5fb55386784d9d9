//! The full Fisher as a matrix, and eigenvalues by Jacobi's rotations: slow, and written apart.

use fisher_core::store::GradientStore;

/// A symmetric matrix.
#[derive(Clone)]
pub(crate) struct Dense {
    pub(crate) n: usize,
    pub(crate) values: Vec<f64>,
}

/// Gradients of a task over some parameters, divided by `√T`.
pub(crate) fn rows(store: &GradientStore, task: &str, paths: &[&str]) -> Vec<Vec<f64>> {
    let row = |sample: &fisher_core::sample::Sample| {
        let of = |path: &&str| {
            store
                .gradient(task, sample.id(), path)
                .expect("it")
                .to_vec()
        };
        let root = (sample.tokens() as f64).sqrt();
        let all = paths.iter().flat_map(of);
        all.map(|g| f64::from(g) / root).collect()
    };
    store.samples(task).iter().map(row).collect()
}

pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

impl Dense {
    pub(crate) fn new(n: usize, entry: impl Fn(usize, usize) -> f64) -> Self {
        let values = (0..n * n).map(|k| entry(k / n, k % n)).collect();
        Self { n, values }
    }

    /// `(1/n) Σ x xᵀ`.
    pub(crate) fn fisher(rows: &[Vec<f64>]) -> Self {
        let n = rows.len() as f64;
        Self::new(rows[0].len(), |e, f| {
            rows.iter().map(|x| x[e] * x[f]).sum::<f64>() / n
        })
    }

    pub(crate) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// `tr M N`.
    pub(crate) fn inner(&self, other: &Self) -> f64 {
        dot(&self.values, &other.values)
    }

    pub(crate) fn times(&self, v: &[f64]) -> Vec<f64> {
        self.values.chunks(self.n).map(|row| dot(row, v)).collect()
    }

    /// Eigenvalues, the largest first, and their vectors.
    pub(crate) fn eigen(&self) -> Vec<(f64, Vec<f64>)> {
        let n = self.n;
        let mut m = self.clone();
        // Rows are eigenvectors in the end.
        let mut v = Self::new(n, |i, j| f64::from(u8::from(i == j)));
        for _ in 0..60 {
            let off = |k: &usize| k / n != k % n;
            let rest: f64 = (0..n * n).filter(off).map(|k| m.values[k].powi(2)).sum();
            if rest <= 1e-32 * m.inner(&m) {
                break;
            }
            for p in 0..n {
                for q in p + 1..n {
                    if m.at(p, q) == 0.0 {
                        continue;
                    }
                    let theta = (m.at(q, q) - m.at(p, p)) / (2.0 * m.at(p, q));
                    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                    let t = if theta == 0.0 { 1.0 } else { t };
                    let c = 1.0 / t.hypot(1.0);
                    let s = t * c;
                    let turn = |x: f64, y: f64| (c * x - s * y, s * x + c * y);
                    for k in 0..n {
                        let (x, y) = turn(m.at(k, p), m.at(k, q));
                        (m.values[k * n + p], m.values[k * n + q]) = (x, y);
                    }
                    for k in 0..n {
                        let (x, y) = turn(m.at(p, k), m.at(q, k));
                        (m.values[p * n + k], m.values[q * n + k]) = (x, y);
                        let (x, y) = turn(v.at(p, k), v.at(q, k));
                        (v.values[p * n + k], v.values[q * n + k]) = (x, y);
                    }
                }
            }
        }
        let pair = |k: usize| (m.at(k, k), v.values[k * n..(k + 1) * n].to_vec());
        let mut pairs: Vec<(f64, Vec<f64>)> = (0..n).map(pair).collect();
        pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
        pairs
    }
}

#[test]
fn rotations_find_eigenvalues() {
    let m = Dense::new(6, |i, j| ((i * j + i + j) as f64 * 0.7).sin());
    for (value, vector) in m.eigen() {
        let product = m.times(&vector);
        let off = product
            .iter()
            .zip(&vector)
            .map(|(x, v)| (x - value * v).abs());
        assert!(off.fold(0.0, f64::max) < 1e-12);
        assert!((dot(&vector, &vector) - 1.0).abs() < 1e-12);
    }
}
