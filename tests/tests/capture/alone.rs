//! What a batch says of its samples must be what each says alone: how it goes wrong, and is found.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use burn::module::{Module, ModuleDisplay, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::gradient::{PerToken, Raw};
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::agree::agree;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small, made_up};
use fisher_tests::subjects::Talker;
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::{Engine, check};
use fisher_train::collect::{Collected, CollectorConfig};
use fisher_train::losses::SampleLosses;
use fisher_train::sketch::SketchConfig;
use fisher_train::{Error, Result};
use rstest::rstest;

/// A collection, and how many samples were counted.
fn collect<M: SampleLoss>(
    model: &M,
    batches: Vec<M::Batch>,
    engine: Engine,
) -> (Result<Collected>, usize) {
    let mut statistics = StatisticsConfig::new().init(model).expect("statistics");
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .init()
        .expect("a collector");
    let collected = collector.collect_batches(model, "task", batches, &mut statistics);
    let counted = statistics.task("task").map_or(0, |task| task.count());
    (collected, counted)
}

/// What is refused, and after how many samples.
fn refused<M: SampleLoss>(model: &M, batches: Vec<M::Batch>, engine: Engine) -> (Error, usize) {
    let (collected, counted) = collect(model, batches, engine);
    (collected.expect_err("wrong numbers"), counted)
}

/// Sequences of vectors, of any lengths, one after the other on one axis.
#[derive(Debug, Clone)]
struct Packed {
    /// `[positions of all, 2]`
    rows: Tensor<2>,
    lengths: Vec<usize>,
    ids: Vec<String>,
}

impl Packed {
    fn of(lengths: &[usize], first: usize, device: &Device) -> Self {
        let total: usize = lengths.iter().sum();
        let value = |k: usize| (0.9 * ((k + 31 * first) * k % 97) as f32).sin();
        let values: Vec<f32> = (0..2 * total).map(value).collect();
        Self {
            rows: Tensor::from_data(TensorData::new(values, [total, 2]), device),
            lengths: lengths.to_vec(),
            ids: (first..first + lengths.len())
                .map(|i| format!("packed {i}"))
                .collect(),
        }
    }
}

impl SampleBatch for Packed {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            rows: mapper.tensor(&self.rows),
            lengths: mapper.list(&self.lengths),
            ids: mapper.list(&self.ids),
        }
    }

    fn sample(&self, index: usize) -> Self {
        let before: usize = self.lengths[..index].iter().sum();
        Self {
            rows: self.rows.clone().narrow(0, before, self.lengths[index]),
            lengths: vec![self.lengths[index]],
            ids: vec![self.ids[index].clone()],
        }
    }
}

/// One label a sequence, whatever its length.
#[derive(Module, Debug)]
struct Packer {
    hidden: Linear,
    head: Linear,
}

impl Packer {
    fn init(device: &Device) -> Self {
        let model = Self {
            hidden: LinearConfig::new(2, 3).init(device),
            head: LinearConfig::new(3, 1).init(device),
        };
        made_up(model, 0.2)
    }
}

impl SampleLoss for Packer {
    type Batch = Packed;

    fn sample_losses(&self, batch: &Packed) -> SampleLosses {
        let x = self.hidden.forward(batch.rows.clone()).tanh();
        let scores = self.head.forward(x).square();
        let mut start = 0;
        let sums = batch.lengths.iter().map(|&length| {
            let own = scores.clone().narrow(0, start, length);
            start += length;
            own.sum()
        });
        let losses = Tensor::cat(sums.collect(), 0);
        SampleLosses::token_sum(losses, vec![1; batch.lengths.len()])
    }
}

/// Rows of samples of any lengths on one axis are no axis of samples.
#[rstest]
fn packed_batches_go_by_the_loop(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Packer::init(&device);
    let config = StatisticsConfig::new();
    for lengths in [[4, 4, 4], [3, 5, 4], [4, 3, 5], [5, 3, 4]] {
        let packed = Packed::of(&lengths, 0, &device);
        let batches = std::slice::from_ref(&packed);
        agree::<_, PerToken>(&model, batches, &config, Engine::Auto);
        let (error, counted) = refused(&model, vec![packed], Engine::Trace);
        assert!(error.to_string().contains("[12, 2]"), "{error}");
        assert_eq!(counted, 0);
    }
}

