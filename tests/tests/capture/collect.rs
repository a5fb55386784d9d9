//! Collecting: loaders, resuming, and refusing what does not fit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder, DataLoaderIterator, Progress};
use burn::data::dataset::{DatasetError, InMemDataset};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use fisher_core::Error as CoreError;
use fisher_core::gradient::PerToken;
use fisher_core::grouping::{AttentionConfig, HeadLayout};
use fisher_core::kind::FisherKind;
use fisher_core::model::Catalogue;
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_core::store::{GradientStore, GradientStoreConfig, Precision};
use fisher_tests::backend::Backend;
use fisher_tests::models::{Line, Sequences, Small, Unnamed};
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::Error;
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{CaptureConfig, Engine, NonFinite, PerSample};
use fisher_train::collect::{CheckpointConfig, Collector, CollectorConfig};
use fisher_train::labels::{Aligned, IGNORE, Labels};
use rstest::rstest;

fn setup(backend: Backend) -> Option<(Device, Small, Sequences)> {
    let device = backend.device()?.autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(7, 5, &device);
    Some((device, model, data))
}

fn fresh(model: &Small) -> Statistics {
    let config = StatisticsConfig::new().with_attention(Some(AttentionConfig::new(2)));
    config.init(model).expect("statistics")
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
    let plain = CollectorConfig::new().init().expect("a collector");
    for task in tasks {
        plain
            .collect_batches(&model, task, data.batches(batch), &mut straight)
            .expect("a collection");
    }

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("partial.safetensors");
    let checkpoint = CheckpointConfig::new(path.clone(), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init()
        .expect("a collector");
    let run = |collector: &Collector, stop: Option<usize>| {
        let mut statistics = collector.resume(fresh(&model)).expect("statistics");
        let mut resumed = Vec::new();
        for task in tasks {
            let stop = stop.filter(|_| task == "second");
            let batches = data
                .batches(batch)
                .into_iter()
                .enumerate()
                .map(|(i, batch)| {
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
    // Down amid the second task, with the last checkpoint at a multiple of two samples, or after it.
    let (stop, saved) = if batch == 1 { (5, 4) } else { (2, 6) };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let down = catch_unwind(AssertUnwindSafe(|| run(&collector, Some(stop))));
    std::panic::set_hook(hook);
    assert!(down.is_err());
    let (statistics, resumed) = run(&collector, None);
    assert_eq!(resumed, [7, saved]);
    assert!(bytes(&statistics) == bytes(&straight), "the results differ");
    assert!(std::fs::read(&path).expect("a file") == bytes(&straight));
}

#[test]
fn a_checkpoint_of_other_data_or_of_another_model_is_refused() {
    let (device, model, data) = setup(Backend::Flex).expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = CheckpointConfig::new(folder.path().join("partial"), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init()
        .expect("a collector");
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
    let plain = CollectorConfig::new().init().expect("a collector");
    let error = plain.collect_batches(&other, "task", [data.clone()], &mut of_model);
    assert!(matches!(
        error.expect_err("another model"),
        Error::OtherModel { .. }
    ));

    let never = CheckpointConfig::new(folder.path().join("never"), 0);
    let never = CollectorConfig::new().with_checkpoint(Some(never)).init();
    assert!(matches!(never.expect_err("never"), Error::CheckpointEvery));
}

/// Two collections, one path: whichever comes second says so, before the work and at each write.
#[test]
fn a_checkpoint_of_another_collection_is_not_replaced() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("partial");
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(CheckpointConfig::new(path.clone(), 1)))
        .init()
        .expect("a collector");
    let collect = |task: &str, data: &Sequences, statistics: &mut Statistics| {
        collector.collect_batches(&model, task, data.batches(2), statistics)
    };
    let mut first = fresh(&model);
    collect("a", &data, &mut first).expect("a collection");
    let written = std::fs::read(&path).expect("a file");
    let refused = |error: Result<fisher_train::collect::Collected, Error>, lacks: &str| {
        match error.expect_err("another collection") {
            Error::OtherCheckpoint { missing, .. } => assert!(missing.contains(lacks), "{missing}"),
            other => panic!("{other}"),
        }
        assert!(std::fs::read(&path).expect("a file") == written);
    };
    let mut second = fresh(&model);
    refused(
        collect("b", &data, &mut second),
        "sample `sample/0` of task `a`",
    );
    assert_eq!(second.tasks().count(), 0, "before the work");
    refused(collect("a", &data.slice(0..3), &mut second), "`sample/0`");
    let none = collector.collect_batches(&model, "a", [], &mut second);
    refused(none, "`sample/0`");
    let other = Small::init_with(&model.devices()[0], 2.0);
    let mut of_other = fresh(&other);
    let others = collector.collect_batches(&other, "a", data.batches(2), &mut of_other);
    refused(others, "hash of its weights");

    // While both are under way, the one that did not write first stops.
    let late = folder.path().join("late");
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(CheckpointConfig::new(late.clone(), 1)))
        .init()
        .expect("a collector");
    let mut ours = fresh(&model);
    let batches = data
        .batches(2)
        .into_iter()
        .inspect(|_| first.save(&late).expect("theirs"));
    let error = collector.collect_batches(&model, "b", batches, &mut ours);
    assert!(
        matches!(error, Err(Error::OtherCheckpoint { .. })),
        "{error:?}"
    );
    assert!(std::fs::read(&late).expect("a file") == written);

    // What was collected without a checkpoint is in it, though nothing comes.
    let empty = folder.path().join("empty");
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(CheckpointConfig::new(empty.clone(), 1)))
        .init()
        .expect("a collector");
    let none = collector.collect_batches(&model, "c", [], &mut fresh(&model));
    none.expect("nothing");
    assert!(!empty.exists());
    let none = collector.collect_batches(&model, "c", [], &mut first);
    none.expect("nothing new");
    assert!(std::fs::read(&empty).expect("a file") == written);

    // What has all that is there may go on, and what is no statistics file stays.
    collect("b", &data, &mut first).expect("one more task");
    std::fs::write(&path, "notes").expect("a file");
    let error = collect("c", &data, &mut first).expect_err("no statistics");
    assert!(
        matches!(error, Error::Core(CoreError::Format { .. })),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).expect("a file"), b"notes");
    // No file can be under another.
    let nowhere = CheckpointConfig::new(path.join("partial"), 1);
    let nowhere = CollectorConfig::new()
        .with_checkpoint(Some(nowhere))
        .init()
        .expect("a collector");
    let mut statistics = fresh(&model);
    let error = nowhere.collect_batches(&model, "a", data.batches(2), &mut statistics);
    assert!(
        matches!(error, Err(Error::Core(CoreError::Io { .. }))),
        "{error:?}"
    );
    assert_eq!(statistics.tasks().count(), 0, "before the work");
}

/// Whatever stops a collection, what was counted before is in its checkpoint.
#[rstest]
fn an_error_does_not_take_what_came_before(
    #[values(Engine::Loop, Engine::Auto)] engine: Engine,
    #[values("not finite", "twice", "the loader")] fault: &str,
) {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Rooted::init(&device);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("partial");
    // No write is due before the end.
    let config = CollectorConfig::new()
        .with_engine(engine)
        .with_checkpoint(Some(CheckpointConfig::new(path.clone(), 100)));
    let collector = config.init().expect("a collector");
    let everything = || StatisticsConfig::new().init(&model).expect("statistics");
    let numbers = |numbers: &[f32]| Numbers(numbers.to_vec(), device.clone());
    let last = match fault {
        "not finite" => numbers(&[4.0, 0.0, 5.0]),
        "twice" => numbers(&[4.0, 3.0]),
        _ => numbers(&[]),
    };
    struct Loader(Vec<Numbers>);
    impl DataLoader<Numbers> for Loader {
        fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Numbers> + 'a> {
            Box::new(Batches(self.0.clone().into_iter()))
        }
        fn num_items(&self) -> usize {
            5
        }
        fn to_device(&self, _: &Device) -> std::sync::Arc<dyn DataLoader<Numbers>> {
            unreachable!("collection does not move loaders")
        }
        fn slice(&self, _: usize, _: usize) -> std::sync::Arc<dyn DataLoader<Numbers>> {
            unreachable!("collection does not cut loaders")
        }
    }
    struct Batches(std::vec::IntoIter<Numbers>);
    impl Iterator for Batches {
        type Item = Result<Numbers, DatasetError>;
        fn next(&mut self) -> Option<Self::Item> {
            let batch = self.0.next()?;
            let gone = || DatasetError::new(std::io::Error::other("gone"));
            Some(if batch.0.is_empty() {
                Err(gone())
            } else {
                Ok(batch)
            })
        }
    }
    impl DataLoaderIterator<Numbers> for Batches {
        fn progress(&self) -> Progress {
            Progress::new(0, 5, None)
        }
    }
    let loader = Loader(vec![numbers(&[3.0, 2.0]), last]);
    let mut statistics = everything();
    let error = collector.collect(&model, "t", &loader, &mut statistics);
    error.expect_err(fault);
    let saved = collector.resume(everything()).expect("the checkpoint");
    let ids = |statistics: &Statistics| -> Vec<String> {
        let samples = statistics.task("t").expect("a task").samples().iter();
        samples.map(|s| s.id.clone()).collect()
    };
    let expected: &[&str] = match fault {
        "the loader" => &["3", "2"],
        _ => &["3", "2", "4"],
    };
    assert_eq!(ids(&saved), expected);
    assert_eq!(bytes(&saved), bytes(&statistics));
}

