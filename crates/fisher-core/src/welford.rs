//! Mean and variance over samples, in one pass, exactly mergeable.

use burn::tensor::{DType, Device, Tensor, Transaction};

use crate::{ConfidenceInterval, Distribution, Error, Result};

/// The type accumulators keep on `device`: float64 where it has it, else float32 (with a
/// compensation term).
pub fn accumulation_dtype(device: &Device) -> DType {
    if device.supports_dtype(DType::F64) {
        DType::F64
    } else {
        DType::F32
    }
}

/// A sum that is kept as `high + low`, so that the error of adding does not grow with the number
/// of terms (Knuth, TAOCP 2, 4.2.2, theorem B). `low` is absent in float64.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) high: Tensor<1>,
    pub(crate) low: Option<Tensor<1>>,
}

impl Moment {
    fn zeros(elements: usize, device: &Device, dtype: DType) -> Self {
        let zeros = Tensor::zeros([elements], (device, dtype));
        Self {
            low: (dtype != DType::F64).then(|| zeros.clone()),
            high: zeros,
        }
    }

    /// This value as `other` keeps its own.
    fn like(&self, other: &Self) -> Self {
        let dtype = other.high.dtype();
        let cast = |t: &Tensor<1>| t.clone().cast(dtype);
        match (&self.low, &other.low) {
            (Some(low), None) => Self {
                high: cast(&self.high) + cast(low),
                low: None,
            },
            (None, Some(_)) => {
                let high = cast(&self.high);
                let rest = self.high.clone() - high.clone().cast(self.high.dtype());
                Self {
                    high,
                    low: Some(rest.cast(dtype)),
                }
            }
            _ => self.clone(),
        }
    }

    fn add(&mut self, term: Tensor<1>) {
        let Some(low) = &mut self.low else {
            self.high.inplace(|high| high + term);
            return;
        };
        let high = self.high.clone();
        let sum = high.clone() + term.clone();
        let virtual_term = sum.clone() - high.clone();
        let error = (high - (sum.clone() - virtual_term.clone())) + (term - virtual_term);
        let total = low.clone() + error;
        // Renormalise, so that `high` alone is the value rounded to float32.
        self.high = sum.clone() + total.clone();
        *low = total - (self.high.clone() - sum);
    }

    /// `x - self`, row by row.
    fn residual(&self, x: Tensor<2>) -> Tensor<2> {
        let difference = x - self.high.clone().unsqueeze();
        match &self.low {
            Some(low) => difference - low.clone().unsqueeze(),
            None => difference,
        }
    }

    /// `other - self`.
    fn difference(&self, other: &Self) -> Tensor<1> {
        let difference = other.high.clone() - self.high.clone();
        match (&self.low, &other.low) {
            (Some(ours), Some(theirs)) => difference + (theirs.clone() - ours.clone()),
            _ => difference,
        }
    }

    /// The value in float64 on the host.
    fn read(&self) -> Result<Vec<f64>> {
        let mut transaction = Transaction::default().register(self.high.clone());
        if let Some(low) = &self.low {
            transaction = transaction.register(low.clone());
        }
        let parts = transaction.try_execute().map_err(|e| Error::Device {
            reason: e.to_string(),
        })?;
        let mut sum = vec![0.0; self.high.dims()[0]];
        for part in parts {
            sum.iter_mut()
                .zip(part.iter::<f64>())
                .for_each(|(sum, x)| *sum += x);
        }
        Ok(sum)
    }
}

/// Welford's mean and sum of squared deviations over samples, elementwise.
///
/// `mean = (1/n) Σ x_i`, `M2 = Σ (x_i − mean)²`, `variance = M2 / (n − 1)` (one degree of freedom
/// is spent on the mean) and `standard error = √(variance / n)`. `n` counts samples. Two
/// accumulators merge exactly, in any order: Chan, Golub & LeVeque (1983), "Algorithms for
/// computing the sample variance", equation 2.1.
///
/// Accumulation is in float64 where the device has it and in compensated float32 elsewhere: the
/// error does not grow with `n`. (Compensation needs arithmetic that is carried out as written: do
/// not enable fast-math kernel fusion on a device without float64.)
///
/// # Shapes
/// State and read-outs are `[elements]`; a batch is `[samples, elements]`.
#[derive(Debug, Clone)]
pub struct Welford {
    pub(crate) count: u64,
    pub(crate) mean: Moment,
    pub(crate) m2: Moment,
}

/// What a [`Welford`] accumulator says, on the host in float64. Undefined is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// The number of samples.
    pub count: u64,
    /// The mean; needs one sample.
    pub mean: Option<Vec<f64>>,
    /// `M2 / (n − 1)`; needs two samples.
    pub variance: Option<Vec<f64>>,
    /// `√(variance / n)`; needs two samples.
    pub standard_error: Option<Vec<f64>>,
}

impl Moments {
    /// `mean ± q · standard error` for every element; `None` for fewer than two samples.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 < level < 1`.
    pub fn confidence_interval(
        &self,
        level: f64,
        distribution: Distribution,
    ) -> Result<Option<Vec<ConfidenceInterval>>> {
        let quantile = distribution.quantile(level, self.count)?;
        let (Some(q), Some(mean), Some(error)) = (quantile, &self.mean, &self.standard_error)
        else {
            return Ok(None);
        };
        let interval = |(mean, error): (&f64, &f64)| ConfidenceInterval {
            lower: mean - q * error,
            upper: mean + q * error,
        };
        Ok(Some(mean.iter().zip(error).map(interval).collect()))
    }
}

