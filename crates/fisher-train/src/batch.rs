//! The samples of a batch, and a model that gives the loss of each.

use std::collections::HashMap;

use burn::backend::DispatchTensor;
use burn::backend::capture::TensorId;
use burn::module::Module;
use burn::tensor::kind::Autodiff;
use burn::tensor::{Device, Tensor};
use fisher_core::sample::Sample;

use crate::error::{Error, Result};
use crate::labels::{Alignment, Labels};
use crate::losses::SampleLosses;
use crate::placeholder::{id, placeholder};
use crate::predictions::{Replacement, Values};
use crate::targets::Targets;

/// A batch that knows its samples and can give each of them by itself.
pub trait SampleBatch: Sized {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of the sample at `index`: free text, unique within a task, so that shards can be merged and pairs
    /// of samples reported by name. Samples without one are numbered in the order in which they come.
    fn id(&self, index: usize) -> Option<String> {
        let _ = index;
        None
    }

    /// What the sample at `index` shares with others that it may depend on: its document, template or
    /// user. See [`Sample::with_cluster`](fisher_core::sample::Sample::with_cluster).
    fn cluster(&self, index: usize) -> Option<String> {
        let _ = index;
        None
    }

    /// The batch with everything in it passed through `mapper`: tensors by [`SampleMapper::tensor`], values
    /// on the host by [`SampleMapper::list`], what all samples share by [`SampleMapper::shared`].
    ///
    /// This is how a batch is cut to a sample, and how it is carried to where the model is traced:
    /// [`sample_loss`](crate::sample_loss) writes it.
    #[must_use]
    fn map_samples(&self, mapper: &mut SampleMapper) -> Self;

    /// The batch that holds only the sample at `index`, which is less than their number.
    ///
    /// Write it yourself where it is more than a cut along the first axis of every tensor: where padding is left out
    /// ([`SampleMapper::cut`] and go on from there), or where samples are packed on one axis, which goes by the loop.
    #[must_use]
    fn sample(&self, index: usize) -> Self {
        SampleMapper::cut(self, index)
    }
}

/// Implements [`SampleBatch`] for a struct and [`SampleLoss`] for a model.
///
/// Of the struct's fields name the tensors, whose first axis is the samples, and after a semicolon the samples' ids,
/// if they have some, and other lists that have an entry a sample. Without the fields it is [`SampleLoss`] alone, for another model of the
/// same batches. What is more than that is written as the two traits.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::Linear;
/// use burn::tensor::{Int, Tensor};
/// use fisher_train::sample_loss;
/// use fisher_train::losses::SampleLosses;
///
/// #[derive(Clone)]
/// struct Digits {
///     images: Tensor<2>,
///     targets: Tensor<1, Int>,
/// }
///
/// #[derive(Module, Debug)]
/// struct Model {
///     linear: Linear,
/// }
///
/// sample_loss!(Model, Digits { images, targets }, |model, batch| {
///     let logits = model.linear.forward(batch.images.clone());
///     SampleLosses::classification(logits, batch.targets.clone())
/// });
/// ```
#[macro_export]
macro_rules! sample_loss {
    (
        $model:ty,
        $batch:ident { $($tensor:ident),+ ; $ids:ident $(, $list:ident)* },
        |$this:ident, $samples:ident| $losses:expr
    ) => {
        impl $crate::batch::SampleBatch for $batch {
            fn len(&self) -> usize {
                self.$ids.len()
            }

            fn id(&self, index: usize) -> Option<String> {
                Some(self.$ids[index].clone())
            }

            fn map_samples(&self, mapper: &mut $crate::batch::SampleMapper) -> Self {
                Self {
                    $($tensor: mapper.tensor(&self.$tensor),)+
                    $ids: mapper.list(&self.$ids),
                    $($list: mapper.list(&self.$list),)*
                }
            }
        }

        $crate::sample_loss!($model, $batch, |$this, $samples| $losses);
    };
    (
        $model:ty,
        $batch:ident { $first:ident $(, $tensor:ident)* },
        |$this:ident, $samples:ident| $losses:expr
    ) => {
        impl $crate::batch::SampleBatch for $batch {
            fn len(&self) -> usize {
                self.$first.dims()[0]
            }

            fn map_samples(&self, mapper: &mut $crate::batch::SampleMapper) -> Self {
                Self {
                    $first: mapper.tensor(&self.$first),
                    $($tensor: mapper.tensor(&self.$tensor),)*
                }
            }
        }

        $crate::sample_loss!($model, $batch, |$this, $samples| $losses);
    };
    ($model:ty, $batch:ident, |$this:ident, $samples:ident| $losses:expr) => {
        impl $crate::batch::SampleLoss for $model {
            type Batch = $batch;

            fn sample_losses(&self, batch: &$batch) -> $crate::losses::SampleLosses {
                let ($this, $samples) = (self, batch);
                $losses
            }
        }
    };
}