#[test]
fn the_same_id_twice_is_an_error() {
    let (_, model, mut data) = setup(Backend::Flex).expect("a CPU");
    let collector = CollectorConfig::new().init().expect("a collector");
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
    let collector = CollectorConfig::new().init().expect("a collector");
    let none = collector
        .collect_batches(&model, "task", [], &mut statistics)
        .expect("nothing");
    assert_eq!((none.samples, none.unreached), (0, Vec::new()));
    assert!(statistics.task("task").is_err());
}

/// Samples without ids have numbers, counted through the batches of a task: the same however it is
/// batched, and wherever it was interrupted.
#[rstest]
fn samples_without_ids_are_numbered(
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
    #[values(1, 2, 3, 7)] size: usize,
) {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Line::init(&device);
    let data = Unnamed::made_up(7, &device);
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = CheckpointConfig::new(folder.path().join("partial"), 1);
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .with_checkpoint(Some(checkpoint))
        .init()
        .expect("a collector");
    let collect = |task: &str, count: usize, size: usize| {
        let fresh = StatisticsConfig::new().init(&model).expect("statistics");
        let mut statistics = collector.resume(fresh).expect("statistics");
        let mut store = GradientStoreConfig::new(1 << 20)
            .init(&model)
            .expect("a store");
        let into = (&mut statistics, &mut store);
        let collected = collector.collect_batches(&model, task, data.batches(count, size), into);
        let collected = collected.expect("a collection");
        (collected.resumed, statistics, store)
    };
    let by_loop = PerSample::new(&model, ["linear.weight"]).expect("a model");
    let numbers = |statistics: &Statistics, store: &GradientStore, task: &str| {
        let counted = statistics.task(task).expect("a task").samples().iter();
        let counted: Vec<String> = counted.map(|sample| sample.id.clone()).collect();
        let stored: Vec<&str> = store.samples(task).iter().map(|s| s.id()).collect();
        assert_eq!(counted, stored);
        // A number is that of a sample in the data.
        for (index, id) in stored.into_iter().enumerate() {
            let found = store.gradient(task, id, "linear.weight").expect("it");
            let found: Vec<f64> = found.iter().map(|&g| f64::from(g)).collect();
            let sample = by_loop.gradient(&data, index).expect("a gradient");
            assert_eq!(sample.gradients.samples()[0].id(), id);
            let expected = sample.gradients.get("linear.weight").expect("it");
            let expected: Vec<f64> = expected.to_full().to_data().iter().collect();
            assert_close(id, &found, &expected, BACKWARD, 1.0);
        }
        counted
    };
    let all = ["0", "1", "2", "3", "4", "5", "6"];
    let (resumed, statistics, store) = collect("straight", 7, size);
    assert_eq!(resumed, 0);
    assert_eq!(numbers(&statistics, &store, "straight"), all);

    // Interrupted after four samples; other batches from then on, one of them begun before.
    let (_, statistics, store) = collect("broken off", 4, size);
    assert_eq!(numbers(&statistics, &store, "broken off"), all[..4]);
    let (resumed, statistics, store) = collect("broken off", 7, 3);
    assert_eq!(resumed, 4);
    assert_eq!(numbers(&statistics, &store, "broken off"), all);

    // Without a checkpoint the same task's data begin anew, with samples that are there.
    let mut again = statistics;
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .init()
        .expect("a collector");
    let error = collector.collect_batches(&model, "straight", data.batches(7, size), &mut again);
    assert!(
        matches!(&error, Err(Error::DuplicateSample { sample, .. }) if sample == "0"),
        "{error:?}"
    );

    let capture = CaptureConfig::new().with_engine(engine);
    let mut capture = capture.init(&model, again.paths()).expect("a capture");
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    let mut store = GradientStoreConfig::new(1 << 20)
        .init(&model)
        .expect("a store");
    for batch in data.batches(7, size) {
        for task in ["one", "two"] {
            let into = (&mut statistics, &mut store);
            capture.accumulate(&batch, task, into).expect("a capture");
        }
    }
    for task in ["one", "two"] {
        assert_eq!(numbers(&statistics, &store, task), all);
    }
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
    let collector = CollectorConfig::new().init().expect("a collector");
    let mut by_iterator = fresh(&model);
    let expected = collector
        .collect_batches(&model, "task", data.batches(2), &mut by_iterator)
        .expect("a collection");
    for workers in [0, 1] {
        let loader = DataLoaderBuilder::new(ByIndex(data.clone()))
            .batch_size(2)
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
    let collector = CollectorConfig::new().init().expect("a collector");
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
    let labels =
        Tensor::<2, burn::tensor::Int>::from_data([[0, fisher_train::labels::IGNORE]], &device);
    let labels = labels.repeat_dim(0, draws);
    let labels = Labels::<Aligned>::from(labels);
    let drawn = labels.draw(Tensor::from_data(data, &device));
    let drawn = drawn.tensor().to_data();
    let drawn: Vec<i64> = drawn.iter::<i64>().collect();
    let mut sum = [0.0; 3];
    for pair in drawn.chunks(2) {
        assert_eq!(
            pair[1],
            fisher_train::labels::IGNORE,
            "masked labels stay masked"
        );
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
    let config = StatisticsConfig::new().with_seed(Some(11));
    let mut statistics = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    collector
        .collect_batches(&model, "task", data.batches(4), &mut statistics)
        .expect("a collection");
    let provenance = statistics.provenance();
    assert_eq!(provenance.kind, FisherKind::Empirical);
    assert_eq!(provenance.seeds, [11].into());
    assert_eq!(provenance.unit, "per_token");
    assert_eq!(
        statistics.task("task").expect("a task").samples()[6].id,
        data.ids[6]
    );
    assert_eq!(model.sample_losses(&data).sums().dims(), [7]);
}

/// The store is filled in the same pass, with the very gradients, and resumed with the statistics.
#[rstest]
fn a_store_is_filled_in_the_same_pass(#[values(true, false)] on_disk: bool) {
    use burn::module::ParamGroup;

    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(6, 5, &device);
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = CheckpointConfig::new(folder.path().join("partial.safetensors"), 2);
    let collector = CollectorConfig::new()
        .with_checkpoint(Some(checkpoint))
        .init()
        .expect("a collector");
    // Statistics of one part of the model, gradients of another.
    let only = ParamGroup::from_predicate("attention");
    let stored = GradientStoreConfig::new(1 << 20)
        .with_only(Some(only))
        .with_folder(on_disk.then(|| folder.path().join("store")));
    let fresh = || {
        let config = StatisticsConfig::new().with_elementwise(false);
        config.init(&model).expect("statistics")
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
    let per_sample = PerSample::new(&model, paths.iter().copied()).expect("a model");
    for (i, sample) in store.samples("t").iter().enumerate() {
        let expected = per_sample.gradient(&data, i).expect("a gradient").gradients;
        assert_eq!(sample, &expected.samples()[0]);
        for path in &paths {
            let gradient = expected.get(path).expect("it").to_full().to_data();
            let found = store.gradient("t", sample.id(), path).expect("it");
            assert_eq!(found.to_vec(), gradient.iter::<f32>().collect::<Vec<_>>());
        }
    }

    let other = Small::init_with(&device, 2.0);
    let mut wrong = GradientStoreConfig::new(1 << 20)
        .init(&other)
        .expect("a store");
    let error = collector.collect_batches(&model, "u", [], (&mut statistics, &mut wrong));
    assert!(matches!(error, Err(fisher_train::Error::OtherModel { .. })));
}

/// One number a sample. `counted` is always well; the gradient of `stored` is 0/0 where the number
/// is 0, and its loss is not.
#[derive(burn::module::Module, Debug)]
struct Rooted {
    counted: burn::module::Param<Tensor<1>>,
    stored: burn::module::Param<Tensor<1>>,
}

#[derive(Debug, Clone)]
struct Numbers(Vec<f32>, Device);

impl SampleBatch for Numbers {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.0[index].to_string())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(mapper.list(&self.0), self.1.clone())
    }
}

impl SampleLoss for Rooted {
    type Batch = Numbers;

    fn sample_losses(
        &self,
        Numbers(numbers, device): &Numbers,
    ) -> fisher_train::losses::SampleLosses {
        let x = Tensor::<1>::from_floats(numbers.as_slice(), device);
        let root = (self.stored.val().square() * x.clone()).sqrt();
        let losses = self.counted.val() * (x + 1.0) + root;
        fisher_train::losses::SampleLosses::token_sum(losses, vec![1; numbers.len()])
    }
}

impl Rooted {
    fn init(device: &Device) -> Self {
        let one = || burn::module::Param::from_tensor(Tensor::<1>::from_floats([1.5], device));
        Self {
            counted: one(),
            stored: one(),
        }
    }

    fn statistics(&self) -> Statistics {
        let catalogue = Catalogue::of(self).expect("parameters");
        let counted = burn::module::ParamGroup::from_path("counted");
        let catalogue = catalogue.filter(&counted).expect("one");
        let model = fisher_core::model::hash_weights(self).expect("a hash");
        let device = Backend::Flex.device().expect("a CPU");
        let statistics =
            StatisticsConfig::new().init_for(&catalogue, &HeadLayout::none(), model, &device);
        statistics.expect("statistics")
    }
}

/// A sample that only the store cannot take is in neither, is recorded once, and does not stand in
/// the way of resuming.
#[rstest]
fn a_sample_that_the_store_refuses_is_not_counted(
    #[values(true, false)] on_disk: bool,
    #[values(1, 2, 4)] size: usize,
) {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Rooted::init(&device);
    let numbers = [3.0, 0.0, 2.0, 1.0];
    let batches = || {
        numbers
            .chunks(size)
            .map(|n| Numbers(n.to_vec(), device.clone()))
    };
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = CheckpointConfig::new(folder.path().join("partial.safetensors"), 1);
    let config = CollectorConfig::new().with_checkpoint(Some(checkpoint));
    let skipping = config
        .clone()
        .with_non_finite(NonFinite::Skip)
        .init()
        .expect("a collector");
    let stored =
        GradientStoreConfig::new(1 << 20).with_folder(on_disk.then(|| folder.path().join("s")));
    for resumed in [0, 4] {
        let mut statistics = skipping.resume(model.statistics()).expect("statistics");
        let mut store = stored.init(&model).expect("a store");
        let into = (&mut statistics, &mut store);
        let collected = skipping.collect_batches(&model, "t", batches(), into);
        let collected = collected.expect("collected");
        assert_eq!(collected.resumed, resumed);
        let task = statistics.task("t").expect("it");
        assert_eq!(task.count(), 3);
        let records = task.samples().iter();
        let records: Vec<_> = records.map(|s| (&*s.id, s.skipped.is_some())).collect();
        assert_eq!(
            records,
            [("3", false), ("0", true), ("2", false), ("1", false)]
        );
        let kept: Vec<&str> = store.samples("t").iter().map(|s| s.id()).collect();
        assert_eq!(kept, ["3", "2", "1"]);
    }

    // Without leave to skip it is an error, and the samples before it are in both.
    let strict = CollectorConfig::new().init().expect("a collector");
    let mut statistics = model.statistics();
    let mut store = GradientStoreConfig::new(1 << 20)
        .init(&model)
        .expect("a store");
    let into = (&mut statistics, &mut store);
    let error = strict.collect_batches(&model, "t", batches(), into);
    assert!(
        matches!(&error, Err(Error::Core(CoreError::NonFinite { sample, parameter }))
            if sample == "0" && parameter == "stored"),
        "{error:?}"
    );
    assert_eq!(statistics.task("t").expect("it").count(), 1);
    assert_eq!(store.samples("t").len(), 1);
}

/// A store that comes late is filled with what the checkpoint has counted: what it cannot take is
/// skipped where that is allowed.
#[test]
fn a_store_that_comes_late_skips_what_it_cannot_take() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Rooted::init(&device);
    let batches = || vec![Numbers(vec![3.0, 0.0, 2.0], device.clone())];
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoint = CheckpointConfig::new(folder.path().join("partial.safetensors"), 1);
    let config = CollectorConfig::new().with_checkpoint(Some(checkpoint));
    let skipping = config
        .clone()
        .with_non_finite(NonFinite::Skip)
        .init()
        .expect("a collector");
    let mut statistics = model.statistics();
    let collected = skipping.collect_batches(&model, "t", batches(), &mut statistics);
    assert_eq!(collected.expect("collected").samples, 3);

    let run = |collector: &Collector| {
        let mut statistics = collector.resume(model.statistics()).expect("statistics");
        let mut store = GradientStoreConfig::new(1 << 20)
            .init(&model)
            .expect("a store");
        let into = (&mut statistics, &mut store);
        let collected = collector.collect_batches(&model, "t", batches(), into)?;
        Ok::<_, Error>((collected.resumed, store.samples("t").len()))
    };
    assert_eq!(run(&skipping).expect("collected"), (3, 2));
    let error = run(&config.init().expect("a collector")).expect_err("not finite");
    assert!(matches!(error, Error::Core(CoreError::NonFinite { .. })));
}

