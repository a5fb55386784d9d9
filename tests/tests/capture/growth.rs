//! Parameters that grow after their Fisher was taken: a classifier that learns new classes.

use burn::module::{Module, Param};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::{Gradient, GradientBatch};
use fisher_core::sample::Sample;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::Error as MetricsError;
use fisher_metrics::damping::Damping;
use fisher_metrics::growth::Growth;
use fisher_metrics::scaling::ScalingConfig;
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::Error;
use fisher_train::apply::{Ewc, EwcConfig, FisherOptimizerConfig};
use rstest::rstest;

/// The head of a classifier: two inputs, a column a class.
#[derive(Module, Debug)]
struct Head {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Head {
    /// `weight[i, c] = 10 i + c + shift`, `bias[c] = -c + shift`.
    fn new(classes: usize, shift: f32, device: &Device) -> Self {
        let weight = (0..2 * classes).map(|k| (10 * (k / classes) + k % classes) as f32 + shift);
        let bias = (0..classes).map(|class| shift - class as f32);
        let data = |values: Vec<f32>, shape: &[usize]| TensorData::new(values, shape);
        let weight = data(weight.collect(), &[2, classes]);
        let bias = data(bias.collect(), &[classes]);
        Self {
            weight: Param::from_tensor(Tensor::from_data(weight, device)),
            bias: Param::from_tensor(Tensor::from_data(bias, device)),
        }
    }
}

/// F of sample gradients `1, 2, 3, ..`, squared.
fn statistics(head: &Head, task: &str, device: &Device) -> Statistics {
    let config = StatisticsConfig::new();
    let mut statistics = config.init(head).expect("empty");
    let mut batch = GradientBatch::new(vec![Sample::new("a", 1).expect("a token")]);
    let classes = head.bias.dims()[0];
    for (path, elements) in [("weight", 2 * classes), ("bias", classes)] {
        let gradient: Vec<f32> = (1..=elements).map(|k| k as f32).collect();
        let gradient = TensorData::new(gradient, [1, elements]);
        let gradient = Tensor::<2>::from_data(gradient, &device.clone().inner());
        batch.insert(path, Gradient::token_sum(gradient));
    }
    statistics.push(task, batch).expect("gradients");
    statistics
}

/// Gradients of the penalty: of the weight, of the bias.
fn pull(ewc: &Ewc, head: &Head) -> [Vec<f64>; 2] {
    let penalty = ewc.penalty(head).expect("its own").expect("a task");
    let gradients = penalty.backward();
    let read = |data: TensorData| data.iter::<f64>().collect();
    [
        read(head.weight.grad(&gradients).expect("held").into_data()),
        read(head.bias.grad(&gradients).expect("held").into_data()),
    ]
}

fn is_of_another_shape<T>(result: Result<T, Error>) {
    match result {
        Err(Error::Metrics(MetricsError::Shape { key, ours, theirs })) => {
            assert!(["weight", "bias"].contains(&&*key));
            assert_ne!(ours, theirs);
        }
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("no error"),
    }
}

#[rstest]
fn the_old_classes_are_held_and_the_new_are_free(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let old = Head::new(2, 0.0, &device);
    let of_old = statistics(&old, "old", &device);
    let mut refusing = EwcConfig::new(1.0).init().expect("λ");
    let held = refusing.protect_online(1.0, &of_old, "old", &old);
    held.expect("F");
    let free = EwcConfig::new(1.0).with_growth(Growth::Free);
    let mut ewc = free.init().expect("λ");
    let held = ewc.protect_online(1.0, &of_old, "old", &old);
    held.expect("F");

    // Everywhere 0.5 from where it was, with a new class in between two rows of memory.
    let grown = Head::new(3, 0.5, &device);
    is_of_another_shape(refusing.penalty(&grown));
    let [weight, bias] = pull(&ewc, &grown);
    let half = |f: [f64; 6]| f.map(|f| 0.5 * f).to_vec();
    let expected = half([1.0, 4.0, 0.0, 9.0, 16.0, 0.0]);
    assert_close("weight", &weight, &expected, BACKWARD, 1.0);
    assert_close("bias", &bias, &[0.5, 2.0, 0.0], BACKWARD, 1.0);

    // Online, the old F moves into the new shape: γ F_old + F_new at the new θ*.
    let of_grown = statistics(&grown, "new", &device);
    let online = |ewc: &mut Ewc| ewc.protect_online(0.5, &of_grown, "new", &grown);
    is_of_another_shape(online(&mut refusing));
    online(&mut ewc).expect("grown");
    let further = Head::new(3, 1.0, &device);
    let [weight, bias] = pull(&ewc, &further);
    let expected = half([1.5, 6.0, 9.0, 20.5, 33.0, 36.0]);
    assert_close("weight", &weight, &expected, BACKWARD, 1.0);
    assert_close("bias", &bias, &[0.75, 3.0, 4.5], BACKWARD, 1.0);
    // What has shrunk is not free.
    is_of_another_shape(ewc.penalty(&old));
}

#[rstest]
fn steps_of_new_classes_are_divided_by_lambda_alone(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let (old, grown) = (Head::new(2, 0.0, &device), Head::new(3, 0.0, &device));
    let of_old = statistics(&old, "old", &device);
    let scaling = |growth| -> ScalingConfig {
        let config = ScalingConfig::new().with_damping(Damping::Absolute(2.0));
        config.with_growth(growth)
    };
    let optimizer = |growth, head| {
        let sgd = SgdConfig::new().init();
        FisherOptimizerConfig::new()
            .with_scaling(scaling(growth))
            .init(sgd, &of_old, "old", head)
    };
    let gradients = || {
        let ones = |elements: usize| Tensor::<1>::ones([elements], &device.clone().inner());
        let mut gradients = GradientsParams::new();
        gradients.register(grown.weight.id, ones(6).reshape([2, 3]));
        gradients.register(grown.bias.id, ones(3));
        gradients
    };
    // Grown before and after the optimizer was made.
    is_of_another_shape(optimizer(Growth::Refuse, &grown));
    let refusing = optimizer(Growth::Refuse, &old).expect("F");
    is_of_another_shape(refusing.scale(&grown, gradients()));
    for head in [&old, &grown] {
        let optimizer = optimizer(Growth::Free, head).expect("F");
        let scaled = optimizer.scale(&grown, gradients()).expect("grown");
        let weight = scaled.get::<2>(grown.weight.id).expect("a gradient");
        let weight: Vec<f64> = weight.into_data().iter().collect();
        let expected = [3.0, 6.0, 2.0, 11.0, 18.0, 2.0].map(|divisor: f64| 1.0 / divisor);
        assert_close("weight", &weight, &expected, BACKWARD, 1.0);
    }
    is_of_another_shape(optimizer(Growth::Free, &Head::new(1, 0.0, &device)));
}
