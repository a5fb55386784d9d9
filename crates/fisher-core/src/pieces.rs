//! A length in pieces.

use std::ops::Range;

/// `0..length` in ranges of `step`, the last of which may be shorter.
///
/// # Panics
/// When `step` is 0.
pub fn pieces(length: usize, step: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let starts = (0..length).step_by(step);
    starts.map(move |start| start..length.min(start + step))
}
