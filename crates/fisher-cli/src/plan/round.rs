//! Rounding to nearest, group by group.

/// Symmetric rounding to nearest with a scale for every group: `q = s · round(w / s)`, `s = max |w| / (2^(b−1) − 1)` over `group` weights
/// of one output that follow each other along the inputs (fewer where they do not divide). What many quantizers begin with, and the
/// simplest that is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Bits of a weight, at least 2.
    pub bits: u32,
    /// Weights that share a scale.
    pub group: usize,
}

impl Rounding {
    /// The rounded weights of a matrix.
    ///
    /// # Shapes
    /// - weights: `shape`, flattened; `input_axis` says which of its axes is the inputs.
    ///
    /// # Panics
    /// When the weights are not of that shape, or `group` is 0.
    pub fn of(&self, weights: &[f64], shape: [usize; 2], input_axis: usize) -> Vec<f64> {
        assert_eq!(weights.len(), shape[0] * shape[1], "weights of a matrix");
        let [inputs, outputs] = [shape[input_axis], shape[1 - input_axis]];
        let place = |output: usize, input: usize| match input_axis {
            0 => input * outputs + output,
            _ => output * inputs + input,
        };
        let largest_code = f64::from((1u32 << (self.bits - 1)) - 1);
        let mut rounded = vec![0.0; weights.len()];
        for output in 0..outputs {
            for start in (0..inputs).step_by(self.group) {
                let group = || (start..inputs.min(start + self.group)).map(|i| place(output, i));
                let largest = group().fold(0.0, |m: f64, at| m.max(weights[at].abs()));
                let scale = largest / largest_code;
                // What is all 0 stays so.
                if scale > 0.0 {
                    group().for_each(|at| rounded[at] = scale * (weights[at] / scale).round());
                }
            }
        }
        rounded
    }

    /// `(q − w)²` of every weight.
    ///
    /// # Panics
    /// As [`Rounding::of`].
    pub fn squared_errors(
        &self,
        weights: &[f64],
        shape: [usize; 2],
        input_axis: usize,
    ) -> Vec<f64> {
        let rounded = self.of(weights, shape, input_axis).into_iter();
        rounded.zip(weights).map(|(q, w)| (q - w).powi(2)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_lie_along_the_inputs_in_either_orientation() {
        // Two outputs of five inputs; groups of 2, 2 and 1.
        let weights = [[0.1, -0.7, 0.3, 0.2, 5.0], [0.0, 0.0, -1.0, 0.4, -0.02]];
        let rounding = Rounding { bits: 3, group: 2 };
        // max/3 is the scale: 0.7/3, 0.1, exact; 0, 1/3, exact.
        let third = 1.0 / 3.0;
        let expected = [[0.0, -0.7, 0.3, 0.2, 5.0], [0.0, 0.0, -1.0, third, -0.02]];
        let found = rounding.of(&weights.concat(), [2, 5], 1);
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&found, &expected.concat()), "{found:?}");
        let turned = |rows: &[[f64; 5]; 2]| -> Vec<f64> {
            (0..5).flat_map(|i| [rows[0][i], rows[1][i]]).collect()
        };
        let found = rounding.of(&turned(&weights), [5, 2], 0);
        assert!(close(&found, &turned(&expected)), "{found:?}");
    }
}
