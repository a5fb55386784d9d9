//! Small models of layers with a state or norms of samples, and models in other float types.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::{
    Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, Gru, GruConfig, InstanceNorm,
    InstanceNormConfig, Linear, LinearConfig, Lstm, LstmConfig, PaddingConfig2d,
};
use burn::tensor::{DType, Device, Tensor};
use fisher_train::batch::SampleLoss;
use fisher_train::losses::SampleLosses;

use crate::models::{Sequences, made_up};
use crate::subjects::Pictures;

/// Two recurrent layers between a table and a head.
#[derive(Module, Debug)]
pub struct Recurrent {
    embedding: Embedding,
    gru: Gru,
    lstm: Lstm,
    head: Linear,
}

impl Recurrent {
    /// Widths 4, 3 and 3.
    pub fn init(device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 4).init(device),
            gru: GruConfig::new(4, 3, true).init(device),
            lstm: LstmConfig::new(3, 3, true).init(device),
            head: LinearConfig::new(3, 7).init(device),
        };
        made_up(model, 0.4)
    }
}

impl SampleLoss for Recurrent {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let x = self.embedding.forward(batch.tokens.clone());
        let x = self.gru.forward(x, None);
        let (x, _) = self.lstm.forward(x, None);
        SampleLosses::cross_entropy(self.head.forward(x), batch.labels.clone())
    }
}

/// Group and instance norms, a transposed convolution, and one that pads to the `Same` size.
#[derive(Module, Debug)]
pub struct Normed {
    same: Conv2d,
    group: GroupNorm,
    transposed: ConvTranspose2d,
    instance: InstanceNorm,
    head: Linear,
}

impl Normed {
    /// Of three classes.
    pub fn init(device: &Device) -> Self {
        let model = Self {
            same: Conv2dConfig::new([2, 4], [3, 3])
                .with_padding(PaddingConfig2d::Same)
                .init(device),
            group: GroupNormConfig::new(2, 4).init(device),
            transposed: ConvTranspose2dConfig::new([4, 2], [2, 3])
                .with_stride([2, 1])
                .init(device),
            instance: InstanceNormConfig::new(2).init(device),
            head: LinearConfig::new(2 * 12 * 8, 3).init(device),
        };
        made_up(model, 0.6)
    }
}

impl SampleLoss for Normed {
    type Batch = Pictures;

    fn sample_losses(&self, batch: &Pictures) -> SampleLosses {
        let x = self.group.forward(self.same.forward(batch.pixels.clone()));
        let x = self.instance.forward(self.transposed.forward(x.tanh()));
        let x = x.tanh().reshape([batch.ids.len() as i32, -1]);
        SampleLosses::classification(self.head.forward(x).mul_scalar(0.3), batch.labels.clone())
    }
}

/// `model` with all its floats in another type.
pub fn in_type<M: Module>(model: M, dtype: DType) -> M {
    struct Cast(DType);
    impl ModuleMapper for Cast {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let tracked = param.is_require_grad();
            param.map(|tensor| {
                let tensor = tensor.cast(self.0).detach();
                tensor.set_require_grad(tracked)
            })
        }
    }
    model.map(&mut Cast(dtype))
}

/// All floats: parameters and running statistics.
pub fn floats<M: Module>(model: &M) -> Vec<Vec<f32>> {
    struct Floats(Vec<Vec<f32>>);
    impl ModuleVisitor for Floats {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().to_data().iter().collect());
        }
    }
    let mut floats = Floats(Vec::new());
    model.visit(&mut floats);
    floats.0
}
