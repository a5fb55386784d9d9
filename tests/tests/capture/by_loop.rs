//! The loop engine against finite differences, one batched backward, and its own promises.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use fisher_core::model::Catalogue;
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::backend::Backend;
use fisher_tests::differences::{agree_with_differences, by_loop};
use fisher_tests::models::{Sequences, Small};
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::Error;
use fisher_train::batch::SampleLoss;
use fisher_train::capture::PerSample;
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use rstest::rstest;

fn setup(backend: Backend) -> Option<(Device, Small, Sequences)> {
    let device = backend.device()?.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(5, 6, &device);
    Some((device, model, data))
}

fn paths(model: &Small) -> Vec<String> {
    let catalogue = Catalogue::of(model).expect("parameters");
    catalogue
        .parameters()
        .iter()
        .map(|p| p.path().to_owned())
        .collect()
}

/// The losses with dropout and batch statistics off, by Burn's own `valid()`.
fn losses(model: &Small, data: &Sequences) -> Vec<f64> {
    let losses = model.valid().sample_losses(data);
    losses.sums().to_data().iter::<f64>().collect()
}

#[rstest]
fn agrees_with_finite_differences(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some((device, model, data)) = setup(backend) else {
        return;
    };
    let inner = device.inner();
    let plain = Sequences {
        tokens: data.tokens.clone().to_device(&inner),
        labels: data.labels.clone().to_device(&inner),
        ids: data.ids.clone(),
    };
    let rows = by_loop(&model, &data, &paths(&model));
    agree_with_differences(&model, &rows, |moved| losses(moved, &plain));
}

#[rstest]
fn the_sum_over_samples_is_one_batched_backward(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some((_, model, data)) = setup(backend) else {
        return;
    };
    struct Off;
    impl ModuleMapper for Off {
        fn map_flag(&mut self, flag: Param<burn::module::Flag>) -> Param<burn::module::Flag> {
            flag.with_value(false)
        }
    }
    struct Sum<'a> {
        gradients: &'a mut burn::tensor::Gradients,
        by_id: BTreeMap<String, Vec<f64>>,
    }
    impl ModuleVisitor for Sum<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad_remove(self.gradients) {
                let values: Vec<f64> = gradient.to_data().iter::<f64>().collect();
                let sum = self
                    .by_id
                    .entry(param.id.to_string())
                    .or_insert(vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
            }
        }
    }
    let rows = by_loop(&model, &data, &paths(&model));
    let quiet = model.clone().map(&mut Off);
    let mut gradients = quiet.sample_losses(&data).sums().clone().sum().backward();
    let mut sum = Sum {
        gradients: &mut gradients,
        by_id: BTreeMap::new(),
    };
    quiet.visit(&mut sum);
    for parameter in Catalogue::of(&model).expect("parameters").parameters() {
        let batched = &sum.by_id[&parameter.id().expect("an id").to_string()];
        let mut summed = vec![0.0; batched.len()];
        for row in &rows[parameter.path()] {
            summed.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        // The key bias moves every score of a row alike: its gradient is rounding alone.
        if parameter.path() == "attention.key.bias" {
            assert!(summed.iter().chain(batched).all(|g| g.abs() < 1e-5));
            continue;
        }
        assert_close(parameter.path(), &summed, batched, BACKWARD, 1.0);
    }
}

#[test]
fn dropout_is_off_and_the_model_is_left_alone() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let all = paths(&model);
    assert_eq!(by_loop(&model, &data, &all), by_loop(&model, &data, &all));
    let noisy = |m: &Small| m.sample_losses(&data).sums().to_data();
    assert_ne!(
        noisy(&model),
        noisy(&model),
        "the model given still drops out"
    );
}

