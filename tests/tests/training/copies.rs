//! A parameter's id is no identity: copies beside a model, such as teachers, and what is really tied.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use fisher_core::model::{Catalogue, Ties, new_ids};
use fisher_core::statistics::{Statistics, StatisticsConfig};
use fisher_metrics::damping::Damping;
use fisher_metrics::pruning::{PruningConfig, Scope, Scores};
use fisher_metrics::scaling::ScalingConfig;
use fisher_metrics::weights::Weights;
use fisher_tests::backend::Backend;
use fisher_tests::models::{Sequences, Small, made_up};
use fisher_tests::tolerance::{BACKWARD, TAPS, assert_close};
use fisher_train::Error;
use fisher_train::apply::{EwcConfig, FisherOptimizerConfig, MergeConfig, MergeSource};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::capture::Engine;
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use rstest::rstest;

/// Feature vectors with classes.
#[derive(Debug, Clone)]
struct Points {
    x: Tensor<2>,
    classes: Tensor<1, Int>,
    ids: Vec<String>,
}

impl Points {
    fn made_up(count: usize, device: &Device) -> Self {
        let value = |k: usize| (0.7 + 1.3 * k as f32).sin();
        let x: Vec<f32> = (0..4 * count).map(value).collect();
        let classes: Vec<i64> = (0..count).map(|k| (k * k % 3) as i64).collect();
        Self {
            x: Tensor::from_data(TensorData::new(x, [count, 4]), device),
            classes: Tensor::from_data(TensorData::new(classes, [count]), device),
            ids: (0..count).map(|i| format!("point/{i}")).collect(),
        }
    }
}

impl SampleBatch for Points {
    fn len(&self) -> usize {
        self.ids.len()
    }

    fn id(&self, index: usize) -> Option<String> {
        Some(self.ids[index].clone())
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self {
            x: mapper.tensor(&self.x),
            classes: mapper.tensor(&self.classes),
            ids: mapper.list(&self.ids),
        }
    }
}

#[derive(Module, Debug)]
struct Net {
    hidden: Linear,
    output: Linear,
}

impl Net {
    fn init(phase: f32, device: &Device) -> Self {
        let net = Self {
            hidden: LinearConfig::new(4, 5).init(device),
            output: LinearConfig::new(5, 3).init(device),
        };
        made_up(net, phase)
    }

    fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        self.output.forward(self.hidden.forward(x).tanh())
    }
}

impl SampleLoss for Net {
    type Batch = Points;

    fn sample_losses(&self, batch: &Points) -> SampleLosses {
        SampleLosses::classification(self.logits(batch.x.clone()), batch.classes.clone())
    }
}

/// A model beside a copy of it, which comes first and takes part in the loss.
#[derive(Module, Debug)]
struct Learner {
    teacher: Net,
    student: Net,
}

impl SampleLoss for Learner {
    type Batch = Points;

    fn sample_losses(&self, batch: &Points) -> SampleLosses {
        let teacher = self.teacher.logits(batch.x.clone()).mul_scalar(0.5);
        let logits = self.student.logits(batch.x.clone()) + teacher;
        SampleLosses::classification(logits, batch.classes.clone())
    }
}

/// What a teacher can be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Teacher {
    /// A frozen copy of the student as it is.
    Frozen,
    /// A frozen copy whose weights have moved: a moving average of the student.
    Average,
    /// A copy that has moved, and trains too.
    Training,
}

struct Shrink;

impl ModuleMapper for Shrink {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let tracked = tensor.is_require_grad();
            let smaller = tensor.detach().mul_scalar(0.9);
            smaller.detach().set_require_grad(tracked)
        })
    }
}

fn learner(teacher: Teacher, phase: f32, device: &Device) -> Learner {
    let student = Net::init(phase, device);
    let copy = student.clone();
    Learner {
        teacher: match teacher {
            Teacher::Frozen => copy.no_grad(),
            Teacher::Average => copy.no_grad().map(&mut Shrink),
            Teacher::Training => copy.map(&mut Shrink),
        },
        student,
    }
}

fn weights<M: Module>(model: &M) -> BTreeMap<String, Vec<f64>> {
    let weights = Weights::of(model).expect("weights");
    let weights = weights.iter();
    weights
        .map(|(path, w)| (path.to_owned(), w.to_vec()))
        .collect()
}