/// Tokens before samples: as many rows, in another order.
#[test]
fn positions_before_samples_are_not_mistaken_for_them() {
    #[derive(Module, Debug)]
    struct Turned {
        embedding: Embedding,
        head: Linear,
    }
    impl SampleLoss for Turned {
        type Batch = Sequences;
        fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
            let [samples, length] = batch.tokens.dims();
            let x = self.embedding.forward(batch.tokens.clone()).tanh();
            let x = x.swap_dims(0, 1).reshape([length * samples, 4]);
            let logits = self.head.forward(x).reshape([length, samples, 7]);
            SampleLosses::cross_entropy(logits.swap_dims(0, 1), batch.labels.clone())
        }
    }
    let device = Device::flex().autodiff();
    let model = Turned {
        embedding: EmbeddingConfig::new(7, 4).init(&device),
        head: LinearConfig::new(4, 7).init(&device),
    };
    let model = made_up(model, 0.1);
    let config = StatisticsConfig::new();
    for length in [3, 6] {
        let data = Sequences::made_up(3, length, &device);
        let batches = std::slice::from_ref(&data);
        agree::<_, PerToken>(&model, batches, &config, Engine::Auto);
        let (error, counted) = refused(&model, vec![data], Engine::Trace);
        let Error::LeftToTheLoop { parameters } = error else {
            panic!("{error}");
        };
        assert!(parameters.contains("head.weight"), "{parameters}");
        assert!(
            parameters.contains("lost sight of at Reshape"),
            "{parameters}"
        );
        assert_eq!(counted, 0);
    }
}

/// Sequences of several lengths, padded, with a label each.
#[derive(Debug, Clone)]
struct Padded {
    sequences: Sequences,
    lengths: Vec<usize>,
}

impl Padded {
    fn of(lengths: &[usize], first: usize, device: &Device) -> Self {
        let longest = lengths.iter().copied().max().expect("a sample");
        let token = |row: usize, at: usize| {
            if at < lengths[row] {
                1 + (((first + row) * 5 + at * at + 3 * at) % 6) as i64
            } else {
                0
            }
        };
        let rows = 0..lengths.len();
        let tokens = rows.flat_map(|row| (0..longest).map(move |at| (row, at)));
        let tokens: Vec<i64> = tokens.map(|(row, at)| token(row, at)).collect();
        let labels: Vec<i64> = (0..lengths.len() as i64)
            .map(|i| (i + first as i64) % 3)
            .collect();
        let tensor =
            |v, width| Tensor::from_data(TensorData::new(v, [lengths.len(), width]), device);
        Self {
            sequences: Sequences {
                tokens: tensor(tokens, longest),
                labels: tensor(labels, 1),
                ids: (first..first + lengths.len())
                    .map(|i| format!("padded {i}"))
                    .collect(),
            },
            lengths: lengths.to_vec(),
        }
    }
}

impl SampleBatch for Padded {
    fn len(&self) -> usize {
        self.sequences.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        self.sequences.id(index)
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            sequences: self.sequences.map_samples(mapper),
            lengths: mapper.list(&self.lengths),
        }
    }

    fn sample(&self, index: usize) -> Self {
        let mut sample = SampleMapper::cut(self, index);
        let tokens = sample.sequences.tokens;
        sample.sequences.tokens = tokens.narrow(1, 0, self.lengths[index]);
        sample
    }
}

/// Takes the mean over all positions, padding among them.
#[derive(Module, Debug)]
struct Pooler {
    embedding: Embedding,
    head: Linear,
}

impl Pooler {
    fn init(device: &Device) -> Self {
        let model = Self {
            embedding: EmbeddingConfig::new(7, 4).init(device),
            head: LinearConfig::new(4, 3).init(device),
        };
        made_up(model, 0.5)
    }
}

impl SampleLoss for Pooler {
    type Batch = Padded;

