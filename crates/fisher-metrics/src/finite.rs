//! Numbers of reports: finite, or absent. JSON has no others, and writes them as `null`.

use fisher_core::ConfidenceInterval;

use crate::error::{Error, Result};

/// A number that a report cannot do without.
pub(crate) fn finite(value: f64, what: &str) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::OutOfRange { what: what.into() })
}

/// A number that may be absent.
pub(crate) fn if_finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// An interval with two ends, or none.
pub(crate) fn bounded(interval: ConfidenceInterval) -> Option<ConfidenceInterval> {
    let ends = [interval.lower, interval.upper];
    ends.iter().all(|end| end.is_finite()).then_some(interval)
}