/// A store on disk is ahead of the checkpoint after a power cut: its samples are taken as they are
/// if they are the same, and refused if not.
#[rstest]
fn a_store_may_be_ahead_of_the_checkpoint(
    #[values(1, 3)] size: usize,
    #[values(Precision::Float32, Precision::BFloat16)] precision: Precision,
) {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Small::init(&device);
    let data = Sequences::made_up(6, 5, &device);
    let folder = tempfile::tempdir().expect("a folder");
    let stored = GradientStoreConfig::new(0)
        .with_precision(precision)
        .with_folder(Some(folder.path().into()));
    let collector = CollectorConfig::new().init().expect("a collector");
    let collect = |data: &Sequences, statistics: &mut Statistics| {
        let mut store = stored.init(&model).expect("a store");
        let into = (statistics, &mut store);
        let collected = collector.collect_batches(&model, "t", data.batches(size), into)?;
        Ok::<_, Error>((
            collected.samples,
            collected.only_stored,
            store.samples("t").len(),
        ))
    };
    let mut straight = fresh(&model);
    assert_eq!(collect(&data, &mut straight).expect("it"), (6, 0, 6));

    // The checkpoint is gone, the store is not.
    let mut again = fresh(&model);
    assert_eq!(collect(&data, &mut again).expect("it"), (6, 0, 6));
    assert_eq!(bytes(&again), bytes(&straight));
    // Data that stops earlier: the store is of more samples than the statistics.
    let mut fewer = fresh(&model);
    assert_eq!(
        collect(&data.slice(0..3), &mut fewer).expect("it"),
        (3, 3, 6)
    );

    // Other data under the same ids.
    let mut other = data.clone();
    other.tokens = data.tokens.clone().flip([1]);
    let error = collect(&other, &mut fresh(&model)).expect_err("other gradients");
    assert!(
        matches!(&error, Error::Core(CoreError::OtherSample { task, sample, what })
            if task == "t" && sample == "sample/0" && what.contains("another gradient")),
        "{error}"
    );
    let mut other = data.clone();
    other.labels = other.labels.slice_fill([0..1, 0..1], IGNORE);
    let error = collect(&other, &mut fresh(&model)).expect_err("fewer labels");
    assert!(
        error.to_string().contains("another number of tokens"),
        "{error}"
    );
}

