//! What a noise scale costs.

use std::time::Instant;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Distribution, Int, Tensor};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{CaptureConfig, Engine};
use fisher_train::losses::SampleLosses;
use fisher_train::monitor::{HookConfig, HookSource, NoiseScaleConfig, Schedule};

use crate::{alone, resident};

/// 8 MB of float32.
const WIDTH: usize = 1448;
const SAMPLES: usize = 64;
const POSITIONS: usize = 8;

#[derive(Clone, Debug)]
struct Points(Tensor<3>, usize);

impl SampleBatch for Points {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(format!("{}", self.1 + index))
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(mapper.tensor(&self.0), self.1)
    }

    fn sample(&self, index: usize) -> Self {
        Self(self.0.clone().narrow(0, index, 1), self.1 + index)
    }
}

#[derive(Module, Debug)]
struct Model {
    linear: Linear,
}

impl SampleLoss for Model {
    type Batch = Points;

    fn sample_losses(&self, batch: &Points) -> SampleLosses {
        let logits = self.linear.forward(batch.0.clone());
        let [samples, positions, _] = logits.dims();
        let labels = Tensor::<2, Int>::zeros([samples, positions], &logits.device());
        SampleLosses::cross_entropy(logits, labels)
    }
}

/// Not more than the sums of its eight blocks and a little to work with: the gradients of the batch
/// are 540 MB.
#[test]
fn a_noise_scale_holds_the_sums_of_its_blocks() {
    let name = "noise_scale::a_noise_scale_holds_the_sums_of_its_blocks";
    alone(name, measure);
}

fn measure() {
    let device = Device::flex().autodiff();
    let model = Model {
        linear: LinearConfig::new(WIDTH, WIDTH)
            .with_bias(false)
            .init(&device),
    };
    let capture = |noise| {
        let shape = [SAMPLES, POSITIONS, WIDTH];
        let batch = |at| {
            let inputs = Tensor::random(shape, Distribution::Default, &device);
            Points(inputs, at * SAMPLES)
        };
        let source = HookSource::Probes(vec![("task".into(), vec![batch(0), batch(1)])]);
        let hook = HookConfig::new(Schedule::new().with_at_end(true))
            .with_capture(CaptureConfig::new().with_engine(Engine::Trace))
            .with_noise(noise)
            .init(&model, source)
            .expect("a hook");
        let start = Instant::now();
        hook.finish(&model).expect("a capture");
        let reading = hook.history().readings()[0].noise;
        (start.elapsed(), reading)
    };
    capture(None);
    let (without, _) = capture(None);
    let before = resident("VmHWM:");
    let (with, noise) = capture(Some(NoiseScaleConfig::new()));
    let megabytes = (resident("VmHWM:") - before) as f64 / 1e6;
    println!("{megabytes:.0} MB more; {with:?} with, {without:?} without");
    assert!(noise.is_some());
    assert!(megabytes < 160.0, "{megabytes} MB more");
}