/// The ids of a batch's samples; those without one are numbered from `first` on.
pub(crate) fn ids<B: SampleBatch>(batch: &B, first: usize) -> Vec<String> {
    let id = |index| {
        batch
            .id(index)
            .unwrap_or_else(|| (first + index).to_string())
    };
    (0..batch.len()).map(id).collect()
}

/// The sample at `index` of a batch with its cluster.
pub(crate) fn clustered<B: SampleBatch>(batch: &B, index: usize, sample: Sample) -> Sample {
    match batch.cluster(index) {
        Some(cluster) => sample.with_cluster(cluster),
        None => sample,
    }
}

/// What [`SampleBatch::map_samples`] passes the parts of a batch through.
#[derive(Debug)]
pub struct SampleMapper(Task);

#[derive(Debug)]
enum Task {
    /// To one sample.
    Cut(usize),
    Carry(Box<Carrier>),
    /// Other labels, and how many labels were replaced.
    Replace(Replacement, usize),
}

/// Puts placeholders on a capture device in the place of tensors.
#[derive(Debug)]
struct Carrier {
    device: Device,
    samples: usize,
    carried: Carried,
    odd: Option<String>,
}

/// What has been carried.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// What placeholders stand for.
    pub(crate) bound: HashMap<TensorId, DispatchTensor>,
    /// Those with samples on the first axis.
    pub(crate) batch: Vec<TensorId>,
}

impl SampleMapper {
    /// The sample at `index` of a batch, as [`SampleBatch::map_samples`] cuts it: for a
    /// [`SampleBatch::sample`] of one's own that goes on from there.
    pub fn cut<B: SampleBatch>(batch: &B, index: usize) -> B {
        batch.map_samples(&mut Self(Task::Cut(index)))
    }

    /// The batch with other labels, or targets, in the place of its own: what it holds as [`Labels`] or
    /// [`Targets`].
    ///
    /// # Errors
    /// [`Error::Labels`] when it holds none, or more than one.
    pub fn replace<B: SampleBatch>(batch: &B, labels: Replacement) -> Result<B> {
        let mut mapper = Self(Task::Replace(labels, 0));
        let batch = batch.map_samples(&mut mapper);
        match mapper.0 {
            Task::Replace(_, 1) => Ok(batch),
            Task::Replace(_, found) => Err(Error::Labels { found }),
            Task::Cut(_) | Task::Carry(_) => Ok(batch),
        }
    }

    /// A tensor whose first axis is the samples, or [`Labels`] or [`Targets`] made of one.
    pub fn tensor<T: SampleRows>(&mut self, tensor: &T) -> T {
        tensor.mapped(self)
    }

    fn rows<const D: usize, K: Autodiff>(&mut self, tensor: &Tensor<D, K>) -> Tensor<D, K> {
        match &mut self.0 {
            Task::Cut(index) => tensor.clone().narrow(0, *index, 1),
            Task::Carry(carrier) => {
                let rows = tensor.dims()[0];
                if rows != carrier.samples {
                    let (samples, shape) = (carrier.samples, tensor.dims());
                    let odd =
                        format!("a tensor of shape {shape:?} in a batch of {samples} samples");
                    carrier.odd.get_or_insert(odd);
                }
                let placeholder = carrier.stand_in(tensor);
                carrier.carried.batch.extend(id(placeholder.clone()));
                placeholder
            }
            Task::Replace(..) => tensor.clone(),
        }
    }

