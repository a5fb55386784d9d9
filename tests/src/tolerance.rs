//! Every tolerance of the tests, with its reason.

/// Golden numbers, relative: float32 gradients squared and summed over up to a few hundred
/// elements, against float64.
pub const GOLDEN: f64 = 1e-5;

/// Golden p- and q-values, absolute: they count, and only their division rounds.
pub const P_VALUE: f64 = 1e-12;

/// Accumulation of 1e6 samples, relative: what the accumulators promise on every device.
pub const ACCUMULATION: f64 = 1e-6;

/// Different splits and orders of the same float32 samples, relative to the largest element:
/// rounding of sums, in float64 or compensated float32.
pub const REORDERED: f64 = 2e-6;

/// One backward pass against another on float32 activations, relative to the largest element.
pub const BACKWARD: f64 = 2e-5;

/// Statistics by taps against the loop's, relative: squares of float32 gradients that were summed in
/// another order, and fourth powers in variances.
pub const TAPS: f64 = 2e-4;

/// Sums over positions and samples of float32 products against float64, relative to the element or a
/// hundredth of the largest: positions that cancel leave fewer digits.
pub const PRODUCTS: f64 = 2e-5;

/// Their variance where contributions vary by a hundredth of themselves, or positions cancel but for a
/// thousandth: digits are lost there.
pub const HARDLY_VARYING: f64 = 2e-3;

/// The variance of float32 contributions that differ by `cv` of themselves, relative: each is rounded
/// to 24 bits of itself, in gradient and square, which beside the deviation is 1e-7 / `cv`.
pub fn rounded_variance(cv: f64) -> f64 {
    1e-3 + 3e-7 / cv
}

/// The gradient noise scale, relative: sums of float32 gradients against float64 ones.
pub const DEFINITION: f64 = 1e-5;

/// Central differences of a float32 loss, relative to the largest element: the loss has seven
/// digits, half of them lost in the difference.
pub const FINITE_DIFFERENCE: f64 = 2e-2;

/// The Fisher of a model in half precision against the same in float32, relative, over all parameters: weights
/// are rounded to eight or eleven bits, and so is every step from there to the squares.
pub const HALF: f64 = 0.1;

/// Asserts that `found` is `expected` within `relative`, elementwise, or within that share of
/// a `floor` of the largest expected element for elements far below it.
///
/// # Panics
/// When it is not.
pub fn assert_close(name: &str, found: &[f64], expected: &[f64], relative: f64, floor: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: length");
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let bound = relative * e.abs().max(floor * largest);
        assert!(
            (f - e).abs() <= bound,
            "{name}[{i}]: {f:e} against {e:e}, off by {:e} of {bound:e}",
            (f - e).abs()
        );
    }
}