    fn sample_losses(&self, batch: &Padded) -> SampleLosses {
        let Sequences {
            tokens,
            labels,
            ids,
        } = batch.sequences.clone();
        let x = self.embedding.forward(tokens);
        let pooled = x.mean_dim(1).reshape([ids.len(), 4]);
        let logits = self.head.forward(pooled);
        SampleLosses::classification(logits, labels.reshape([ids.len()]))
    }
}

/// Data sorted by length begins with batches of equal lengths, in which nothing is padded.
#[rstest]
fn padding_that_comes_late_is_looked_at(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Engine::Auto, Engine::Trace)] engine: Engine,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Pooler::init(&device);
    let lengths = [[4, 4, 4], [4, 4, 4], [5, 5, 5], [5, 6, 7]];
    let batches = lengths.iter().enumerate();
    let batches = batches.map(|(at, lengths)| Padded::of(lengths, 3 * at, &device));
    let batches: Vec<Padded> = batches.collect();
    let config = StatisticsConfig::new();
    agree::<_, PerToken>(&model, &batches[..3], &config, engine);
    let (error, counted) = refused(&model, batches, engine);
    assert!(matches!(error, Error::Disagree { .. }), "{error}");
    assert_eq!(counted, 9);
}

/// Where the positions are as many as before, and tokens say nothing of lengths, the losses of one sample in 32
/// tell.
#[test]
fn padding_of_a_shape_that_came_before_is_found_in_time() {
    let device = Device::flex().autodiff();
    let model = Pooler::init(&device);
    let lengths = |at: usize| if at < 8 { [6, 6, 6, 6] } else { [1, 2, 3, 6] };
    let batches = (0..32).map(|at| Padded::of(&lengths(at), 4 * at, &device));
    let (error, counted) = refused(&model, batches.collect(), Engine::Trace);
    assert!(matches!(error, Error::LossesDisagree { .. }), "{error}");
    assert!((32..=128).contains(&counted), "{counted}");
}

/// By the loop gradients are those of samples alone; a batch that says something else is not the same loss.
#[test]
fn the_loop_is_compared_with_the_batch() {
    let device = Device::flex().autodiff();
    let model = Pooler::init(&device);
    let padded = Padded::of(&[5, 6, 7], 0, &device);
    for engine in [Engine::Loop, Engine::Auto] {
        let (error, counted) = refused(&model, vec![padded.clone()], engine);
        let is = matches!(error, Error::LossesDisagree { .. } | Error::Disagree { .. });
        assert!(is, "{error}");
        assert_eq!(counted, 0);
    }
}

/// Gives another sample than it says.
#[derive(Debug, Clone)]
struct Mistaken(Sequences, fn(usize, usize) -> usize);

impl SampleBatch for Mistaken {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        self.0.id(index)
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(self.0.map_samples(mapper), self.1)
    }

    fn sample(&self, index: usize) -> Self {
        let wrong = (self.1)(index, self.0.ids.len());
        let mut sample = self.0.sample(wrong);
        sample.ids = vec![self.0.ids[index].clone()];
        Self(sample, self.1)
    }
}

#[derive(Module, Debug)]
struct OfMistaken<M> {
    model: M,
}

impl<M: SampleLoss<Batch = Sequences> + ModuleDisplay> SampleLoss for OfMistaken<M> {
    type Batch = Mistaken;

    fn sample_losses(&self, batch: &Mistaken) -> SampleLosses {
        self.model.sample_losses(&batch.0)
    }
}

