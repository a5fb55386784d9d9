//! How many bits a stored gradient keeps.

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// The type gradients are stored in.
///
/// The two half precisions scale every row (one sample, one parameter) by a power of two first, so
/// that its largest element lies just below 2¹⁵. With `m` that element and `x` any other, what
/// comes back differs by at most
///
/// | | relative | at least |
/// |---|---|---|
/// | `Float32` | 0 | 0 |
/// | `Float16` | 2⁻¹¹ `\|x\|` | 2⁻³⁹ `\|m\|` |
/// | `BFloat16` | 2⁻⁸ `\|x\|` | 2⁻¹⁴⁸ `\|m\|` |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// As computed, four bytes an element.
    #[default]
    Float32,
    /// Scaled float16, two bytes an element: the more precise of the two.
    Float16,
    /// Scaled bfloat16, two bytes an element: the wider range within a row.
    #[serde(rename = "bfloat16")]
    BFloat16,
}

impl Precision {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::BFloat16 => 2,
        }
    }

    fn encode(self, x: f32) -> u16 {
        match self {
            Self::BFloat16 => bf16::from_f32(x).to_bits(),
            _ => f16::from_f32(x).to_bits(),
        }
    }

    fn decode(self, bits: u16) -> f32 {
        match self {
            Self::BFloat16 => bf16::from_bits(bits).to_f32(),
            _ => f16::from_bits(bits).to_f32(),
        }
    }
}

/// The largest element of a row is scaled to between half of this power of two and it.
const TOP: i16 = 15;

/// A matrix `[samples, elements]` as it is stored.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    Full(Vec<f32>),
    Half {
        precision: Precision,
        bits: Vec<u16>,
        /// Row `i` was multiplied by `2^-exponents[i]`.
        exponents: Vec<i16>,
    },
}

impl Matrix {
    /// Nothing yet of a matrix of `elements` in rows of these exponents.
    pub(super) fn empty(precision: Precision, elements: usize, exponents: &[i16]) -> Self {
        match precision {
            Precision::Float32 => Self::Full(Vec::with_capacity(elements)),
            Precision::Float16 | Precision::BFloat16 => Self::Half {
                precision,
                bits: Vec::with_capacity(elements),
                exponents: exponents.to_vec(),
            },
        }
    }

    /// Encode rows of `width` values, all finite, or a part of one row. Half precision takes the
    /// [`exponent`] of every row.
    pub(super) fn encode(
        values: &[f32],
        width: usize,
        precision: Precision,
        exponents: &[i16],
    ) -> Self {
        let mut matrix = Self::empty(precision, values.len(), exponents);
        match &mut matrix {
            Self::Full(full) => full.extend(values),
            Self::Half { bits, .. } => {
                for (row, &e) in values.chunks(width.max(1)).zip(exponents) {
                    // In float64: the power of a subnormal row is none of float32.
                    let factor = 2f64.powi(-i32::from(e));
                    let scaled = |&x: &f32| precision.encode((f64::from(x) * factor) as f32);
                    bits.extend(row.iter().map(scaled));
                }
            }
        }
        matrix
    }

    /// Add what follows in row-major order.
    pub(super) fn append(&mut self, slice: Self) {
        match (self, slice) {
            (Self::Full(values), Self::Full(more)) => values.extend(more),
            (Self::Half { bits, .. }, Self::Half { bits: more, .. }) => bits.extend(more),
            _ => unreachable!("a store has one precision"),
        }
    }

    /// Little-endian bytes, row after row.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Full(values) => {
                bytes.reserve_exact(4 * values.len());
                values.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            }
            Self::Half { bits, .. } => {
                bytes.reserve_exact(2 * bits.len());
                bits.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            }
        }
        bytes
    }

    /// Elements `range` of a row.
    pub(super) fn row(&self, row: usize, elements: usize, range: Range<usize>) -> Cow<'_, [f32]> {
        let range = row * elements + range.start..row * elements + range.end;
        match self {
            Self::Full(values) => Cow::Borrowed(&values[range]),
            Self::Half {
                precision,
                bits,
                exponents,
            } => {
                let factor = 2f64.powi(exponents[row].into());
                let decode = |&bits: &u16| (f64::from(precision.decode(bits)) * factor) as f32;
                Cow::Owned(bits[range].iter().map(decode).collect())
            }
        }
    }
}

