//! Collecting: loaders, resuming, and refusing what does not fit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::tensor::{Device, Tensor};
use fisher_core::{
    AttentionConfig, Catalogue, FisherKind, HeadLayout, PerToken, Statistics, StatisticsConfig,
};
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small};
use fisher_train::{
    Checkpoint, Collector, CollectorConfig, Error, SampleBatch, SampleLoss, draw_labels,
};
use rstest::rstest;

fn setup(backend: Backend) -> Option<(Device, Small, Sequences)> {
    let device = backend.device()?.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(7, 5, &device);
    Some((device, model, data))
}

fn fresh(model: &Small) -> Statistics {
    let catalogue = Catalogue::of(model).expect("parameters");
    let heads = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("heads");
    StatisticsConfig::new()
        .init(model, &heads)
        .expect("statistics")
}

fn bytes(statistics: &Statistics) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("statistics");
    statistics.save(&path).expect("a file");
    std::fs::read(path).expect("a file")
}

#[rstest]
fn an_interrupted_collection_resumes_to_the_identical_result(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 3)] batch: usize,
) {
    let Some((_, model, data)) = setup(backend) else {
        return;
    };
    let tasks = ["first", "second"];
    let mut straight = fresh(&model);
    let plain = CollectorConfig::new().init();
    for task in tasks {
        plain
            .collect_batches(&model, task, data.batches(batch), &mut straight)
            .expect("a collection");
    }

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("partial.safetensors");
    let checkpoint = Checkpoint::new(path.clone(), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init();
    let run = |collector: &Collector, stop: Option<usize>| {
        let mut statistics = collector.resume(fresh(&model)).expect("statistics");
        let mut resumed = Vec::new();
        for task in tasks {
            let stop = stop.filter(|_| task == "second");
            let batches = data.batches(1).into_iter().enumerate().map(|(i, batch)| {
                assert!(stop != Some(i), "the machine goes down");
                batch
            });
            let collected = collector
                .collect_batches(&model, task, batches, &mut statistics)
                .expect("a collection");
            resumed.push(collected.resumed);
        }
        (statistics, resumed)
    };
    // Down after five samples of the second task, with the last checkpoint after four.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let down = catch_unwind(AssertUnwindSafe(|| run(&collector, Some(5))));
    std::panic::set_hook(hook);
    assert!(down.is_err());
    let (statistics, resumed) = run(&collector, None);
    assert_eq!(resumed, [7, 4]);
    assert!(bytes(&statistics) == bytes(&straight), "the results differ");
    assert!(std::fs::read(&path).expect("a file") == bytes(&straight));
}

#[test]
fn a_checkpoint_of_other_data_or_of_another_model_is_refused() {
    let (device, model, data) = setup(Backend::Flex).expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = Checkpoint::new(folder.path().join("partial"), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init();
    let mut statistics = collector.resume(fresh(&model)).expect("no file yet");
    collector
        .collect_batches(&model, "task", data.slice(0..5).batches(2), &mut statistics)
        .expect("a collection");

    let again = |data: Sequences| {
        let mut statistics = collector.resume(fresh(&model)).expect("statistics");
        collector.collect_batches(&model, "task", [data], &mut statistics)
    };
    let mut shuffled = data.clone();
    shuffled.ids.swap(2, 3);
    match again(shuffled).expect_err("another order") {
        Error::OtherData {
            position: 2,
            expected,
            found,
            ..
        } => {
            assert_eq!((&*expected, &*found), ("sample/2", "sample/3"));
        }
        other => panic!("{other}"),
    }
    match again(data.slice(0..3)).expect_err("too short") {
        Error::OtherData {
            position: 3, found, ..
        } => assert_eq!(found, "the end of the data"),
        other => panic!("{other}"),
    }
    assert_eq!(again(data.clone()).expect("the same data").resumed, 5);

    let other = Small::init_with(&device, 2.0);
    let error = collector.resume(fresh(&other)).expect_err("another model");
    assert!(error.to_string().contains("hash of its weights"), "{error}");
    let mut of_model = fresh(&model);
    let plain = CollectorConfig::new().init();
    let error = plain.collect_batches(&other, "task", [data.clone()], &mut of_model);
    assert!(matches!(
        error.expect_err("another model"),
        Error::OtherModel { .. }
    ));

    let never = Checkpoint::new(folder.path().join("never"), 0);
    let never = CollectorConfig::new().with_checkpoint(Some(never)).init();
    let error = never.collect_batches(&model, "task", [data], &mut of_model);
    assert!(matches!(error.expect_err("never"), Error::CheckpointEvery));
}

#[test]
fn the_same_id_twice_is_an_error() {
    let (_, model, mut data) = setup(Backend::Flex).expect("a CPU");
    let collector = CollectorConfig::new().init();
    let mut statistics = fresh(&model);
    let once = data.slice(0..3).batches(2);
    collector
        .collect_batches(&model, "task", once.clone(), &mut statistics)
        .expect("once");
    let error = collector.collect_batches(&model, "task", once, &mut statistics);
    assert!(
        matches!(error.expect_err("twice"), Error::DuplicateSample { sample, .. } if sample == "sample/0")
    );
    // In another task it is another sample.
    data.ids[6] = "sample/1".into();
    let error = collector.collect_batches(&model, "other", [data], &mut statistics);
    assert!(
        matches!(error.expect_err("twice"), Error::DuplicateSample { sample, .. } if sample == "sample/1")
    );
    assert_eq!(statistics.task("other").expect("a task").count(), 6);
}

#[test]
fn no_data_is_no_task() {
    let (_, model, _) = setup(Backend::Flex).expect("a CPU");
    let mut statistics = fresh(&model);
    let collector = CollectorConfig::new().init();
    let none = collector
        .collect_batches(&model, "task", [], &mut statistics)
        .expect("nothing");
    assert_eq!((none.samples, none.unreached), (0, Vec::new()));
    assert!(statistics.task("task").is_err());
}

/// Makes [`Sequences`] of the indices in the data set.
#[derive(Clone)]
struct ByIndex(Sequences);

impl Batcher<usize, Sequences> for ByIndex {
    fn batch(&self, items: Vec<usize>, _device: &Device) -> Sequences {
        let one = |i: &usize| self.0.slice(*i..i + 1);
        let all: Vec<Sequences> = items.iter().map(one).collect();
        let of = |f: fn(&Sequences) -> &Tensor<2, burn::tensor::Int>| {
            Tensor::cat(all.iter().map(|s| f(s).clone()).collect(), 0)
        };
        Sequences {
            tokens: of(|s| &s.tokens),
            labels: of(|s| &s.labels),
            ids: all.iter().flat_map(|s| s.ids.clone()).collect(),
        }
    }
}

#[test]
fn a_burn_data_loader_gives_what_an_iterator_gives() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let collector = CollectorConfig::new().init();
    let mut by_iterator = fresh(&model);
    let expected = collector
        .collect_batches(&model, "task", data.batches(2), &mut by_iterator)
        .expect("a collection");
    for workers in [0, 1] {
        let loader = DataLoaderBuilder::new(ByIndex(data.clone()))
            .batch_size(3)
            .num_workers(workers)
            .build(InMemDataset::new((0..7).collect()));
        let mut by_loader = fresh(&model);
        let collected = collector
            .collect(&model, "task", &*loader, &mut by_loader)
            .expect("a collection");
        assert_eq!((collected.samples, collected.tokens), (7, expected.tokens));
        assert_eq!(collected.loss, expected.loss);
        assert!(
            bytes(&by_loader) == bytes(&by_iterator),
            "the results differ"
        );
    }
}

#[test]
fn a_loader_that_fails_is_an_error() {
    use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
    use burn::data::dataset::DatasetError;
    struct Failing(Sequences);
    struct FailsSecond(Option<Sequences>, usize);
    impl Iterator for FailsSecond {
        type Item = Result<Sequences, DatasetError>;
        fn next(&mut self) -> Option<Self::Item> {
            self.1 += 1;
            match self.0.take() {
                Some(batch) => Some(Ok(batch)),
                None => Some(Err(DatasetError::new(std::io::Error::other("gone")))),
            }
        }
    }
    impl DataLoaderIterator<Sequences> for FailsSecond {
        fn progress(&self) -> Progress {
            Progress::new(self.1, 2, None)
        }
    }
    impl DataLoader<Sequences> for Failing {
        fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Sequences> + 'a> {
            Box::new(FailsSecond(Some(self.0.slice(0..2)), 0))
        }
        fn num_items(&self) -> usize {
            4
        }
        fn to_device(&self, _: &Device) -> std::sync::Arc<dyn DataLoader<Sequences>> {
            unreachable!("collection does not move loaders")
        }
        fn slice(&self, _: usize, _: usize) -> std::sync::Arc<dyn DataLoader<Sequences>> {
            unreachable!("collection does not cut loaders")
        }
    }
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let mut statistics = fresh(&model);
    let collector = CollectorConfig::new().init();
    let error = collector.collect(&model, "task", &Failing(data), &mut statistics);
    assert!(matches!(error.expect_err("it fails"), Error::Data { .. }));
    assert_eq!(
        statistics.task("task").expect("a task").count(),
        2,
        "what came before is kept"
    );
}