#[test]
fn a_tied_parameter_is_one_parameter_with_the_sum_of_its_gradients() {
    let (device, model, data) = setup(Backend::Flex).expect("a CPU");
    let catalogue = Catalogue::of(&model).expect("parameters");
    let embedding = catalogue.get("embedding.weight").expect("the embedding");
    assert_eq!(embedding.tied(), ["head"]);
    assert_eq!(embedding.role(), fisher_core::model::Role::Embedding);
    assert!(catalogue.get("head").is_none());

    // Untied, the two uses have gradients of their own.
    let mut untied = model.clone();
    let weight = model.head.val().inner().to_data();
    untied.head = Param::from_tensor(Tensor::from_data(weight, &device));
    let apart = by_loop(&untied, &data, &["embedding.weight".into(), "head".into()]);
    let tied = by_loop(&model, &data, &["embedding.weight".into()]);
    for (index, row) in tied["embedding.weight"].iter().enumerate() {
        let pairs = apart["embedding.weight"][index]
            .iter()
            .zip(&apart["head"][index]);
        let sum: Vec<f64> = pairs.map(|(a, b)| a + b).collect();
        assert_close("embedding", row, &sum, BACKWARD, 1.0);
    }
}

#[test]
fn a_table_is_a_table_also_where_it_is_seen_first_as_a_matrix() {
    #[derive(Module, Debug)]
    struct HeadFirst {
        head: Param<Tensor<2>>,
        embedding: burn::nn::Embedding,
    }
    let device = Device::flex().autodiff();
    let embedding = burn::nn::EmbeddingConfig::new(5, 3).init(&device);
    let model = HeadFirst {
        head: embedding.weight.clone(),
        embedding,
    };
    let catalogue = Catalogue::of(&model).expect("parameters");
    let [table] = catalogue.parameters() else {
        panic!("one parameter");
    };
    assert_eq!(
        (table.path(), table.role()),
        ("head", fisher_core::model::Role::Embedding)
    );
}

#[test]
fn frozen_parameters_stay_frozen_and_are_left_out() {
    let (_, mut model, data) = setup(Backend::Flex).expect("a CPU");
    model.attention = model.attention.no_grad();
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    assert!(
        statistics
            .paths()
            .all(|path| !path.starts_with("attention"))
    );
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", data.batches(2), &mut statistics)
        .expect("a collection");
    assert!(!model.attention.query.weight.is_require_grad());
    assert!(model.embedding.weight.is_require_grad());
}

#[test]
fn running_statistics_are_no_parameters() {
    let (_, model, _) = setup(Backend::Flex).expect("a CPU");
    assert!(paths(&model).iter().all(|path| !path.contains("running")));
    assert!(paths(&model).contains(&"batch_norm.gamma".to_owned()));
}

#[test]
fn a_model_without_gradients_is_refused_with_advice() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let error = StatisticsConfig::new()
        .init(&model.valid())
        .expect_err("no gradients");
    assert!(error.to_string().contains("`.train()`"), "{error}");

    #[derive(Module, Debug)]
    struct Detached {
        model: Small,
    }
    impl SampleLoss for Detached {
        type Batch = Sequences;
        fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
            self.model.sample_losses(batch).map(Tensor::detach)
        }
    }
    let engine = PerSample::new(&Detached { model }, ["model.linear.weight"]);
    let error = engine
        .expect("an engine")
        .gradient(&data, 0)
        .expect_err("no graph");
    assert!(
        matches!(&error, Error::NoGraph { sample } if sample == "sample/0"),
        "{error}"
    );
}

#[test]
fn parameters_that_no_loss_reaches_are_zero_and_named() {
    #[derive(Module, Debug)]
    struct Spare {
        used: Small,
        unused: burn::nn::Linear,
    }
    impl SampleLoss for Spare {
        type Batch = Sequences;
        fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
            self.used.sample_losses(batch)
        }
    }
    let (device, used, data) = setup(Backend::Flex).expect("a CPU");
    let unused = burn::nn::LinearConfig::new(2, 2)
        .with_bias(false)
        .init(&device);
    let model = Spare { used, unused };
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    let collected = collector.collect_batches(&model, "task", [data], &mut statistics);
    assert_eq!(
        collected.expect("a collection").unreached,
        ["unused.weight"]
    );
    let task = statistics.task("task").expect("a task");
    let spare = task
        .parameter("unused.weight")
        .expect("a parameter")
        .elementwise();
    let read = spare.expect("elements").read().expect("values");
    assert_eq!((read.count, read.mean), (5, Some(vec![0.0; 4])));
}
