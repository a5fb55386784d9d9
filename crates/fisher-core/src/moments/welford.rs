//! Mean and variance over samples, in one pass, exactly mergeable.

use burn::tensor::{DType, Device, Tensor};

use super::compensated::{Moment, accumulation_dtype, sum_rows};
use super::interval::{ConfidenceInterval, IntervalMethod, MeanEstimate};
#[cfg(feature = "cube")]
use crate::device::{self, Accumulators, Folded, Terms};
use crate::error::Result;
use crate::host::{self, Values, give, is_host, take};
#[cfg(feature = "cube")]
use crate::host::{Sides, is_cube};
#[cfg(feature = "cube")]
use crate::pieces::pieces;

/// Welford's mean and sum of squared deviations over samples, elementwise.
///
/// `mean = (1/n) Σ x_i`, `M2 = Σ (x_i − mean)²`, `variance = M2 / (n − 1)` (one degree of freedom
/// is spent on the mean) and `standard error = √(variance / n)`. `n` counts samples. Two
/// accumulators merge exactly, in any order: Chan, Golub & LeVeque (1983), "Algorithms for
/// computing the sample variance", equation 2.1.
///
/// Accumulation is in float64 where the device has it and in compensated float32 elsewhere: the
/// error does not grow with `n`. Compensation has two limits: it needs arithmetic that is carried
/// out as written, so no fast-math kernel fusion on a device without float64; and squares must be
/// in float32's range, so where contributions are all below 1e-19 (or above 1e19) their variance
/// reads 0 (or infinity); so it is with all devices of CubeCL, which square batches in float32. M2, which is `n − 1` times the variance, must be in range, in float64 too.
///
/// # Shapes
/// State and read-outs are `[elements]`; a batch is `[samples, elements]`.
#[derive(Debug, Clone)]
pub struct Welford {
    count: u64,
    /// Runs of elements, one after the other, so that a large parameter can be taken in run by
    /// run. Never empty.
    runs: Vec<Run>,
}

/// Samples whose M2 is summed in float32.
#[cfg(feature = "cube")]
const IN_FLOAT32: usize = 512;

/// Mean and M2 of a run of elements; no M2 where the variance is not kept.
#[derive(Debug, Clone)]
struct Run {
    mean: Moment,
    m2: Option<Moment>,
}

/// Mean and M2 of a batch, `[elements]`, from deviations: `Σ x²` less `n · mean²` would have no digits
/// left where samples hardly differ.
#[derive(Debug)]
pub(crate) struct BatchMoments {
    /// Rounded.
    pub(crate) mean: Tensor<1>,
    /// What rounding the mean lost.
    pub(crate) rest: Option<Tensor<1>>,
    /// `Σ_i (x_i − mean)²`, where a variance is kept.
    pub(crate) m2: Option<Tensor<1>>,
}

impl BatchMoments {
    /// Of samples whose contributions all are 0.
    pub(crate) fn zeros(welford: &Welford, device: &Device, dtype: DType) -> Self {
        let zeros = Tensor::zeros([welford.elements()], (device, dtype));
        Self {
            m2: welford.keeps_variance().then(|| zeros.clone()),
            rest: None,
            mean: zeros,
        }
    }

    /// Of which no variance is kept.
    pub(crate) fn without_variance(mean: Tensor<1>) -> Self {
        Self {
            mean,
            rest: None,
            m2: None,
        }
    }
}

/// What accumulators say, on the host in float64. Undefined is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleMoments {
    /// The number of samples.
    pub count: u64,
    /// The number of independent units: samples, or clusters of samples.
    pub units: u64,
    /// The mean over samples; needs one sample.
    pub mean: Option<Vec<f64>>,
    /// `M2 / (n − 1)` over samples; needs two samples.
    pub variance: Option<Vec<f64>>,
    /// The standard error of the mean: `√(variance / n)`, or of the sums of clusters; needs two units.
    pub standard_error: Option<Vec<f64>>,
    /// Kish's effective number of units, `(Σ x)² / Σ x²`, which is `n / (1 + CV²)`; 0 where all are 0.
    /// Needs two units.
    pub effective: Option<Vec<f64>>,
    /// The skewness of units, `m₃ / s³`, where a third moment is kept; 0 where they are all alike, no number
    /// where cubes are out of range (then Hall's interval is the log-effective one).
    pub skewness: Option<Vec<f64>>,
}