/// Labels drawn from the model have an expected squared gradient that is known: for the bias of a
/// softmax it is the variance of its output, p(1 − p).
#[test]
fn a_monte_carlo_fisher_comes_to_the_true_one() {
    use burn::tensor::TensorData;
    let device = Device::flex();
    device.seed(3);
    let draws = 20_000;
    let logits = [0.0f32, 1.0, -1.0];
    let partition: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let p: Vec<f64> = logits
        .iter()
        .map(|&l| f64::from(l).exp() / partition)
        .collect();
    let data = TensorData::new(logits.repeat(draws * 2), [draws, 2, 3]);
    let labels = Tensor::<2, burn::tensor::Int>::from_data([[0, fisher_train::IGNORE]], &device);
    let labels = labels.repeat_dim(0, draws);
    let drawn = draw_labels(Tensor::from_data(data, &device), labels).to_data();
    let drawn: Vec<i64> = drawn.iter::<i64>().collect();
    let mut sum = [0.0; 3];
    for pair in drawn.chunks(2) {
        assert_eq!(pair[1], fisher_train::IGNORE, "masked labels stay masked");
        for (class, sum) in sum.iter_mut().enumerate() {
            // The gradient of −log p(y) in a logit is p − 1(y).
            let hit = if pair[0] == class as i64 { 1.0 } else { 0.0 };
            *sum += (p[class] - hit).powi(2);
        }
    }
    for (class, sum) in sum.iter().enumerate() {
        let (found, expected) = (sum / draws as f64, p[class] * (1.0 - p[class]));
        assert!(
            (found - expected).abs() < 0.01,
            "{found} against {expected}"
        );
    }
}

