//! Labels: which logits each of them belongs to, which of them count, and whether they were drawn.

use std::marker::PhantomData;

use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor, TensorData};
use fisher_core::kind::FisherKind;

use fisher_core::gradient::at_least_single;

/// The label of a position that does not count.
pub const IGNORE: i64 = -100;

/// Labels that stand at the position that predicts them: `labels[i, t]` is what `logits[i, t]`
/// should say. Nothing is shifted.
#[derive(Debug, Clone, Copy)]
pub struct Aligned;

/// Labels of a causal language model, laid out as its inputs: `logits[i, t]` should say
/// `labels[i, t + 1]`. Do not shift them before.
#[derive(Debug, Clone, Copy)]
pub struct NextToken;

/// One label a sample: those of a classifier.
#[derive(Debug, Clone, Copy)]
pub struct Class;

mod sealed {
    pub trait Sealed {}
}

/// How labels lie beside logits: [`Aligned`], [`NextToken`] or [`Class`].
pub trait Alignment: sealed::Sealed {
    /// Labels of a sample before the first that is predicted.
    #[doc(hidden)]
    const BEFORE: usize;
}

impl sealed::Sealed for Aligned {}
impl sealed::Sealed for NextToken {}
impl sealed::Sealed for Class {}

impl Alignment for Aligned {
    const BEFORE: usize = 0;
}

impl Alignment for NextToken {
    const BEFORE: usize = 1;
}

impl Alignment for Class {
    const BEFORE: usize = 0;
}

/// The labels of a batch, aligned as `A` says: [`Aligned`], [`NextToken`] or [`Class`].
///
/// A label is a class from 0, or [`IGNORE`] where none counts. Any other is an error when losses are
/// collected ([`Error::Label`](crate::Error::Label)), and makes the loss of its sample NaN.
///
/// The loss functions of [`SampleLosses`](crate::losses::SampleLosses) take tensors as well as labels: made
/// from a tensor, labels are those of the data. Others remember it, and so do their losses.
///
/// A batch that holds its labels as `Labels` can be given others by a collector that is asked for another Fisher
/// ([`Fisher`](crate::kinds::Fisher)): nothing need be drawn by hand. Where it is, as for a hook or a sketch, use `draw`
/// before the batch is collected, from a forward pass of its own with the very weights
/// that gradients are taken of, and keep them in the batch: a loss that draws anew each
/// time is another one in the batch and alone. What does not count among the labels of the data does
/// not count among those drawn. The random numbers of `draw` are the device's: seed it (`device.seed(..)`)
/// before each batch, by what the batch is, if a collection is to be resumed to the same result.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use fisher_train::labels::{Labels, NextToken};
/// use fisher_train::losses::SampleLosses;
///
/// let device = Device::flex();
/// let logits = Tensor::<3>::zeros([1, 4, 10], &device);
/// let tokens = Tensor::<2, Int>::from_data([[3, 7, 2, 0]], &device);
/// // 0 is padding here.
/// let labels = Labels::<NextToken>::from(tokens).with_pad_tokens(&[0]);
/// let losses = SampleLosses::next_token(logits.clone(), labels.clone());
/// assert_eq!(losses.tokens()?, [2]);
/// // For a Monte-Carlo Fisher, in place of the labels of the data:
/// let losses = SampleLosses::next_token(logits.clone(), labels.draw(logits));
/// assert_eq!(losses.kind(), fisher_core::kind::FisherKind::MonteCarlo);
/// # Ok::<(), fisher_train::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Labels<A> {
    /// `[samples, positions]`; one position for [`Class`].
    classes: Tensor<2, Int>,
    kind: FisherKind,
    alignment: PhantomData<A>,
}

impl From<Tensor<2, Int>> for Labels<Aligned> {
    fn from(classes: Tensor<2, Int>) -> Self {
        Self::of(classes, FisherKind::Empirical)
    }
}

impl From<Tensor<2, Int>> for Labels<NextToken> {
    fn from(classes: Tensor<2, Int>) -> Self {
        Self::of(classes, FisherKind::Empirical)
    }
}

impl From<Tensor<1, Int>> for Labels<Class> {
    fn from(classes: Tensor<1, Int>) -> Self {
        Self::of(classes.unsqueeze_dim(1), FisherKind::Empirical)
    }
}

impl<A> Labels<A> {
    fn of(classes: Tensor<2, Int>, kind: FisherKind) -> Self {
        // A byte neither counts 300 labels nor tells −100 from 156.
        let classes = match classes.dtype() {
            DType::I8 | DType::I16 | DType::U8 | DType::U16 => classes.cast(DType::I32),
            _ => classes,
        };
        Self {
            classes,
            kind,
            alignment: PhantomData,
        }
    }