impl SampleMoments {
    /// From the mean and the sums of powers of deviations over `count` samples.
    pub(crate) fn of(
        count: u64,
        mean: Vec<f64>,
        m2: Option<Vec<f64>>,
        m3: Option<Vec<f64>>,
    ) -> Self {
        let n = count as f64;
        let m2 = m2.filter(|_| count > 1);
        let of_m2 = |f: &dyn Fn(f64) -> f64| {
            let m2 = m2.as_ref()?;
            Some(m2.iter().map(|m2| f(*m2)).collect::<Vec<f64>>())
        };
        let effective = m2.as_ref().map(|m2| {
            let pairs = mean.iter().zip(m2);
            pairs.map(|(mean, m2)| effective(n, *mean, *m2)).collect()
        });
        let skewness = m2.as_ref().zip(m3).map(|(m2, m3)| {
            let pairs = m3.iter().zip(m2);
            pairs.map(|(m3, m2)| skewness(n, *m2, *m3)).collect()
        });

        Self {
            count,
            units: count,
            variance: of_m2(&|m2| m2 / (n - 1.0)),
            standard_error: of_m2(&|m2| (m2 / (n - 1.0) / n).sqrt()),
            effective,
            skewness,
            mean: (count > 0).then_some(mean),
        }
    }

    /// One of the means; `None` for no samples.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn estimate(&self, index: usize) -> Option<MeanEstimate> {
        let at = |values: &Option<Vec<f64>>| values.as_ref().map(|values| values[index]);
        Some(MeanEstimate {
            mean: at(&self.mean)?,
            units: self.units,
            standard_error: at(&self.standard_error),
            effective: at(&self.effective),
            skewness: at(&self.skewness),
        })
    }

    /// The interval of every mean: see [`MeanEstimate::interval`].
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless `0 < level < 1`.
    pub fn confidence_intervals(
        &self,
        level: f64,
        method: IntervalMethod,
    ) -> Result<Vec<Option<ConfidenceInterval>>> {
        let means = 0..self.mean.as_ref().map_or(0, Vec::len);
        let interval = |index| match self.estimate(index) {
            Some(estimate) => estimate.interval(level, method),
            None => Ok(None),
        };
        means.map(interval).collect()
    }
}

/// Kish's effective number of samples, `(Σ x)² / Σ x² = n / (1 + M2 / (n mean²))`, from their number,
/// mean and sum of squared deviations; 0 where the mean is.
pub fn effective(n: f64, mean: f64, m2: f64) -> f64 {
    if mean == 0.0 {
        return 0.0;
    }
    let variation = (m2 / n).sqrt() / mean;
    n / (1.0 + variation * variation)
}

