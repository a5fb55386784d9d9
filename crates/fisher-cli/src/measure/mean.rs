//! Means over samples.

use fisher_core::clusters::clustered_mean;
use fisher_core::moments::IntervalMethod;

use super::outcome::Result;

/// The mean of a number of each sample, and its 95 % interval by Student's t over the samples' clusters;
/// `None` for fewer than two.
///
/// # Errors
/// As the library's.
pub(crate) fn mean_with_interval(
    values: &[f64],
    clusters: &[usize],
) -> Result<(f64, Option<[f64; 2]>)> {
    let estimate = clustered_mean(values, clusters);
    let interval = estimate.interval(0.95, IntervalMethod::StudentT)?;
    Ok((estimate.mean, interval.map(|of| [of.lower, of.upper])))
}
