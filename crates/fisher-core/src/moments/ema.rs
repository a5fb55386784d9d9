//! Exponential moving average.

use burn::tensor::{DType, Device, Tensor};

use crate::error::{Result, check_argument};

/// Exponential moving average without a warm-up bias.
///
/// `m ← βm + (1−β)x` from `m = 0`, read as `m / (1−βᵗ)` (Kingma & Ba 2015, algorithm 1). At
/// `t = 1` it reads exactly `x`. Units are those of what is pushed.
///
/// # Shapes
/// `[elements]`
#[derive(Debug, Clone)]
pub struct Ema {
    beta: f64,
    steps: u64,
    average: Tensor<1>,
}

impl Ema {
    /// An average that has seen nothing.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless `0 ≤ β < 1`.
    pub fn new(beta: f64, elements: usize, device: &Device) -> Result<Self> {
        Self::from_parts(beta, 0, Tensor::zeros([elements], device))
    }

    /// An average as it was saved: see [`Ema::steps`] and [`Ema::biased`].
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless `0 ≤ β < 1`.
    pub fn from_parts(beta: f64, steps: u64, biased: Tensor<1>) -> Result<Self> {
        let fits = (0.0..1.0).contains(&beta);
        check_argument(fits, "beta", "at least 0 and less than 1", beta)?;
        Ok(Self {
            beta,
            steps,
            average: biased,
        })
    }

    /// Take in one value. The average keeps the wider of the two types.
    ///
    /// # Panics
    /// When `x` has another number of elements.
    pub fn push(&mut self, x: Tensor<1>) {
        assert_eq!(x.dims(), self.average.dims(), "elements of an Ema");
        let dtype = match x.dtype() {
            DType::F64 => DType::F64,
            _ => self.average.dtype(),
        };
        let x = x.cast(dtype).mul_scalar(1.0 - self.beta);
        self.average
            .inplace(|m| m.cast(dtype).mul_scalar(self.beta) + x);
        self.steps = self.steps.saturating_add(1);
    }

    /// The average, `m / (1−βᵗ)`; `None` before the first value.
    pub fn value(&self) -> Option<Tensor<1>> {
        // 1−βᵗ without the cancellation that β near 1 would bring.
        let weight = -(self.steps as f64 * self.beta.ln()).exp_m1();
        (self.steps > 0).then(|| self.average.clone().div_scalar(weight))
    }

    /// The number of values taken in, `t`.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// `m`, before the division by `1−βᵗ`.
    pub fn biased(&self) -> &Tensor<1> {
        &self.average
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(ema: &Ema) -> f32 {
        ema.value().expect("a value").into_scalar()
    }

    #[test]
    fn the_first_value_is_read_back_not_a_hundred_times_it() {
        let device = Device::flex();
        let mut ema = Ema::new(0.99, 1, &device).expect("beta");
        assert!(ema.value().is_none());
        ema.push(Tensor::from_floats([3.0], &device));
        assert!((value(&ema) - 3.0).abs() < 1e-5);
        ema.push(Tensor::from_floats([5.0], &device));
        // (0.99 · 0.01 · 3 + 0.01 · 5) / (1 − 0.99²)
        let expected = (0.99 * 0.01 * 3.0 + 0.01 * 5.0) / (1.0 - 0.99_f64.powi(2));
        assert!((f64::from(value(&ema)) - expected).abs() < 1e-5);
    }

    /// Averages that were kept on a device without float64 go on where there is one.
    #[test]
    fn the_wider_type_is_kept() {
        let device = Device::flex();
        let single = Tensor::<1>::from_data([0.5f32], (&device, DType::F32));
        let mut ema = Ema::from_parts(0.5, 1, single.clone()).expect("beta");
        ema.push(Tensor::from_data([1.0f64 / 3.0], (&device, DType::F64)));
        assert_eq!(ema.biased().dtype(), DType::F64);
        ema.push(single);
        let average = ema.biased().clone().into_scalar::<f64>();
        assert!((average - (0.25 + 1.0 / 6.0) / 2.0 - 0.25).abs() < 1e-15);
    }

    #[test]
    fn beta_zero_is_the_last_value() {
        let device = Device::flex();
        let mut ema = Ema::new(0.0, 1, &device).expect("beta");
        for x in [1.0, 7.0] {
            ema.push(Tensor::from_floats([x], &device));
        }
        assert_eq!(value(&ema), 7.0);
    }

    #[test]
    fn beta_out_of_range_is_refused() {
        for beta in [-0.1, 1.0, f64::NAN] {
            assert!(Ema::new(beta, 1, &Device::flex()).is_err());
        }
    }
}