#[rstest]
fn another_sample_than_was_asked_for_is_found(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let data = Sequences::made_up(9, 5, &device);
    // Of equal numbers of tokens, or those would tell.
    let row = |at: usize| data.slice(at..at + 1);
    let rows = |of: fn(Sequences) -> Tensor<2, Int>| {
        Tensor::cat([0, 3, 6].map(|at| of(row(at))).to_vec(), 0)
    };
    let equal = Sequences {
        tokens: rows(|r| r.tokens),
        labels: rows(|r| r.labels),
        ids: data.ids[..3].to_vec(),
    };
    for wrong in [|_: usize, _: usize| 0, |at: usize, n: usize| (at + 1) % n] {
        let batch = Mistaken(equal.clone(), wrong);
        let loop_only = OfMistaken {
            model: Small::init(&device),
        };
        let other = OfMistaken {
            model: Talker::init(&device),
        };
        let disagrees = |error: Error| {
            let is = matches!(error, Error::LossesDisagree { .. } | Error::Disagree { .. });
            assert!(is, "{error}");
        };
        disagrees(refused(&loop_only, vec![batch.clone()], Engine::Loop).0);
        disagrees(refused(&other, vec![batch.clone()], Engine::Loop).0);
        disagrees(refused(&other, vec![batch.clone()], Engine::Trace).0);
        let sketch = SketchConfig::new().init().expect("a sketch");
        let sketched = sketch.collect::<_, PerToken>(&loop_only, [batch]);
        disagrees(sketched.expect_err("the wrong sample"));
    }
}

/// Tells each sequence from the others of its batch: alone there is nothing to tell it from.
#[derive(Module, Debug)]
struct Contrastive {
    embedding: Embedding,
    head: Linear,
}

impl SampleLoss for Contrastive {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let samples = batch.ids.len();
        let one = |t: &Tensor<2, Int>| {
            let x = self.embedding.forward(t.clone()).mean_dim(1);
            self.head.forward(x.reshape([samples, 4]).tanh())
        };
        let logits = one(&batch.tokens).matmul(one(&batch.labels.clone().clamp_min(0)).transpose());
        let own = Tensor::arange(0..samples as i64, &logits.device());
        SampleLosses::classification(logits, own)
    }
}

#[rstest]
fn negatives_from_the_batch_are_found(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(Engine::Auto, Engine::Loop)] engine: Engine,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Contrastive {
        embedding: EmbeddingConfig::new(7, 4).init(&device),
        head: LinearConfig::new(4, 4).init(&device),
    };
    let model = made_up(model, 0.1);
    let data = Sequences::made_up(4, 5, &device);
    let (error, counted) = refused(&model, vec![data], engine);
    let Error::LossesDisagree {
        alone, together, ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(alone.abs() < 1e-6 && together > 0.1, "{alone} {together}");
    assert_eq!(counted, 0);
}

/// What [`Scaled`] does to the losses of a batch.
#[derive(Debug, Clone, Copy)]
enum Change {
    Times(f32),
    DividedByBatch,
    /// Times the mean over the batch too.
    Mixed(f32),
}

/// A model with other losses.
#[derive(Module, Debug)]
struct Scaled<M> {
    model: M,
    #[module(skip)]
    change: Change,
}

impl<M: SampleLoss<Batch = Sequences> + ModuleDisplay> SampleLoss for Scaled<M> {
    type Batch = Sequences;

    fn sample_losses(&self, batch: &Sequences) -> SampleLosses {
        let losses = self.model.sample_losses(batch);
        let samples = batch.ids.len();
        losses.map(|sums| match self.change {
            Change::Times(scale) => sums.mul_scalar(scale),
            Change::DividedByBatch => sums.div_scalar(samples as f32),
            Change::Mixed(scale) => (sums.clone() * sums.mean()).mul_scalar(scale),
        })
    }
}

#[rstest]
fn losses_divided_by_the_size_of_the_batch_are_found(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Scaled {
        model: Small::init(&device),
        change: Change::DividedByBatch,
    };
    let data = Sequences::made_up(8, 5, &device);
    let sketch = SketchConfig::new().init().expect("a sketch");
    let sketched = sketch.collect::<_, Raw>(&model, [data.clone()]);
    let error = sketched.expect_err("an eighth");
    assert!(matches!(error, Error::LossesDisagree { .. }), "{error}");
    let (error, _) = refused(&model, vec![data], Engine::Loop);
    assert!(matches!(error, Error::LossesDisagree { .. }), "{error}");
}

