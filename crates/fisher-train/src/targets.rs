//! Targets that are numbers: yes or no for each of several labels, or the values of a regression.

use burn::tensor::{DType, Distribution, Tensor, TensorData};
use fisher_core::gradient::at_least_single;
use fisher_core::kind::FisherKind;

/// The targets of a batch, `[samples, outputs]`, and whether they were drawn.
///
/// Made from a tensor they are those of the data. A batch that holds them as `Targets` (and passes them through
/// [`SampleMapper::tensor`](crate::batch::SampleMapper::tensor)) can be given others, as a Monte-Carlo Fisher needs.
#[derive(Debug, Clone)]
pub struct Targets {
    values: Tensor<2>,
    kind: FisherKind,
}

impl From<Tensor<2>> for Targets {
    fn from(values: Tensor<2>) -> Self {
        let kind = FisherKind::Empirical;
        Self { values, kind }
    }
}

impl Targets {
    /// The values, `[samples, outputs]`. What is made of them is no longer known to be drawn.
    pub fn tensor(&self) -> &Tensor<2> {
        &self.values
    }

    /// Of which Fisher the gradients of their losses are.
    pub fn kind(&self) -> FisherKind {
        self.kind
    }

    /// Targets of a Monte-Carlo Fisher, each drawn from `Bernoulli(σ(logit))`: for
    /// [`SampleLosses::bernoulli`](crate::losses::SampleLosses::bernoulli). The random numbers are the device's.
    ///
    /// # Panics
    /// When there is not one logit for each target.
    #[must_use]
    pub fn draw_bernoulli(&self, logits: Tensor<2>) -> Self {
        assert_eq!(logits.dims(), self.values.dims(), "one logit a target");
        let p = burn::tensor::activation::sigmoid(at_least_single(logits.inner()));
        let uniform = Distribution::Uniform(0.0, 1.0);
        let uniform = Tensor::<2>::random(p.dims(), uniform, (&p.device(), DType::F32));
        let yes = uniform.cast(p.dtype()).lower(p);
        self.drawn(yes.float())
    }

    /// Targets of a Monte-Carlo Fisher, each drawn from `N(mean, sigma²)`: for
    /// [`SampleLosses::gaussian`](crate::losses::SampleLosses::gaussian). The random numbers are the device's.
    ///
    /// # Panics
    /// When there is not one mean for each target.
    #[must_use]
    pub fn draw_gaussian(&self, means: Tensor<2>, sigma: f64) -> Self {
        assert_eq!(means.dims(), self.values.dims(), "one mean a target");
        let means = at_least_single(means.inner());
        let normal = Distribution::Normal(0.0, sigma);
        let off = Tensor::<2>::random(means.dims(), normal, (&means.device(), DType::F32));
        self.drawn(means.clone() + off.cast(means.dtype()))
    }

    fn drawn(&self, values: Tensor<2>) -> Self {
        Self {
            values: values.cast(self.values.dtype()),
            kind: FisherKind::MonteCarlo,
        }
    }

    /// The same targets in another place.
    pub(crate) fn with_values(&self, values: Tensor<2>) -> Self {
        let kind = self.kind;
        Self { values, kind }
    }

    /// Targets of another Fisher, in rows of `[samples, outputs]`.
    pub(crate) fn replaced_by(&self, rows: Vec<f64>, kind: FisherKind) -> Self {
        let options = (&self.values.device(), self.values.dtype());
        let values = TensorData::new(rows, self.values.dims());
        let values = Tensor::from_data(values, options);
        Self { values, kind }
    }
}