/// `(M3 / n) / (M2 / (n − 1))^1.5`; 0 where samples are all alike, and infinite or no number where cubes are out
/// of range.
pub(crate) fn skewness(n: f64, m2: f64, m3: f64) -> f64 {
    if m2 == 0.0 {
        return 0.0;
    }
    let deviation = (m2 / (n - 1.0)).sqrt();
    m3 / n / deviation / deviation / deviation
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
            runs: vec![Run::zeros(elements, device, dtype)],
        }
    }

    /// The same without a variance: half the memory, no error bars. For an accumulator that has
    /// seen nothing.
    ///
    /// # Panics
    /// When it has seen something.
    #[must_use]
    pub fn without_variance(mut self) -> Self {
        assert_eq!(self.count, 0, "samples seen by a Welford");
        self.runs.iter_mut().for_each(|run| run.m2 = None);
        self
    }

    /// Whether a variance is kept.
    pub fn keeps_variance(&self) -> bool {
        self.runs.iter().all(|run| run.m2.is_some())
    }

    /// Keep runs of `width` elements, the last of which may be shorter.
    ///
    /// # Panics
    /// When `width` is 0.
    pub(crate) fn split(&mut self, width: usize) {
        assert!(width > 0, "the width of a run");
        let elements = self.elements();
        let kept = self.runs.len().max(1) - 1;
        if self.runs[..kept].iter().all(|run| run.elements() == width)
            && self.runs[kept].elements() <= width
        {
            return;
        }
        let (mean, m2) = self.joined();
        let cut = |start: usize| {
            let length = width.min(elements - start);
            Run {
                mean: mean.narrow(start, length),
                m2: m2.as_ref().map(|m2| m2.narrow(start, length)),
            }
        };
        self.runs = if elements <= width {
            vec![Run { mean, m2 }]
        } else {
            (0..elements).step_by(width).map(cut).collect()
        };
    }

    pub(crate) fn from_parts(count: u64, mean: Moment, m2: Option<Moment>) -> Self {
        Self {
            count,
            runs: vec![Run { mean, m2 }],
        }
    }

    /// Mean and M2 of all elements.
    pub(crate) fn joined(&self) -> (Moment, Option<Moment>) {
        let means = self.runs.iter().map(|run| &run.mean);
        let m2s: Option<Vec<&Moment>> = self.runs.iter().map(|run| run.m2.as_ref()).collect();
        (Moment::cat(means.collect()), m2s.map(Moment::cat))
    }

    /// The same accumulator on another device, in float64 or in pairs of float32.
    pub(crate) fn on(&self, device: &Device, dtype: DType) -> Self {
        let (mean, m2) = self.joined();
        let moved = |moment: Moment| moment.on(device, dtype);
        Self::from_parts(self.count, moved(mean), m2.map(moved))
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
        if let [run] = &mut *self.runs {
            run.push(self.count, x);
        } else {
            let mut start = 0;
            for run in &mut self.runs {
                let length = run.elements();
                run.push(self.count, x.clone().narrow(1, start, length));
                start += length;
            }
        }
        self.count += samples as u64;
    }

    /// Take in run `run` of a batch; when that was done for all runs, [`Welford::advance`] counts
    /// the samples.
    pub(crate) fn push_run(&mut self, run: usize, x: Tensor<2>) {
        self.runs[run].push(self.count, x);
    }

    /// Run `run` as an accumulator of its own, while `take_in` has it. [`Welford::advance`] counts the
    /// samples.
    pub(crate) fn on_run<T>(&mut self, run: usize, take_in: impl FnOnce(&mut Self) -> T) -> T {
        let mut alone = Self {
            count: self.count,
            runs: vec![self.runs.remove(run)],
        };
        let taken = take_in(&mut alone);
        let (mean, m2) = alone.joined();
        self.runs.insert(run, Run { mean, m2 });
        taken
    }

    /// Mean and M2 in the host's memory, for a float64 accumulator there. [`Welford::advance`] counts
    /// the samples.
    pub(crate) fn on_host<T>(&mut self, push: impl FnOnce(host::Moments) -> T) -> Result<T> {
        self.split(usize::MAX);
        let Run { mean, m2 } = &mut self.runs[0];
        let device = mean.high.device();
        // Take the values out of the tensors and put them back: nothing is copied.
        let out = |moment: &mut Moment| {
            take::<f64, 1>(std::mem::replace(
                &mut moment.high,
                Tensor::empty([0], &device),
            ))
        };
        let mut of_mean = out(mean)?;
        let mut of_m2 = m2.as_mut().map(out).transpose()?;
        let done = push(host::Moments {
            before: self.count,
            mean: &mut of_mean,
            m2: of_m2.as_deref_mut(),
        });
        let back = |values: Vec<f64>| {
            let elements = values.len();
            give(values, [elements], &device)
        };
        mean.high = back(of_mean);
        if let (Some(m2), Some(values)) = (m2, of_m2) {
            m2.high = back(values);
        }
        Ok(done)
    }

    /// Take in `terms` of `samples` samples by the device's kernel, and sum them over `sides`; `None`,
    /// with nothing done, where it does not. [`Welford::advance`] counts the samples.
    #[cfg(feature = "cube")]
    pub(crate) fn on_cube(
        &mut self,
        samples: usize,
        terms: &Terms,
        sides: Sides,
    ) -> Option<Folded> {
        self.split(usize::MAX);
        let before = self.count;
        self.runs[0].on_cube(before, samples, terms, sides)
    }

    /// Take in `samples` contributions of all elements by what they come to.
    pub(crate) fn push_moments(&mut self, samples: usize, moments: &BatchMoments) {
        #[cfg(feature = "cube")]
        if let (None, None) = (&moments.rest, &moments.m2)
            && is_cube(&moments.mean.device())
            && let one = moments.mean.clone().unsqueeze::<2>()
            && self
                .on_cube(samples, &Terms::Contributions(&one), Sides::NONE)
                .is_some()
        {
            self.count += samples as u64;
            return;
        }
        let mut start = 0;
        for run in &mut self.runs {
            let length = run.elements();
            let cut = |t: &Tensor<1>| t.clone().narrow(0, start, length);
            let mut mean = run.moment(cut(&moments.mean));
            if let Some(rest) = &moments.rest {
                mean.add(cut(rest).cast(mean.high.dtype()));
            }
            let m2 = run.m2.as_ref().zip(moments.m2.as_ref());
            let m2 = m2.map(|(_, m2)| run.moment(cut(m2)));
            run.absorb(self.count, samples as u64, mean, m2);
            start += length;
        }
        self.count += samples as u64;
    }

    /// Count samples whose every run was pushed.
    pub(crate) fn advance(&mut self, samples: usize) {
        self.count += samples as u64;
    }

    /// Take in all that another accumulator has seen, float64 or compensated.
    ///
    /// # Panics
    /// When `other` has another number of elements, is on another device, or only one of the two keeps
    /// a variance.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.elements(), other.elements(), "elements of a Welford");
        let variances = [self, other].map(Self::keeps_variance);
        assert_eq!(variances[0], variances[1], "variances of a Welford");
        if other.count == 0 {
            return;
        }
        let mut other = other.clone();
        other.split(self.runs[0].elements().max(1));
        for (ours, theirs) in self.runs.iter_mut().zip(&other.runs) {
            let mean = theirs.mean.like(&ours.mean);
            let m2 = theirs.m2.as_ref().map(|m2| m2.like(&ours.mean));
            ours.absorb(self.count, other.count, mean, m2);
        }
        self.count += other.count;
    }

    /// The type that is kept, and whether in pairs.
    pub(crate) fn dtype(&self) -> (DType, bool) {
        let mean = &self.runs[0].mean;
        (mean.high.dtype(), mean.low.is_some())
    }

    /// The number of samples, `n`.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        self.runs.iter().map(Run::elements).sum()
    }

    /// The mean, rounded to the device's accumulation type; `None` for no samples.
    pub fn mean(&self) -> Option<Tensor<1>> {
        (self.count > 0).then(|| self.joined().0.high)
    }

    /// `M2 / (n − 1)`, rounded likewise; `None` for fewer than two samples, or when no variance is
    /// kept.
    pub fn variance(&self) -> Option<Tensor<1>> {
        let m2 = self.joined().1.filter(|_| self.count > 1)?;
        Some(m2.high.div_scalar((self.count - 1) as f64))
    }

    /// `√(variance / n)`, rounded likewise; `None` for fewer than two samples.
    pub fn standard_error(&self) -> Option<Tensor<1>> {
        self.variance()
            .map(|v| v.div_scalar(self.count as f64).sqrt())
    }

    /// Everything in float64 on the host, the compensation included.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the device does not give the values.
    pub fn read(&self) -> Result<SampleMoments> {
        let (mean, m2) = self.joined();
        let m2 = m2.map(|m2| m2.read()).transpose()?;
        Ok(SampleMoments::of(self.count, mean.read()?, m2, None))
    }
}

