//! Which Fisher is collected, and how.

use fisher_core::kind::FisherKind;
use serde::{Deserialize, Serialize};

/// Which Fisher a [`Collector`](crate::collect::Collector) collects: whose labels the squared gradients are of.
///
/// All but [`Fisher::AsGiven`] put other labels in the place of a batch's own, so the batch holds them as
/// [`Labels`](crate::labels::Labels) or [`Targets`](crate::targets::Targets) and the loss says what the model predicts (it is one
/// of [`SampleLosses::cross_entropy`](crate::losses::SampleLosses::cross_entropy), `next_token`, `classification`,
/// `bernoulli`, `gaussian`). Nothing else is asked of a model. Inputs are always those of the data, and what does not count among
/// its labels does not count among those in their place.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Distribution, Int, Tensor};
/// use fisher_train::kinds::Fisher;
/// use fisher_train::prelude::*;
///
/// #[derive(Clone)]
/// struct Digits {
///     images: Tensor<2>,
///     targets: Labels<Class>,
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
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::flex().autodiff();
/// let model = Model { linear: LinearConfig::new(4, 3).init(&device) };
/// let batch = Digits {
///     images: Tensor::random([8, 4], Distribution::Default, &device),
///     targets: Tensor::<1, Int>::zeros([8], &device).into(),
/// };
/// let fisher = Fisher::MonteCarlo { draws: 4, seed: 0 };
/// let mut statistics = StatisticsConfig::new().with_kind(FisherKind::MonteCarlo).init(&model)?;
/// let collector = CollectorConfig::new().with_fisher(fisher).init()?;
/// let collected = collector.collect_batches(&model, "digits", [batch], &mut statistics)?;
/// println!("{:?}", collected.draws);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Fisher {
    /// Gradients of the batches as they are: the empirical Fisher; where a batch's labels were drawn by hand, the
    /// Monte-Carlo one.
    #[default]
    AsGiven,
    /// [`FisherKind::MonteCarlo`]: labels drawn from the model's predictions, `draws` times a sample, a pass over
    /// the batch each. A draw is of the seed, the sample's id and its number, so that it is the same in any batch.
    MonteCarlo {
        /// `K ≥ 1`; from 2 on their error is told ([`Collected::draws`](crate::collect::Collected::draws)).
        draws: usize,
        /// Of the random numbers.
        seed: u64,
    },
    /// [`FisherKind::Exact`]: a pass over the batch for every class at every active position. For few classes and short
    /// samples, and to hold Monte-Carlo to.
    Exact,
    /// [`FisherKind::TokenLevel`]: a pass over the batch for every active position. Every active token is a sample of the
    /// statistics: its id is the sample's, `#`, and its number among the active tokens from 0, and its cluster is the
    /// sample's, or else the sample's id.
    TokenLevel,
}

impl Fisher {
    /// The kind of the statistics that it is collected into; `None` where the batches' labels say it.
    pub fn kind(self) -> Option<FisherKind> {
        match self {
            Self::AsGiven => None,
            Self::MonteCarlo { .. } => Some(FisherKind::MonteCarlo),
            Self::Exact => Some(FisherKind::Exact),
            Self::TokenLevel => Some(FisherKind::TokenLevel),
        }
    }
}