impl Welford {
    /// An accumulator that has seen nothing, in the device's [`accumulation_dtype`].
    pub fn new(elements: usize, device: &Device) -> Self {
        Self::zeros(elements, device, accumulation_dtype(device))
    }

    /// An accumulator that has seen nothing, in compensated float32 on any device: for GPUs whose
    /// float64 is slow. Takes the same memory.
    pub fn compensated(elements: usize, device: &Device) -> Self {
        Self::zeros(elements, device, DType::F32)
    }

    fn zeros(elements: usize, device: &Device, dtype: DType) -> Self {
        Self {
            count: 0,
            mean: Moment::zeros(elements, device, dtype),
            m2: Moment::zeros(elements, device, dtype),
        }
    }

    /// Take in one sample, `[elements]`.
    ///
    /// # Panics
    /// When `x` has another number of elements.
    pub fn push(&mut self, x: Tensor<1>) {
        self.push_batch(x.unsqueeze());
    }

    /// Take in a batch of samples, `[samples, elements]`. The result does not depend on how
    /// samples are batched.
    ///
    /// # Panics
    /// When `x` has another number of elements.
    pub fn push_batch(&mut self, x: Tensor<2>) {
        let [samples, elements] = x.dims();
        assert_eq!(elements, self.elements(), "elements of a Welford");
        if samples == 0 {
            return;
        }
        let x = x.cast(self.mean.high.dtype());
        if self.count == 0 {
            // Any starting point is right; one near the data costs no digits.
            self.mean.high = x.clone().narrow(0, 0, 1).reshape([elements]);
        }
        let before = self.count as f64;
        self.count += samples as u64;
        let (batch, after) = (samples as f64, self.count as f64);

        let residual = self.mean.residual(x);
        let shift = residual.clone().mean_dim(0);
        let between = shift.clone().square().mul_scalar(before * batch / after);
        let m2 = if samples == 1 {
            between
        } else {
            (residual - shift.clone()).square().sum_dim(0) + between
        };
        self.m2.add(m2.reshape([elements]));
        self.mean
            .add(shift.mul_scalar(batch / after).reshape([elements]));
    }

    /// Take in all that another accumulator has seen, float64 or compensated.
    ///
    /// # Panics
    /// When `other` has another number of elements or is on another device.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.elements(), other.elements(), "elements of a Welford");
        if other.count == 0 {
            return;
        }
        let (mean, m2) = (other.mean.like(&self.mean), other.m2.like(&self.m2));
        if self.count == 0 {
            (self.count, self.mean, self.m2) = (other.count, mean, m2);
            return;
        }
        let (ours, theirs) = (self.count as f64, other.count as f64);
        self.count += other.count;
        let after = self.count as f64;
        let shift = self.mean.difference(&mean);
        let between = shift.clone().square().mul_scalar(ours * theirs / after);
        self.m2.add(between);
        self.m2.add(m2.high);
        if let Some(low) = m2.low {
            self.m2.add(low);
        }
        self.mean.add(shift.mul_scalar(theirs / after));
    }

    /// The number of samples, `n`.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.mean.high.dims()[0]
    }

    /// The mean, rounded to the device's accumulation type; `None` for no samples.
    pub fn mean(&self) -> Option<Tensor<1>> {
        (self.count > 0).then(|| self.mean.high.clone())
    }

    /// `M2 / (n − 1)`, rounded likewise; `None` for fewer than two samples.
    pub fn variance(&self) -> Option<Tensor<1>> {
        (self.count > 1).then(|| self.m2.high.clone().div_scalar((self.count - 1) as f64))
    }

    /// `√(variance / n)`, rounded likewise; `None` for fewer than two samples.
    pub fn standard_error(&self) -> Option<Tensor<1>> {
        self.variance()
            .map(|v| v.div_scalar(self.count as f64).sqrt())
    }

    /// `mean ± q · standard error` as tensors `(lower, upper)`; `None` for fewer than two samples.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 < level < 1`.
    pub fn confidence_interval(
        &self,
        level: f64,
        distribution: Distribution,
    ) -> Result<Option<(Tensor<1>, Tensor<1>)>> {
        let quantile = distribution.quantile(level, self.count)?;
        let (Some(q), Some(mean), Some(error)) = (quantile, self.mean(), self.standard_error())
        else {
            return Ok(None);
        };
        let half = error.mul_scalar(q);
        Ok(Some((mean.clone() - half.clone(), mean + half)))
    }

    /// Everything in float64 on the host, the compensation included.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give the values.
    pub fn read(&self) -> Result<Moments> {
        let n = self.count as f64;
        let mean = (self.count > 0).then(|| self.mean.read()).transpose()?;
        let m2 = (self.count > 1).then(|| self.m2.read()).transpose()?;
        let over = |divisor: f64| move |m2: &f64| m2 / divisor;
        let variance: Option<Vec<f64>> = m2.map(|m2| m2.iter().map(over(n - 1.0)).collect());
        let standard_error = variance
            .as_ref()
            .map(|v| v.iter().map(|v| (v / n).sqrt()).collect());
        Ok(Moments {
            count: self.count,
            mean,
            variance,
            standard_error,
        })
    }
}
