//! Samples that depend on each other: means and errors that take clusters whole.

use std::collections::HashMap;

use crate::moments::MeanEstimate;
use crate::sample::SampleRecord;

/// The number of each sample's cluster, from 0 in the order in which they come. A sample without a
/// cluster is one of its own.
pub fn clusters_of<'a>(samples: impl IntoIterator<Item = &'a SampleRecord>) -> Vec<usize> {
    cluster_numbers(samples.into_iter().map(|sample| sample.cluster.as_deref()))
}

/// The same from the names of clusters.
pub fn cluster_numbers<'a>(names: impl IntoIterator<Item = Option<&'a str>>) -> Vec<usize> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut next = 0;
    let mut fresh = || {
        next += 1;
        next - 1
    };
    let number = |name| match name {
        Some(name) => *known.entry(name).or_insert_with(&mut fresh),
        None => fresh(),
    };
    names.into_iter().map(number).collect()
}

/// The mean of one value a sample, such as the change of its loss, with the error of whole clusters:
/// for an interval by Student's t ([`MeanEstimate::interval`]).
///
/// # Panics
/// When there is not one cluster for each value.
pub fn clustered_mean(values: &[f64], clusters: &[usize]) -> MeanEstimate {
    let error = clustered_errors(values, 1, clusters);
    MeanEstimate {
        mean: values.iter().sum::<f64>() / values.len() as f64,
        units: clusters.iter().max().map_or(0, |last| *last as u64 + 1),
        standard_error: error.map(|errors| errors[0]),
        effective: None,
        skewness: None,
    }
}

/// The standard error of the mean of each column of `rows`, `[samples, columns]`:
/// `√(G/(G−1) · Σ_c (Σ_(i∈c) (x_i − x̄))²) / n` over `G` clusters, which is that of independent samples
/// where every sample is a cluster of its own. `None` for fewer than two clusters.
///
/// # Panics
/// When there is not one cluster for each row.
pub fn clustered_errors(rows: &[f64], columns: usize, clusters: &[usize]) -> Option<Vec<f64>> {
    let samples = clusters.len();
    assert_eq!(rows.len(), samples * columns, "a cluster for each row");
    let count = clusters.iter().max().map_or(0, |last| last + 1);
    if count < 2 {
        return None;
    }
    let mean = column_means(rows, columns);
    let mut sums = vec![0.0; count * columns];
    for (row, &cluster) in rows.chunks(columns.max(1)).zip(clusters) {
        let sums = &mut sums[cluster * columns..][..columns];
        for ((sum, x), mean) in sums.iter_mut().zip(row).zip(&mean) {
            *sum += x - mean;
        }
    }
    let mut squares = vec![0.0; columns];
    for row in sums.chunks(columns.max(1)) {
        let pairs = squares.iter_mut().zip(row);
        pairs.for_each(|(square, sum)| *square += sum * sum);
    }
    let factor = count as f64 / (count - 1) as f64;
    let error = |square: f64| (factor * square).sqrt() / samples as f64;
    Some(squares.into_iter().map(error).collect())
}

/// The mean of each column of `rows`, `[samples, columns]`.
pub fn column_means(rows: &[f64], columns: usize) -> Vec<f64> {
    let samples = rows.len() / columns.max(1);
    let mut mean = vec![0.0; columns];
    for row in rows.chunks(columns.max(1)) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    mean.iter_mut().for_each(|sum| *sum /= samples as f64);
    mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singletons_have_the_usual_error_and_copies_do_not_help() {
        let values = [1.0, 4.0, 2.0, 9.0];
        let singles = clustered_errors(&values, 1, &[0, 1, 2, 3]).expect("clusters");
        let variance = values.iter().map(|x| (x - 4.0f64).powi(2)).sum::<f64>() / 3.0;
        assert!((singles[0] - (variance / 4.0).sqrt()).abs() < 1e-15);
        let twice: Vec<f64> = values.iter().flat_map(|x| [*x; 2]).collect();
        let copies = clustered_errors(&twice, 1, &[0, 0, 1, 1, 2, 2, 3, 3]).expect("clusters");
        assert!((copies[0] - singles[0]).abs() < 1e-15);
        assert_eq!(clustered_errors(&values, 1, &[0; 4]), None);
    }
}