fn collected(learner: &Learner, engine: Engine, device: &Device) -> Statistics {
    let config = StatisticsConfig::new();
    let mut statistics = config.init(learner).expect("empty");
    let collector = CollectorConfig::new()
        .with_engine(engine)
        .init()
        .expect("a collector");
    collector
        .collect_batches(
            learner,
            "task",
            [Points::made_up(6, device)],
            &mut statistics,
        )
        .expect("a collection");
    statistics
}

fn fisher(statistics: &Statistics, path: &str) -> Vec<f64> {
    let task = statistics.task("task").expect("a task");
    let welford = task.parameter(path).expect("F").elementwise();
    let moments = welford.expect("elements").read().expect("values");
    moments.mean.expect("samples")
}

/// Every path of the teacher's as it was; and some of the student's are not.
fn only_the_student_moved(before: &Learner, after: &Learner) {
    assert_eq!(
        weights(&before.teacher),
        weights(&after.teacher),
        "the teacher"
    );
    assert_ne!(
        weights(&before.student),
        weights(&after.student),
        "the student"
    );
    let ids = |net: &Net| [net.hidden.weight.id, net.output.weight.id];
    assert_eq!(ids(&before.student), ids(&after.student));
    assert_eq!(ids(&before.teacher), ids(&after.teacher));
}

#[rstest]
fn a_copy_is_a_parameter_of_its_own(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    for teacher in [Teacher::Frozen, Teacher::Average, Teacher::Training] {
        let learner = learner(teacher, 0.4, &device);
        let catalogue = Catalogue::of(&learner).expect("parameters");
        let trains = teacher == Teacher::Training;
        assert_eq!(catalogue.parameters().len(), if trains { 8 } else { 4 });
        assert!(catalogue.parameters().iter().all(|p| p.tied().is_empty()));
        assert_eq!(catalogue.get("teacher.hidden.weight").is_some(), trains);
        let ties = Ties::of(&learner).expect("values");
        assert_eq!(ties.clash().is_some(), trains, "{teacher:?}");
        let apart = ties.separate(learner.clone());
        assert_ne!(
            apart.student.hidden.weight.id,
            apart.teacher.hidden.weight.id
        );
        assert_eq!(
            apart.student.hidden.weight.id == learner.student.hidden.weight.id,
            !trains,
            "the one that trains keeps its id"
        );
    }
    // What is equal in all of it, and trains, may be either.
    let student = Net::init(0.4, &device);
    let unclear = Learner {
        teacher: student.clone(),
        student: student.clone(),
    };
    let error = Catalogue::of(&unclear).expect_err("a copy or a tie");
    assert!(
        matches!(&error, fisher_core::Error::Copies { first, second }
            if first == "teacher" && second == "student"),
        "{error}"
    );
    let renewed = Learner {
        teacher: new_ids(student.clone()),
        student,
    };
    assert_eq!(
        Catalogue::of(&renewed).expect("eight").parameters().len(),
        8
    );

    // What has not moved in a copy that has, is no tie either.
    let mut partly = learner(Teacher::Training, 0.4, &device);
    partly.teacher.output = partly.student.output.clone();
    let catalogue = Catalogue::of(&partly).expect("parameters");
    assert!(catalogue.get("student.output.weight").is_some());
    assert!(catalogue.get("teacher.output.weight").is_some());
}

#[rstest]
fn ties_are_written_together(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let model = Small::init(&device.autodiff());
    let frozen = model.clone().no_grad();
    for model in [frozen.clone(), frozen.valid(), model] {
        let table = weights(&model)["embedding.weight"].clone();
        let new: Vec<f64> = (0..table.len()).map(|k| k as f64 / 64.0).collect();
        let new_weights = Weights::from(std::collections::BTreeMap::from([(
            "embedding.weight".to_owned(),
            new.clone(),
        )]));
        let written = new_weights.write(model).expect("its own parameter");
        let written = weights(&written);
        assert_eq!(written["embedding.weight"], new);
        assert_eq!(written["head"], new);
    }
}