    /// Do not count labels that are one of these either: `pad_tokens` of Burn's
    /// `CrossEntropyLoss`. Where padding and the end of a text are one token, neither counts then:
    /// mask padding by [`IGNORE`] instead.
    ///
    /// # Panics
    /// For drawn labels: which positions count is settled by the labels of the data, and a class
    /// that was drawn counts whichever it is.
    #[must_use]
    pub fn with_pad_tokens(self, pad_tokens: &[i64]) -> Self {
        let of_data = self.kind == FisherKind::Empirical;
        assert!(of_data, "name pad tokens before labels are drawn");
        let mask = |classes: Tensor<2, Int>, pad: &i64| {
            let padding = classes.clone().equal_scalar(*pad);
            classes.mask_fill(padding, IGNORE)
        };
        Self::of(pad_tokens.iter().fold(self.classes, mask), self.kind)
    }

    /// The labels of the sample at `index`, as [`SampleBatch::sample`](crate::batch::SampleBatch::sample)
    /// needs them.
    #[must_use]
    pub fn sample(&self, index: usize) -> Self {
        Self::of(self.classes.clone().narrow(0, index, 1), self.kind)
    }

    /// The first `count` positions of every sample, such as without the padding of a batch.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        Self::of(self.classes.clone().narrow(1, 0, count), self.kind)
    }

    /// The same labels in another place.
    pub(crate) fn with_classes(&self, classes: Tensor<2, Int>) -> Self {
        Self::of(classes, self.kind)
    }

    /// Of which Fisher the gradients of their losses are.
    pub fn kind(&self) -> FisherKind {
        self.kind
    }

    /// Classes and [`IGNORE`], `[samples, positions]`. What is made of them is no longer known to be
    /// drawn.
    pub fn tensor(&self) -> &Tensor<2, Int> {
        &self.classes
    }

    /// Labels of another Fisher, that of each prediction given in rows of `[samples, predictions]`; what comes before the
    /// first prediction stays.
    pub(crate) fn replaced_by(&self, rows: Vec<i64>, kind: FisherKind) -> Self
    where
        A: Alignment,
    {
        let [samples, positions] = self.classes.dims();
        let options = (&self.classes.device(), self.classes.dtype());
        let predictions = positions.saturating_sub(A::BEFORE);
        let rows = TensorData::new(rows, [samples, predictions]);
        let rows = Tensor::<2, Int>::from_data(rows, options);
        // Burn cuts nothing of no length.
        let classes = match positions - predictions {
            0 => rows,
            before => {
                let before = self.classes.clone().narrow(1, 0, before);
                Tensor::cat(vec![before, rows], 1)
            }
        };
        Self::of(classes, kind)
    }

    /// Each label that is a class, replaced by a draw from `softmax(logits)` at its position.
    fn replaced(classes: Tensor<2, Int>, logits: Tensor<3>) -> Tensor<2, Int> {
        let [samples, positions, count] = logits.dims();
        assert_eq!(
            classes.dims(),
            [samples, positions],
            "one label for the logits of each position"
        );
        let rows = logits.inner().reshape([samples * positions, count]);
        let drawn = draw(rows).reshape([samples, positions]);
        let classes = classes.inner();
        // A label that is out of range stays: it is no reason to draw one, and an error later.
        drawn
            .cast(classes.dtype())
            .mask_where(is_class(&classes, count).bool_not(), classes)
    }
}

impl Labels<Aligned> {
    /// Labels drawn from the model's own predictions, for a Monte-Carlo Fisher
    /// ([`FisherKind::MonteCarlo`]): that of position `t` from `softmax(logits[i, t])`.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    ///
    /// # Panics
    /// When there are not logits for each position.
    #[must_use]
    pub fn draw(&self, logits: Tensor<3>) -> Self {
        Self::of(
            Self::replaced(self.classes.clone(), logits),
            FisherKind::MonteCarlo,
        )
    }
}