impl Welford {
    /// The mean in float64 on the host, the compensation included: of [`Welford::read`] that alone, in a
    /// fifth of its memory. `None` for no samples.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the device does not give the values.
    pub fn read_mean(&self) -> Result<Option<Vec<f64>>> {
        if self.count == 0 {
            return Ok(None);
        }
        self.joined().0.read().map(Some)
    }

    /// M2, likewise; `None` where no variance is kept.
    ///
    /// # Errors
    /// As [`Welford::read_mean`].
    pub fn read_m2(&self) -> Result<Option<Vec<f64>>> {
        self.joined().1.map(|m2| m2.read()).transpose()
    }
}

impl Run {
    #[cfg(feature = "cube")]
    fn on_cube(
        &mut self,
        before: u64,
        samples: usize,
        terms: &Terms,
        sides: Sides,
    ) -> Option<Folded> {
        let accumulators = Accumulators {
            before,
            added: samples as u64,
            mean: self.mean.parts(),
            m2: self.m2.as_mut().map_or([None, None], Moment::parts),
        };
        device::fold(terms, Some(accumulators), sides)
    }

    fn zeros(elements: usize, device: &Device, dtype: DType) -> Self {
        Self {
            mean: Moment::zeros(elements, device, dtype),
            m2: Some(Moment::zeros(elements, device, dtype)),
        }
    }