#[test]
fn a_mask_on_what_is_tied_comes_off_everywhere() {
    let device = Device::flex().autodiff();
    let model = Small::init(&device);
    let mut statistics = StatisticsConfig::new().init(&model).expect("statistics");
    CollectorConfig::new()
        .init()
        .expect("a collector")
        .collect_batches(
            &model,
            "task",
            [Sequences::made_up(4, 5, &device)],
            &mut statistics,
        )
        .expect("a collection");
    let scores = Scores::elementwise(&statistics, "task").expect("scores");
    // Half of each parameter, the table among them.
    let pruning = PruningConfig::new(0.5)
        .with_scope(Scope::Tensor)
        .with_protected_roles(Vec::new());
    let masks = pruning.init().expect("s").forward(&scores).expect("masks");
    let (pruned, removed) = masks.apply(model.clone()).expect("its own");
    let gone = weights(&pruned);
    assert!(gone["head"].contains(&0.0));
    assert_eq!(gone["head"], gone["embedding.weight"]);
    let restored = removed.restore(pruned).expect("its own");
    assert_eq!(weights(&restored), weights(&model));
}

#[rstest]
fn a_teacher_keeps_its_weights(
    #[values(Teacher::Frozen, Teacher::Average)] teacher: Teacher,
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = learner(teacher, 0.4, &device);
    let statistics = collected(&model, Engine::Auto, &device);
    assert!(statistics.paths().all(|path| path.starts_with("student.")));

    let scores = Scores::elementwise(&statistics, "task").expect("scores");
    let masks = PruningConfig::new(0.5).init().expect("s");
    let masks = masks.forward(&scores).expect("masks");
    let (pruned, removed) = masks.apply(model.clone()).expect("its own");
    only_the_student_moved(&model, &pruned);
    only_the_student_moved(&model, &masks.enforce(model.clone()).expect("its own"));
    let restored = removed.restore(pruned).expect("its own");
    assert_eq!(weights(&restored), weights(&model));

    let other = learner(teacher, 1.9, &device);
    let theirs = collected(&other, Engine::Auto, &device);
    let source = |model, statistics| MergeSource {
        model,
        statistics,
        task: "task",
        weight: 1.0,
    };
    let merging = MergeConfig::new().init().expect("ε");
    let merged = merging
        .forward(&[source(&model, &statistics), source(&other, &theirs)])
        .expect("one architecture");
    only_the_student_moved(&model, &merged.model);

    let only_student = weights(&other).into_iter();
    let only_student = only_student.filter(|(path, _)| path.starts_with("student."));
    let written = Weights::from(only_student.collect::<BTreeMap<_, _>>());
    only_the_student_moved(&model, &written.write(model.clone()).expect("its own"));
}

fn scaling() -> ScalingConfig {
    ScalingConfig::new().with_damping(Damping::Absolute(0.1))
}

#[rstest]
fn a_frozen_teacher_is_not_stepped(
    #[values(Teacher::Frozen, Teacher::Average)] teacher: Teacher,
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = learner(teacher, 0.4, &device);
    let statistics = collected(&model, Engine::Auto, &device);
    let sgd = SgdConfig::new().init();
    let mut optimizer = FisherOptimizerConfig::new()
        .with_scaling(scaling())
        .init(sgd, &statistics, "task", &model)
        .expect("F");
    let batch = Points::made_up(6, &device);
    let loss = model.sample_losses(&batch).sums().clone().sum();
    let raw = loss.backward();
    let gradient = model.student.hidden.weight.grad(&raw).expect("reached");
    let gradient: Vec<f64> = gradient.into_data().iter().collect();
    let gradients = GradientsParams::from_grads(raw, &model);
    let stepped = optimizer.step(0.5, model.clone(), gradients).expect("F");
    only_the_student_moved(&model, &stepped);
    let f = fisher(&statistics, "student.hidden.weight");
    let before = &weights(&model)["student.hidden.weight"];
    let expected: Vec<f64> = (0..f.len())
        .map(|k| before[k] - 0.5 * gradient[k] / (f[k] + 0.1))
        .collect();
    let found = &weights(&stepped)["student.hidden.weight"];
    assert_close("step", found, &expected, BACKWARD, 1.0);
}