/// Gradients of drawn labels do not go where those of the data are.
#[test]
fn a_store_is_of_one_kind_of_fisher() {
    let device = Backend::Flex.device().expect("a CPU").autodiff();
    let model = Small::init(&device);
    let config = StatisticsConfig::new().with_kind(FisherKind::MonteCarlo);
    let mut drawn = config.init(&model).expect("statistics");
    let collector = CollectorConfig::new().init().expect("a collector");
    let folder = tempfile::tempdir().expect("a folder");
    let stored = GradientStoreConfig::new(0).with_folder(Some(folder.path().into()));
    let mut store = stored.init(&model).expect("a store");
    let error = collector.collect_batches(&model, "t", [], (&mut drawn, &mut store));
    let error = error.expect_err("another kind").to_string();
    assert!(
        error.contains("monte_carlo") && error.contains("empirical"),
        "{error}"
    );
    drop(store);
    let drawn_store = stored.clone().with_kind(FisherKind::MonteCarlo);
    let error = drawn_store
        .init(&model)
        .expect_err("another kind")
        .to_string();
    assert!(error.contains("Fisher kind"), "{error}");
    let store = GradientStoreConfig::new(1 << 20).with_kind(FisherKind::MonteCarlo);
    let mut store = store.init(&model).expect("a store");
    let collected = collector.collect_batches(&model, "t", [], (&mut drawn, &mut store));
    assert_eq!(collected.expect("nothing").samples, 0);
}