    /// Values on the host, one a sample.
    pub fn list<T: Clone>(&mut self, list: &[T]) -> Vec<T> {
        match &self.0 {
            Task::Cut(index) => vec![list[*index].clone()],
            Task::Carry(_) | Task::Replace(..) => list.to_vec(),
        }
    }

    /// A tensor that is the same for all samples.
    pub fn shared<const D: usize, K: Autodiff>(&mut self, tensor: &Tensor<D, K>) -> Tensor<D, K> {
        match &mut self.0 {
            Task::Cut(_) | Task::Replace(..) => tensor.clone(),
            Task::Carry(carrier) => carrier.stand_in(tensor),
        }
    }

    pub(crate) fn carrier(device: Device, samples: usize) -> Self {
        Self(Task::Carry(Box::new(Carrier {
            device,
            samples,
            carried: Carried::default(),
            odd: None,
        })))
    }

    /// What was carried; or what could not be.
    pub(crate) fn carried(self) -> Result<Carried, String> {
        match self.0 {
            Task::Carry(carrier) => match carrier.odd {
                Some(odd) => Err(odd),
                None => Ok(carrier.carried),
            },
            Task::Cut(_) | Task::Replace(..) => Ok(Carried::default()),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// What has a row for every sample: a tensor, [`Labels`], [`Targets`].
pub trait SampleRows: sealed::Sealed + Sized {
    #[doc(hidden)]
    #[must_use]
    fn mapped(&self, mapper: &mut SampleMapper) -> Self;
}

impl<const D: usize, K: Autodiff> sealed::Sealed for Tensor<D, K> {}
impl<A: Alignment> sealed::Sealed for Labels<A> {}
impl sealed::Sealed for Targets {}

impl<const D: usize, K: Autodiff> SampleRows for Tensor<D, K> {
    fn mapped(&self, mapper: &mut SampleMapper) -> Self {
        mapper.rows(self)
    }
}

impl<A: Alignment> SampleRows for Labels<A> {
    fn mapped(&self, mapper: &mut SampleMapper) -> Self {
        if let Task::Replace(other, replaced) = &mut mapper.0
            && let Values::Classes(classes) = &other.values
        {
            *replaced += 1;
            return self.replaced_by(classes.clone(), other.kind);
        }
        self.with_classes(mapper.rows(self.tensor()))
    }
}

impl SampleRows for Targets {
    fn mapped(&self, mapper: &mut SampleMapper) -> Self {
        if let Task::Replace(other, replaced) = &mut mapper.0
            && let Values::Targets(values) = &other.values
        {
            *replaced += 1;
            return self.replaced_by(values.clone(), other.kind);
        }
        self.with_values(mapper.rows(self.tensor()))
    }
}

impl Carrier {
    fn stand_in<const D: usize, K: Autodiff>(&mut self, tensor: &Tensor<D, K>) -> Tensor<D, K> {
        let real = tensor.clone().without_autodiff();
        placeholder(real, &self.device, &mut self.carried.bound)
    }
}

/// A model that gives the loss of each sample of a batch.
///
/// The losses must not mix samples: what sample `i` loses may not depend on which others are in
/// the batch, nor on how many (a batch norm in training mode would do that; collection turns it off).
/// Collection compares some with those of [`SampleBatch::sample`] alone: see [`Capture`](crate::capture::Capture).
pub trait SampleLoss: Module {
    /// The batches that the model takes.
    type Batch: SampleBatch;

    /// The loss and the active tokens of every sample, in the order of the batch.
    fn sample_losses(&self, batch: &Self::Batch) -> SampleLosses;
}