#[test]
fn the_kind_is_on_record() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let config = StatisticsConfig::new()
        .with_kind(FisherKind::MonteCarlo)
        .with_seed(Some(11));
    let mut statistics: Statistics<PerToken> = config
        .init(&model, &HeadLayout::none())
        .expect("statistics");
    let collector = CollectorConfig::new().init();
    collector
        .collect_batches(&model, "task", data.batches(4), &mut statistics)
        .expect("a collection");
    let provenance = statistics.provenance();
    assert_eq!(provenance.kind, FisherKind::MonteCarlo);
    assert_eq!(provenance.seeds, [11].into());
    assert_eq!(provenance.unit, "per_token");
    assert_eq!(
        statistics.task("task").expect("a task").samples()[6].id,
        data.ids()[6]
    );
    assert_eq!(model.sample_losses(&data).tokens().len(), 7);
}

/// The store is filled in the same pass, with the very gradients, and resumed with the statistics.
#[rstest]
fn a_store_is_filled_in_the_same_pass(#[values(true, false)] on_disk: bool) {
    use burn::module::ParamGroup;
    use fisher_core::StoreConfig;

    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(6, 5, &device);
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = Checkpoint::new(folder.path().join("partial.safetensors"), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init();
    // Statistics of one part of the model, gradients of another.
    let only = ParamGroup::from_predicate("attention");
    let stored = StoreConfig::new(1 << 20)
        .with_only(Some(only))
        .with_folder(on_disk.then(|| folder.path().join("store")));
    let fresh = || {
        let config = StatisticsConfig::new().with_elementwise(false);
        let statistics: Statistics = config
            .init(&model, &HeadLayout::none())
            .expect("statistics");
        statistics
    };

    // Interrupted after four samples, of which the checkpoint has four.
    let mut statistics = collector.resume(fresh()).expect("fresh");
    let mut store = stored.init(&model).expect("a store");
    let batches = data.batches(2);
    let begun = batches[..2].to_vec();
    collector
        .collect_batches(&model, "t", begun, (&mut statistics, &mut store))
        .expect("collected");
    assert_eq!(store.samples("t").len(), 4);
    drop(store);

    let mut statistics = collector.resume(fresh()).expect("the checkpoint");
    let mut store = stored.init(&model).expect("a store");
    assert_eq!(store.samples("t").len(), if on_disk { 4 } else { 0 });
    let collected = collector
        .collect_batches(&model, "t", batches, (&mut statistics, &mut store))
        .expect("collected");
    assert_eq!((collected.resumed, collected.samples), (4, 2));
    assert_eq!(store.samples("t").len(), 6);

    let paths: Vec<&str> = store
        .catalogue()
        .parameters()
        .iter()
        .map(|p| p.path())
        .collect();
    assert!(
        paths.len() == 8 && paths.iter().all(|p| p.starts_with("attention")),
        "{paths:?}"
    );
    let per_sample = fisher_train::PerSample::new(&model, paths.iter().copied()).expect("a model");
    for (i, sample) in store.samples("t").iter().enumerate() {
        let expected = per_sample.gradient(&data, i).expect("a gradient").gradients;
        assert_eq!(sample, &expected.samples()[0]);
        for path in &paths {
            let gradient = expected.get(path).expect("it").tensor().to_data();
            let found = store.gradient("t", sample.id(), path).expect("it");
            assert_eq!(found.to_vec(), gradient.iter::<f32>().collect::<Vec<_>>());
        }
    }

    let other = Small::init_with(&device, 2.0);
    let mut wrong = StoreConfig::new(1 << 20).init(&other).expect("a store");
    let error = collector.collect_batches(&model, "u", [], (&mut statistics, &mut wrong));
    assert!(matches!(error, Err(fisher_train::Error::OtherModel { .. })));
}
