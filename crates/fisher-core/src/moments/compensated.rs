//! Sums that keep what rounding takes from them, and the type they are kept in.

use burn::tensor::{DType, Device, Tensor, TensorData, Transaction};

use crate::error::{Error, Result};

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
    pub(super) fn zeros(elements: usize, device: &Device, dtype: DType) -> Self {
        let zeros = Tensor::zeros([elements], (device, dtype));
        Self {
            low: (dtype != DType::F64).then(|| zeros.clone()),
            high: zeros,
        }
    }

    pub(super) fn zeros_like(other: &Self) -> Self {
        Self {
            high: other.high.zeros_like(),
            low: other.low.as_ref().map(Tensor::zeros_like),
        }
    }

    /// `high` and, where there is one, `low`.
    #[cfg(feature = "cube")]
    pub(super) fn parts(&mut self) -> [Option<&mut Tensor<1>>; 2] {
        [Some(&mut self.high), self.low.as_mut()]
    }

    pub(super) fn narrow(&self, start: usize, length: usize) -> Self {
        let cut = |t: &Tensor<1>| t.clone().narrow(0, start, length);
        Self {
            high: cut(&self.high),
            low: self.low.as_ref().map(cut),
        }
    }

    /// One after the other; they are all pairs or none is.
    pub(super) fn cat(moments: Vec<&Self>) -> Self {
        if let [one] = &*moments {
            return (*one).clone();
        }
        let high = moments.iter().map(|m| m.high.clone()).collect();
        let low: Vec<Tensor<1>> = moments.iter().filter_map(|m| m.low.clone()).collect();
        Self {
            high: Tensor::cat(high, 0),
            low: (!low.is_empty()).then(|| Tensor::cat(low, 0)),
        }
    }

    /// This value as `other` keeps its own.
    pub(super) fn like(&self, other: &Self) -> Self {
        self.in_type(other.high.dtype())
    }

    /// This value in float64, or as a pair in float32.
    fn in_type(&self, dtype: DType) -> Self {
        let cast = |t: &Tensor<1>| t.clone().cast(dtype);
        match (&self.low, dtype) {
            (Some(low), DType::F64) => Self {
                high: cast(&self.high) + cast(low),
                low: None,
            },
            (None, DType::F32) => {
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

    /// This value on another device, in a type that the device has.
    pub(super) fn on(&self, device: &Device, dtype: DType) -> Self {
        let moved = |t: &Tensor<1>| t.clone().to_device(device);
        // Float64 is left behind where the device may not have it, and made where it does.
        let here = match dtype {
            DType::F32 => self.in_type(dtype),
            _ => self.clone(),
        };
        let there = Self {
            high: moved(&here.high),
            low: here.low.as_ref().map(moved),
        };
        there.in_type(dtype)
    }

    pub(super) fn add(&mut self, term: Tensor<1>) {
        match &self.low {
            None => self.high.inplace(|high| high + term),
            Some(low) => {
                let (sum, error) = two_sum(self.high.clone(), term);
                let total = low.clone() + error;
                // Renormalize, so that `high` alone is the value rounded to float32.
                let high = sum.clone() + total.clone();
                self.low = Some(total - (high.clone() - sum));
                self.high = high;
            }
        }
    }

    pub(super) fn add_all(&mut self, terms: Self) {
        self.add(terms.high);
        if let Some(low) = terms.low {
            self.add(low);
        }
    }

    /// `self - other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let Some(low) = &self.low else {
            return Self {
                high: self.high.clone() - other.high.clone(),
                low: None,
            };
        };
        let (high, error) = two_sum(self.high.clone(), other.high.clone().neg());
        let mut difference = Self {
            high,
            low: Some(error),
        };
        difference.add(low.clone());
        if let Some(low) = &other.low {
            difference.add(low.clone().neg());
        }
        difference
    }

    /// `self · factor`, to twice float32's digits where the value is a pair.
    pub(super) fn times(&self, factor: f64) -> Self {
        let Some(low) = &self.low else {
            return Self {
                high: self.high.clone().mul_scalar(factor),
                low: None,
            };
        };
        // Products of halves of 12 bits are exact in float32 (Dekker 1971).
        let split = self.high.clone().mul_scalar(SPLIT);
        let front = split.clone() - (split - self.high.clone());
        let back = self.high.clone() - front.clone();
        let factor_front = f64::from(truncated(factor as f32));
        let factor_back = factor - factor_front;
        Self {
            high: front.clone().mul_scalar(factor_front),
            low: Some(
                back.mul_scalar(factor)
                    + front.mul_scalar(factor_back)
                    + low.clone().mul_scalar(factor),
            ),
        }
    }

    /// The value in float64 on the host.
    pub(super) fn read(&self) -> Result<Vec<f64>> {
        let mut transaction = Transaction::default().register(self.high.clone());
        if let Some(low) = &self.low {
            transaction = transaction.register(low.clone());
        }
        let parts = transaction.try_execute().map_err(Error::device)?;
        let mut sum = vec![0.0; self.high.dims()[0]];
        for part in parts {
            sum.iter_mut()
                .zip(part.iter::<f64>())
                .for_each(|(sum, x)| *sum += x);
        }
        Ok(sum)
    }
}

