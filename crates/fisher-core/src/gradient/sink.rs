//! Where per-sample gradients go.

use burn::tensor::Device;

use super::batch::GradientBatch;
use super::sample_gradient::SampleGradient;
use crate::error::Result;
use crate::kind::FisherKind;
use crate::sample::Sample;

/// Takes in the per-sample gradients of batches, parameter by parameter.
///
/// A batch comes in two phases. [`begin`](Self::begin), a [`put`](Self::put) for every parameter that
/// [the sink wants](Self::wants) and [`prepare`](Self::prepare) change nothing that the sink holds;
/// [`commit`](Self::commit) takes the batch in. So where one of several sinks refuses a batch, all of
/// them are as they were. A batch that was begun and not committed is forgotten with the next one.
///
/// Sinks compose: a pair of sinks is a sink, and so are a sink that may be missing and a borrowed one.
pub trait GradientSink {
    /// Whether it takes the gradients of the parameter at `path`.
    fn wants(&self, path: &str) -> bool;

    /// Which Fisher the gradients have to be of, where they may not be of `found`.
    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        let _ = found;
        None
    }

    /// Where the gradients have to lie, where it matters.
    fn takes_from(&self) -> Option<&Device> {
        None
    }

    /// A batch of samples of `task` follows.
    ///
    /// # Errors
    /// When it cannot take these samples.
    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()>;

    /// The gradients of the parameter at `path` for the samples of the batch that was begun.
    ///
    /// # Errors
    /// When they are not fit to be taken in.
    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()>;

    /// Look at the whole batch, whose gradients have all been put, before anything is changed.
    ///
    /// # Errors
    /// When a parameter is missing, or the batch cannot be taken in.
    fn prepare(&mut self) -> Result<()> {
        Ok(())
    }

    /// Take in the batch; [prepare](Self::prepare) it first, where that has not been done.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare), and where only now is seen that the batch cannot be taken in.
    fn commit(&mut self) -> Result<()>;

    /// Forget the batch that was begun: it will not be committed.
    fn forget(&mut self) {}

    /// A sample of `task` was left out because of its gradient of `parameter`.
    ///
    /// # Errors
    /// When it cannot be recorded.
    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        let _ = (task, sample, parameter);
        Ok(())
    }

    /// Take in a whole batch: what the sink wants of it.
    ///
    /// # Errors
    /// Those of the steps, and [`Error::ParameterTwice`](crate::Error::ParameterTwice).
    fn push_batch(&mut self, task: &str, batch: GradientBatch) -> Result<()> {
        batch.check_once()?;
        self.begin(task, batch.samples())?;
        let put = || -> Result<()> {
            for (path, gradient) in batch {
                if self.wants(&path) {
                    self.put(&path, gradient)?;
                }
            }
            self.prepare()
        };
        if let Err(error) = put() {
            self.forget();
            return Err(error);
        }
        self.commit()
    }
}

impl<S: GradientSink + ?Sized> GradientSink for &mut S {
    fn wants(&self, path: &str) -> bool {
        (**self).wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        (**self).refuses(found)
    }

    fn takes_from(&self) -> Option<&Device> {
        (**self).takes_from()
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        (**self).begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        (**self).put(path, gradient)
    }

    fn prepare(&mut self) -> Result<()> {
        (**self).prepare()
    }

    fn commit(&mut self) -> Result<()> {
        (**self).commit()
    }

    fn forget(&mut self) {
        (**self).forget();
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        (**self).skip(task, sample, parameter)
    }
}

impl<S: GradientSink> GradientSink for Option<S> {
    fn wants(&self, path: &str) -> bool {
        self.as_ref().is_some_and(|sink| sink.wants(path))
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        self.as_ref().and_then(|sink| sink.refuses(found))
    }

    fn takes_from(&self) -> Option<&Device> {
        self.as_ref().and_then(S::takes_from)
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.as_mut()
            .map_or(Ok(()), |sink| sink.begin(task, samples))
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        self.as_mut()
            .map_or(Ok(()), |sink| sink.put(path, gradient))
    }

    fn prepare(&mut self) -> Result<()> {
        self.as_mut().map_or(Ok(()), S::prepare)
    }

    fn commit(&mut self) -> Result<()> {
        self.as_mut().map_or(Ok(()), S::commit)
    }

    fn forget(&mut self) {
        if let Some(sink) = self {
            sink.forget();
        }
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        let sink = self.as_mut();
        sink.map_or(Ok(()), |sink| sink.skip(task, sample, parameter))
    }
}

/// Both; the first one commits first. What neither wants is passed over.
impl<A: GradientSink, B: GradientSink> GradientSink for (A, B) {
    fn wants(&self, path: &str) -> bool {
        self.0.wants(path) || self.1.wants(path)
    }

    fn refuses(&self, found: FisherKind) -> Option<FisherKind> {
        self.0.refuses(found).or_else(|| self.1.refuses(found))
    }

    fn takes_from(&self) -> Option<&Device> {
        self.0.takes_from().or(self.1.takes_from())
    }

    fn begin(&mut self, task: &str, samples: &[Sample]) -> Result<()> {
        self.0.begin(task, samples)?;
        self.1.begin(task, samples)
    }

    fn put(&mut self, path: &str, gradient: SampleGradient) -> Result<()> {
        if self.1.wants(path) {
            self.1.put(path, gradient.clone())?;
        }
        if self.0.wants(path) {
            self.0.put(path, gradient)?;
        }
        Ok(())
    }

    fn prepare(&mut self) -> Result<()> {
        self.0.prepare()?;
        self.1.prepare()
    }

    fn commit(&mut self) -> Result<()> {
        // One that refuses takes the other's batch with it.
        if let Err(error) = self.prepare() {
            self.forget();
            return Err(error);
        }
        self.0.commit()?;
        self.1.commit()
    }

    fn forget(&mut self) {
        self.0.forget();
        self.1.forget();
    }

    fn skip(&mut self, task: &str, sample: &Sample, parameter: &str) -> Result<()> {
        self.0.skip(task, sample, parameter)?;
        self.1.skip(task, sample, parameter)
    }
}