#[test]
fn optimizers_cannot_tell_two_parameters_of_one_id() {
    let device = Device::flex().autodiff();
    let model = learner(Teacher::Training, 0.4, &device);
    let statistics = collected(&model, Engine::Auto, &device);
    let sgd = || SgdConfig::new().init();
    let optimizer = FisherOptimizerConfig::new().with_scaling(scaling()).init(
        sgd(),
        &statistics,
        "task",
        &model,
    );
    let Err(error) = optimizer else {
        panic!("two parameters of one id");
    };
    assert!(
        matches!(&error, Error::SharedId { first, second }
            if first == "teacher.hidden.weight" && second == "student.hidden.weight"),
        "{error}"
    );
    let model = Learner {
        teacher: new_ids(model.teacher.clone()),
        ..model
    };
    let optimizer = FisherOptimizerConfig::new().with_scaling(scaling()).init(
        sgd(),
        &statistics,
        "task",
        &model,
    );
    assert!(optimizer.is_ok());
}

/// By every engine a parameter's gradient is its own, whatever id a copy has.
#[rstest]
fn gradients_are_of_the_paths_they_are_asked_for(
    #[values(Teacher::Frozen, Teacher::Average, Teacher::Training)] teacher: Teacher,
    #[values(Engine::Loop, Engine::Trace)] engine: Engine,
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = learner(teacher, 0.4, &device);
    let found = collected(&model, engine, &device);
    // The same model, no id of which stands for two.
    let apart = Learner {
        teacher: new_ids(model.teacher.clone()),
        ..model
    };
    let expected = collected(&apart, Engine::Loop, &device);
    assert!(expected.paths().eq(found.paths()));
    for path in expected.paths() {
        let [found, expected] = [&found, &expected].map(|of| fisher(of, path));
        assert!(expected.iter().any(|f| *f > 0.0), "{path}");
        assert_close(path, &found, &expected, TAPS, 1e-2);
    }
}

/// The penalty holds the student alone: a moving average moves as it likes.
#[test]
fn the_penalty_is_the_students() {
    let device = Device::flex().autodiff();
    let model = learner(Teacher::Average, 0.4, &device);
    let statistics = collected(&model, Engine::Auto, &device);
    let mut ewc = EwcConfig::new(2.0).init().expect("λ");
    ewc.protect(&statistics, "task", &model).expect("F");
    let penalty = |model: &Learner| -> f64 {
        let penalty = ewc.penalty(model).expect("its own");
        penalty.expect("a task").into_scalar()
    };
    let moved = |net: &Net| net.clone().map(&mut Shrink);
    let teacher_moved = Learner {
        teacher: moved(&model.teacher),
        student: model.student.clone(),
    };
    assert_eq!(penalty(&teacher_moved), 0.0);
    let student_moved = Learner {
        teacher: model.teacher.clone(),
        student: moved(&model.student),
    };
    let f = |path: &String| fisher(&statistics, path);
    let expected: f64 = weights(&model)
        .iter()
        .filter(|(path, _)| path.starts_with("student."))
        .flat_map(|(path, w)| f(path).into_iter().zip(w.clone()))
        .map(|(f, w)| f * (0.1 * w).powi(2))
        .sum();
    let found = penalty(&student_moved);
    assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
}

/// Weights that were written or masked still meet their inputs under one strategy.
#[test]
fn checkpoints_of_gradients_stay_as_the_device_has_them() {
    let device = Device::flex().autodiff().gradient_checkpointing();
    let net = Net::init(0.4, &device);
    let mut statistics = StatisticsConfig::new().init(&net).expect("statistics");
    let batch = Points::made_up(4, &device);
    CollectorConfig::new()
        .with_engine(Engine::Loop)
        .init()
        .expect("a collector")
        .collect_batches(&net, "task", [batch.clone()], &mut statistics)
        .expect("a collection");
    let scores = Scores::elementwise(&statistics, "task").expect("scores");
    let masks = PruningConfig::new(0.5).init().expect("s");
    let masks = masks.forward(&scores).expect("masks");
    let (pruned, removed) = masks.apply(net).expect("its own");
    let loss = pruned.sample_losses(&batch).sums().clone().sum();
    assert!(pruned.hidden.weight.grad(&loss.backward()).is_some());
    let restored = removed.restore(pruned).expect("its own");
    let loss = restored.sample_losses(&batch).sums().clone().sum();
    assert!(restored.hidden.weight.grad(&loss.backward()).is_some());
}
