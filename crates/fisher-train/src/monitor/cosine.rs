//! The cosine of gradients across tasks.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;
use fisher_core::Error as CoreError;
use fisher_core::gradient::{GradientSink, SampleGradient, at_least_single, unit_rows};
use fisher_core::read;
use fisher_core::sample::Sample;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How samples of one task lie to samples of another, over all pairs and every two tasks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AcrossTasks {
    /// The pairs: of samples whose gradients are not 0.
    pub pairs: usize,
    /// The mean of `cos(g_i, g_j)`.
    pub mean_cosine: f64,
    /// The share of pairs with `cos(g_i, g_j) < 0`. Of unrelated gradients it is near a half.
    pub conflict_rate: f64,
}

/// Gradients of several tasks, kept until they are compared.
#[derive(Debug)]
pub(super) struct AcrossSink {
    /// The parameters to compare.
    paths: BTreeSet<String>,
    tasks: BTreeMap<String, Vec<Batch>>,
    /// The batch that was begun, and its task.
    pending: Option<(String, Batch)>,
}

/// The gradients of a batch; without those of parameters that no loss reaches.
#[derive(Debug)]
struct Batch {
    samples: usize,
    gradients: BTreeMap<String, Scaled>,
}

/// Gradients of samples, each divided by its largest value: float32 has no squares of numbers below
/// 1e-19, and samples differ by more.
#[derive(Debug)]
struct Scaled {
    values: Tensor<2>,
    /// `[samples, 1]`
    scales: Tensor<2>,
}

impl GradientSink for AcrossSink {
    fn wants(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> fisher_core::Result<()> {
        let batch = Batch {
            samples: samples.len(),
            gradients: BTreeMap::new(),
        };
        self.pending = Some((task.to_owned(), batch));
        Ok(())
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> fisher_core::Result<()> {
        let (_, batch) = self.pending.as_mut().ok_or(CoreError::NoBatch)?;
        if !matches!(gradient, SampleGradient::Zero { .. }) {
            let (values, scales) = unit_rows(at_least_single(gradient.to_full()));
            let scaled = Scaled { values, scales };
            batch.gradients.insert(path.to_owned(), scaled);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.pending = None;
    }

    fn commit(&mut self) -> fisher_core::Result<()> {
        let (task, batch) = self.pending.take().ok_or(CoreError::NoBatch)?;
        self.tasks.entry(task).or_default().push(batch);
        Ok(())
    }
}

impl AcrossSink {
    pub(super) fn new(paths: BTreeSet<String>) -> Self {
        Self {
            paths,
            tasks: BTreeMap::new(),
            pending: None,
        }
    }

    /// All pairs across tasks; `None` where there are none.
    pub(super) fn read(&self) -> Result<Option<AcrossTasks>> {
        let tasks: Vec<&Vec<Batch>> = self.tasks.values().collect();
        let mut cosines = Vec::new();
        for (i, a) in tasks.iter().enumerate() {
            for b in &tasks[i + 1..] {
                for (a, b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
                    cosines.extend(a.cosines(b)?);
                }
            }
        }
        let pairs = cosines.len();
        let negative = cosines.iter().filter(|&&cosine| cosine < 0.0).count();
        Ok((pairs > 0).then(|| AcrossTasks {
            pairs,
            mean_cosine: cosines.iter().sum::<f64>() / pairs as f64,
            conflict_rate: negative as f64 / pairs as f64,
        }))
    }
}

impl Batch {
    /// Of every sample here with every sample there.
    fn cosines(&self, other: &Self) -> Result<Vec<f64>> {
        let (ours, theirs) = (self.norms()?, other.norms()?);
        let pairs = self.samples * other.samples;
        let mut products = vec![0.0; pairs];
        for (path, gradient) in &self.gradients {
            let Some(there) = other.gradients.get(path) else {
                continue;
            };
            let of_there = there.values.clone().transpose();
            let product = gradient.values.clone().matmul(of_there);
            let (of_path, x, y) = (read(product)?, gradient.scales()?, there.scales()?);
            let scales = x.iter().flat_map(|x| y.iter().map(move |y| x * y));
            let sums = products.iter_mut().zip(of_path).zip(scales);
            sums.for_each(|((sum, product), scale)| *sum += product * scale);
        }
        let norms = ours.iter().flat_map(|a| theirs.iter().map(move |b| a * b));
        let defined = products
            .into_iter()
            .zip(norms)
            .filter(|(_, norm)| *norm > 0.0);
        Ok(defined
            .map(|(product, norm)| (product / norm).clamp(-1.0, 1.0))
            .collect())
    }

    fn norms(&self) -> Result<Vec<f64>> {
        let mut squares = vec![0.0; self.samples];
        for gradient in self.gradients.values() {
            let squared = gradient.values.clone().square().sum_dim(1);
            let of_path = read(squared)?;
            let sums = squares.iter_mut().zip(of_path).zip(gradient.scales()?);
            sums.for_each(|((sum, square), scale)| *sum += square * scale * scale);
        }
        Ok(squares.into_iter().map(f64::sqrt).collect())
    }
}

impl Scaled {
    fn scales(&self) -> Result<Vec<f64>> {
        Ok(read(self.scales.clone())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn gradients_of_any_size_have_directions() {
        let device = Device::flex();
        let paths = ["a", "b"].map(str::to_owned);
        let mut sink = AcrossSink::new(paths.into());
        for (task, size, rows) in [
            ("one", 1e-25_f32, [[[3.0, 4.0]], [[0.0, 5.0]]]),
            ("two", 1e25, [[[3.0, -4.0]], [[5.0, 0.0]]]),
        ] {
            let samples = [Sample::new("0", 1).expect("a sample")];
            sink.begin(task, &samples).expect("a batch");
            for (path, row) in ["a", "b"].into_iter().zip(rows) {
                let gradient = Tensor::<2>::from_floats(row, &device) * size;
                let gradient = SampleGradient::full(gradient);
                sink.put(path, gradient).expect("a parameter");
            }
            sink.commit().expect("a batch");
        }
        let across = sink.read().expect("values").expect("a pair");
        // (9 − 16 + 0 + 0) / 50
        assert!((across.mean_cosine + 0.14).abs() < 1e-6, "{across:?}");
        assert_eq!((across.pairs, across.conflict_rate), (1, 1.0));
    }

    /// Beside a sample 1e30 times as large, too.
    #[test]
    fn small_samples_count_beside_large_ones() {
        let device = Device::flex();
        let mut sink = AcrossSink::new(["a".to_owned()].into());
        let samples = ["large", "small"].map(|id| Sample::new(id, 1).expect("a sample"));
        for task in ["one", "two"] {
            sink.begin(task, &samples).expect("a batch");
            let rows = Tensor::<2>::from_floats([[3e15, 4e15], [3e-15, -4e-15]], &device);
            let rows = SampleGradient::full(rows);
            sink.put("a", rows).expect("a parameter");
            sink.commit().expect("a batch");
        }
        let across = sink.read().expect("values").expect("pairs");
        // Twice 1 and twice (9 − 16) / 25.
        assert_eq!((across.pairs, across.conflict_rate), (4, 0.5));
        assert!((across.mean_cosine - 0.36).abs() < 1e-6, "{across:?}");
    }
}