/// Whatever the losses' unit is.
#[rstest]
fn mixing_is_found_at_any_scale(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let data = Sequences::made_up(4, 5, &device);
    for scale in [1.0, 1e-6, 1e-24, 1e18] {
        let changed = |change| Scaled {
            model: Talker::init(&device),
            change,
        };
        let checkup = check(&changed(Change::Times(scale)), &data).expect("a checkup");
        assert!(checkup.is_sound(), "{scale:e}: {checkup}");
        let mixed = changed(Change::Mixed(scale));
        let checkup = check(&mixed, &data).expect("a checkup");
        assert!(!checkup.is_sound(), "{scale:e}: {checkup}");
        let off = |difference: &fisher_train::capture::Difference| difference.relative > 0.1;
        assert!(off(&checkup.batch), "{scale:e}: {checkup}");
        assert_eq!(
            checkup.mixed.as_deref(),
            Some("Mul"),
            "{scale:e}: {checkup}"
        );
        for engine in [Engine::Loop, Engine::Trace] {
            let (error, counted) = refused(&mixed, vec![data.clone()], engine);
            let is = matches!(error, Error::LossesDisagree { .. } | Error::Mixed { .. });
            assert!(is, "{scale:e}: {error}");
            assert_eq!(counted, 0);
        }
    }
}

/// A loss that draws anew each time is one draw's: there is nothing that it could be compared with.
#[test]
fn a_random_loss_goes_by_the_loop() {
    thread_local! {
        static DRAWS: Cell<u32> = const { Cell::new(0) };
    }
    #[derive(Module, Debug)]
    struct Random {
        linear: Linear,
        shift: Param<Tensor<1>>,
    }
    impl SampleLoss for Random {
        type Batch = Packed;
        fn sample_losses(&self, batch: &Packed) -> SampleLosses {
            let draw = DRAWS.with(|draws| draws.replace(draws.get() + 1));
            let noise = (1.7 * draw as f32).sin();
            let x = self.linear.forward(batch.rows.clone() + noise) + self.shift.val().unsqueeze();
            let losses = x.square().sum_dim(1).reshape([batch.lengths.len()]);
            SampleLosses::token_sum(losses, vec![1; batch.lengths.len()])
        }
    }
    let device = Device::flex().autodiff();
    let model = Random {
        linear: LinearConfig::new(2, 2).init(&device),
        shift: Param::from_tensor(Tensor::ones([2], &device)),
    };
    let batches: Vec<Packed> = (0..4)
        .map(|at| Packed::of(&[1; 4], 4 * at, &device))
        .collect();
    let (collected, counted) = collect(&model, batches, Engine::Loop);
    assert_eq!(
        (collected.expect("a collection").samples, counted),
        (16, 16)
    );
}

/// What looking costs, in passes by their numbers of samples.
#[test]
fn few_samples_are_looked_at_twice() {
    thread_local! {
        static PASSES: RefCell<BTreeMap<usize, usize>> = const { RefCell::new(BTreeMap::new()) };
    }
    #[derive(Module, Debug)]
    struct Counted {
        model: Pooler,
    }
    impl SampleLoss for Counted {
        type Batch = Padded;
        fn sample_losses(&self, batch: &Padded) -> SampleLosses {
            let samples = batch.lengths.len();
            PASSES.with(|passes| *passes.borrow_mut().entry(samples).or_default() += 1);
            self.model.sample_losses(batch)
        }
    }
    let device = Device::flex().autodiff();
    let batches = || (0..64).map(|at| Padded::of(&[6; 4], 4 * at, &device));
    for (engine, of_one, of_four) in [
        // The first and the last of the first batch, and one in 32; each batch is recorded once.
        (Engine::Trace, 2 + 252 / 32, 64),
        // The first batch, and one in eight.
        (Engine::Loop, 256, 1 + 63 / 8),
    ] {
        let model = Counted {
            model: Pooler::init(&device),
        };
        collect(&model, batches().collect(), engine)
            .0
            .expect("a collection");
        let passes = PASSES.with(|passes| passes.take());
        assert_eq!(
            passes,
            BTreeMap::from([(1, of_one), (4, of_four)]),
            "{engine:?}"
        );
    }
}