/// A path that cannot be written is known before the first sample is taken; a folder that is not there
/// is made.
#[test]
fn a_checkpoint_can_be_written_before_the_work_begins() {
    let (_, model, data) = setup(Backend::Flex).expect("a CPU");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").expect("written");
    let mut given = 0;
    let mut collect = |path: std::path::PathBuf, task: &str| {
        let collector =
            CollectorConfig::new().with_checkpoint(Some(CheckpointConfig::new(path, 100)));
        let batches = data.batches(3);
        let batches = batches.into_iter().inspect(|_| given += 1);
        let collected = collector.init().expect("a collector").collect_batches(
            &model,
            task,
            batches,
            &mut fresh(&model),
        );
        (collected.map(|_| ()), given)
    };
    for wrong in [file.join("checkpoint"), folder.path().into()] {
        let (refused, given) = collect(wrong, "task");
        let error = refused.expect_err("it cannot be written");
        assert!(
            matches!(error, Error::Core(CoreError::Io { .. })),
            "{error}"
        );
        assert_eq!(given, 0, "batches taken");
    }
    let path = folder.path().join("a/b/checkpoint");
    // A task's name stands before that of every accumulator, in a header of 100 MB at most.
    let (refused, given) = collect(path.clone(), &"long ".repeat(1 << 20));
    let error = refused.expect_err("the header would be too long");
    assert!(
        matches!(error, Error::Core(CoreError::Header { .. })),
        "{error}"
    );
    assert_eq!(given, 0, "batches taken");
    collect(path.clone(), "task").0.expect("a collection");
    Statistics::<PerToken>::load(path, &Backend::Flex.device().expect("a CPU")).expect("saved");
}