    fn elements(&self) -> usize {
        self.mean.high.dims()[0]
    }

    fn moment(&self, value: Tensor<1>) -> Moment {
        Moment {
            low: self.mean.low.as_ref().map(Tensor::zeros_like),
            high: value.cast(self.mean.high.dtype()),
        }
    }

    /// Take in a batch after `before` samples.
    fn push(&mut self, before: u64, x: Tensor<2>) {
        let [samples, elements] = x.dims();
        assert_eq!(elements, self.elements(), "elements of a run");
        #[cfg(feature = "cube")]
        if is_cube(&x.device()) && samples > IN_FLOAT32 {
            for range in pieces(samples, IN_FLOAT32) {
                let part = x.clone().narrow(0, range.start, range.len());
                self.push(before + range.start as u64, part);
            }
            return;
        }
        #[cfg(feature = "cube")]
        if is_cube(&x.device())
            && self
                .on_cube(before, samples, &Terms::Contributions(&x), Sides::NONE)
                .is_some()
        {
            return;
        }
        let x = x.cast(self.mean.high.dtype());
        if samples == 1 {
            let mean = self.moment(x.reshape([elements]));
            let m2 = self.m2.as_ref().map(Moment::zeros_like);
            self.absorb(before, 1, mean, m2);
            return;
        }
        // The batch's own moments: deviations from a value amid the batch lose no digits.
        let device = x.device();
        if x.dtype() == DType::F64
            && is_host(&device)
            && let Ok(values) = Values::<f64>::of(x.clone())
        {
            let (mean, m2) = host::moments(&values, elements, self.m2.is_some());
            let moment = |values| self.moment(give(values, [elements], &device));
            let (mean, m2) = (moment(mean), m2.map(moment));
            self.absorb(before, samples as u64, mean, m2);
            return;
        }
        let divisor = samples as f64;
        let pivot = sum_rows(x.clone()).div_scalar(divisor);
        let deviation = x - pivot.clone();
        let rest = sum_rows(deviation.clone()).div_scalar(divisor);
        let m2 = self.m2.is_some().then(|| {
            let m2 = sum_rows((deviation - rest.clone()).square());
            self.moment(m2.reshape([elements]))
        });
        let mut mean = self.moment(pivot.reshape([elements]));
        mean.add(rest.reshape([elements]));
        self.absorb(before, samples as u64, mean, m2);
    }

    /// Take in, after `before` samples, `count` of this mean and M2.
    fn absorb(
        &mut self,
        mut before: u64,
        mut count: u64,
        mut mean: Moment,
        mut m2: Option<Moment>,
    ) {
        // The mean moves from the side of more samples, so by the smaller step.
        if count > before {
            std::mem::swap(&mut before, &mut count);
            std::mem::swap(&mut self.mean, &mut mean);
            if m2.is_some() {
                std::mem::swap(&mut self.m2, &mut m2);
            }
        }
        if count == 0 {
            return;
        }
        let (before, added) = (before as f64, count as f64);
        let after = before + added;
        let step = mean.minus(&self.mean);
        if let (Some(ours), Some(theirs)) = (&mut self.m2, m2) {
            // Multiplied before it is squared, so that a step whose square alone is out of range counts.
            let share = before * (added / after);
            ours.add(step.high.clone().mul_scalar(share) * step.high.clone());
            ours.add_all(theirs);
        }
        self.mean.add_all(step.times(added / after));
    }
}