impl Labels<NextToken> {
    /// Labels drawn from the model's own predictions, for a Monte-Carlo Fisher
    /// ([`FisherKind::MonteCarlo`]): that of position `t + 1` from `softmax(logits[i, t])`. The
    /// model's inputs stay those of the data, and so does the first label, which counts for nothing.
    ///
    /// # Shapes
    /// - logits: `[samples, positions, vocabulary]`
    ///
    /// # Panics
    /// When there are not logits for each position.
    #[must_use]
    pub fn draw(&self, logits: Tensor<3>) -> Self {
        let [_, positions] = self.classes.dims();
        if positions < 2 {
            return Self::of(self.classes.clone(), FisherKind::MonteCarlo);
        }
        let first = self.classes.clone().narrow(1, 0, 1).inner();
        let next = self.classes.clone().narrow(1, 1, positions - 1);
        let [_, given, _] = logits.dims();
        let logits = logits.narrow(1, 0, given - 1);
        Self::of(
            Tensor::cat(vec![first, Self::replaced(next, logits)], 1),
            FisherKind::MonteCarlo,
        )
    }
}

impl Labels<Class> {
    /// Labels drawn from the model's own predictions, for a Monte-Carlo Fisher
    /// ([`FisherKind::MonteCarlo`]): that of sample `i` from `softmax(logits[i])`.
    ///
    /// # Shapes
    /// - logits: `[samples, classes]`
    ///
    /// # Panics
    /// When there are not logits for each sample.
    #[must_use]
    pub fn draw(&self, logits: Tensor<2>) -> Self {
        let logits = logits.unsqueeze_dim(1);
        Self::of(
            Self::replaced(self.classes.clone(), logits),
            FisherKind::MonteCarlo,
        )
    }
}

/// Which labels are one of `count` classes.
pub(crate) fn is_class(labels: &Tensor<2, Int>, count: usize) -> Tensor<2, Bool> {
    let below = labels.clone().lower_scalar(count as i64);
    labels.clone().greater_equal_scalar(0).bool_and(below)
}

/// A class from `softmax(logits)` for each row, `[rows]`.
///
/// The first event of processes with the classes' probabilities as rates is of class `k` with
/// probability `p_k`; its time is `E_k / p_k`, with `E_k` exponential. (The Gumbel-max trick.) No
/// probabilities are cumulated, so none drowns in the sum of those before it.
fn draw(logits: Tensor<2>) -> Tensor<1, Int> {
    let [rows, _] = logits.dims();
    let logits = at_least_single(logits);
    let times = exponential(logits.dims(), &logits.device()).cast(logits.dtype());
    (logits - times.log()).argmax(1).reshape([rows])
}

/// Draws from the exponential distribution, in float32. Rare classes win by early times, so small
/// ones are as fine as large ones.
fn exponential(shape: [usize; 2], device: &Device) -> Tensor<2> {
    const COARSE: f32 = 4096.0;
    let uniform = || {
        let distribution = Distribution::Uniform(0.0, 1.0);
        Tensor::<2>::random(shape, distribution, (device, DType::F32))
    };
    // One draw knows some 2²³ numbers, all multiples of the smallest: 12 of its bits, and the rest
    // from another.
    let coarse = (uniform() * COARSE).floor();
    let uniform = (coarse + uniform()) / COARSE;
    let uniform = uniform.clamp(2f32.powi(-36), 1.0 - f32::EPSILON / 2.0);
    // −ln(1 − u), which is u + u²/2 + .. where 1 − u has lost its digits.
    let early = uniform.clone().lower_scalar(1.0 / 64.0);
    let u = uniform.clone();
    let series = u.clone() * (u.clone() * (u.clone() * (u / 4.0 + 1.0 / 3.0) + 0.5) + 1.0);
    let times = (-uniform + 1.0).log().neg();
    times.mask_where(early, series)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `P(E < t) = 1 − e^(−t)`, also far below the 2⁻²³ that one uniform number resolves.
    #[test]
    fn times_are_exponential_down_to_the_smallest() {
        let device = Device::flex();
        let times = exponential([1 << 11, 1 << 11], &device).into_data();
        let times: Vec<f64> = times.iter::<f64>().collect();
        let n = times.len() as f64;
        for t in [2f64, 0.5, 1.0 / 64.0, 1e-3, 1e-5] {
            let expected = n * -(-t).exp_m1();
            let found = times.iter().filter(|time| **time < t).count() as f64;
            let off = (found - expected).abs() / expected.sqrt();
            assert!(off < 5.0, "{found} of {expected} below {t}");
        }
        // Of 4 million numbers, multiples of 2⁻²³ would often be equal below 2⁻¹⁵.
        let mut early: Vec<f64> = times.into_iter().filter(|t| *t < 3e-5).collect();
        early.sort_by(f64::total_cmp);
        assert!(early.len() > 60 && early[0] > 0.0);
        let equal = early.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(equal <= 2, "{equal} of {} are equal", early.len());
    }
}