/// On `device`, in `dtype`: a pair in float32.
pub(crate) fn to_device(
    high: TensorData,
    low: Option<TensorData>,
    device: &Device,
    dtype: DType,
) -> Moment {
    let tensor = |data: TensorData| {
        let dtype = data.dtype();
        Tensor::from_data(data, (device, dtype))
    };
    let shape = [high.num_elements()];
    match (low, dtype) {
        (Some(low), DType::F64) => {
            let sum = high.iter::<f64>().zip(low.iter::<f64>());
            let sum: Vec<f64> = sum.map(|(high, low)| high + low).collect();
            Moment {
                high: tensor(TensorData::new(sum, shape)),
                low: None,
            }
        }
        (None, DType::F32) => {
            let rounded: Vec<f32> = high.iter::<f64>().map(|v| v as f32).collect();
            let rest = high.iter::<f64>().zip(&rounded);
            let rest: Vec<f32> = rest.map(|(v, &r)| (v - f64::from(r)) as f32).collect();
            Moment {
                high: tensor(TensorData::new(rounded, shape)),
                low: Some(tensor(TensorData::new(rest, shape))),
            }
        }
        (low, _) => Moment {
            high: tensor(high),
            low: low.map(tensor),
        },
    }
}

/// `a + b` rounded, and what the rounding lost.
fn two_sum(a: Tensor<1>, b: Tensor<1>) -> (Tensor<1>, Tensor<1>) {
    let sum = a.clone() + b.clone();
    let b_rounded = sum.clone() - a.clone();
    let a_rounded = sum.clone() - b_rounded.clone();
    (sum, (a - a_rounded) + (b - b_rounded))
}

/// The sum over rows, `[1, elements]`. In float32 by halves: its error grows with the logarithm of
/// the number of rows, where adding up small rows to a large one would lose them.
pub(super) fn sum_rows(mut x: Tensor<2>) -> Tensor<2> {
    if x.dtype() == DType::F64 {
        return x.sum_dim(0);
    }
    while x.dims()[0] > 1 {
        let rows = x.dims()[0];
        let half = rows / 2;
        let sums = x.clone().narrow(0, 0, half) + x.clone().narrow(0, half, half);
        x = match rows % 2 {
            0 => sums,
            _ => Tensor::cat(vec![sums, x.narrow(0, rows - 1, 1)], 0),
        };
    }
    x
}

/// 2¹² + 1 splits the 24 bits of a float32 in two.
const SPLIT: f64 = 4097.0;

/// The first 12 bits of a float32.
fn truncated(x: f32) -> f32 {
    f32::from_bits(x.to_bits() & !0xfff)
}