/// A row from its little-endian bytes.
pub(super) fn from_bytes(precision: Precision, bytes: &[u8], exponent: i16) -> Vec<f32> {
    if precision == Precision::Float32 {
        let chunks = bytes.chunks_exact(4);
        return chunks
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
    }
    let factor = 2f64.powi(exponent.into());
    let bits = bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]));
    bits.map(|bits| (f64::from(precision.decode(bits)) * factor) as f32)
        .collect()
}

/// What a row is scaled by, from the size of its largest element.
pub(super) fn exponent(largest: f32) -> i16 {
    if largest > 0.0 {
        f64::from(largest).log2().floor() as i16 + 1 - TOP
    } else {
        0
    }
}

/// The exponents that there can be.
pub(super) fn exponents() -> RangeInclusive<i16> {
    exponent(f32::from_bits(1))..=exponent(f32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    fn rows() -> impl Strategy<Value = Vec<f32>> {
        let element = (-1f32..1.0, -60i32..60).prop_map(|(x, e)| x * 2f32.powi(e));
        proptest::collection::vec(element, 12)
    }

    fn back(values: &[f32], elements: usize, precision: Precision) -> Vec<f32> {
        let rows = 0..values.len() / elements;
        let largest = |row: &[f32]| exponent(row.iter().fold(0f32, |m, x| m.max(x.abs())));
        let exponents: Vec<i16> = values.chunks(elements).map(largest).collect();
        assert!(exponents.iter().all(|e| super::exponents().contains(e)));
        let matrix = Matrix::encode(values, elements, precision, &exponents);
        // Part by part it is the same.
        let mut parts = Matrix::empty(precision, values.len(), &exponents);
        for (row, exponent) in values.chunks(elements).zip(&exponents) {
            for part in row.chunks(3) {
                parts.append(Matrix::encode(part, part.len(), precision, &[*exponent]));
            }
        }
        assert_eq!(parts.bytes(), matrix.bytes());
        let read: Vec<f32> = rows
            .clone()
            .flat_map(|row| matrix.row(row, elements, 0..elements).into_owned())
            .collect();
        let bytes = matrix.bytes();
        let width = elements * precision.bytes();
        let from_bytes: Vec<f32> = rows
            .flat_map(|row| {
                let row_bytes = &bytes[row * width..(row + 1) * width];
                from_bytes(precision, row_bytes, exponents[row])
            })
            .collect();
        assert_eq!(read, from_bytes);
        read
    }

    proptest! {
        #[test]
        fn the_error_is_what_the_docs_say(values in rows()) {
            for (precision, relative, absolute) in [
                (Precision::Float32, 0.0, 0.0),
                (Precision::Float16, 2f64.powi(-11), 2f64.powi(-39)),
                (Precision::BFloat16, 2f64.powi(-8), 2f64.powi(-148)),
            ] {
                for (row, read) in values.chunks(4).zip(back(&values, 4, precision).chunks(4)) {
                    let largest = row.iter().fold(0f64, |m, &x| m.max(f64::from(x).abs()));
                    for (&x, &y) in row.iter().zip(read) {
                        let (x, y) = (f64::from(x), f64::from(y));
                        let bound = (relative * x.abs()).max(absolute * largest);
                        prop_assert!((x - y).abs() <= bound, "{precision:?}: {x:e} as {y:e}");
                    }
                }
            }
        }
    }

    /// Half precision by itself has none of these: small ones become 0, large ones infinite.
    #[rstest]
    #[case(1e-30)]
    #[case(3e-8)]
    #[case(1e5)]
    #[case(3e38)]
    fn small_and_large_gradients_survive(#[case] size: f32) {
        for precision in [Precision::Float16, Precision::BFloat16] {
            let row = [size, -0.3 * size, 0.0, 1e-3 * size];
            for (x, y) in row.iter().zip(back(&row, 4, precision)) {
                assert!((x - y).abs() <= 2f32.powi(-8) * x.abs(), "{x:e} as {y:e}");
            }
        }
    }

    /// A row that spans more than bfloat16's exponents.
    #[test]
    fn elements_far_below_the_largest_become_zero() {
        let read = back(&[3e38, 1e-10, -1e-2], 3, Precision::BFloat16);
        assert_eq!(read[1], 0.0);
        assert!((read[2] + 1e-2).abs() < 1e-4);
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        assert_eq!(back(&[0.0; 4], 2, Precision::Float16), [0.0; 4]);
    }
}
