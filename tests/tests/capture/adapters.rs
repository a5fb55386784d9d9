//! The heads of low-rank adapters.

use burn::module::{Lora, Module, ParamGroup};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::gradient::PerToken;
use fisher_core::grouping::{
    Attention, AttentionConfig, Block, Fused, GroupReduction, Grouping, HeadLayout, Scheme,
};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::statistics::StatisticsConfig;
use fisher_core::store::GradientStoreConfig;
use fisher_metrics::conflicts::{ConflictsConfig, SliceBy};
use fisher_tests::backend::Backend;
use fisher_tests::models::made_up;
use fisher_tests::tolerance::{BACKWARD, assert_close};
use fisher_train::batch::{SampleBatch, SampleLoss, SampleMapper};
use fisher_train::collect::CollectorConfig;
use fisher_train::losses::SampleLosses;
use rstest::rstest;

const WIDTH: usize = 8;
const HEADS: usize = 2;

/// Attention with Burn's adapters, and an output that has them too.
#[derive(Module, Debug)]
struct Adapted {
    attention: MultiHeadAttention,
    out: Linear,
}

impl Adapted {
    fn init(device: &Device) -> Self {
        let attention = MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0);
        let model = Self {
            attention: attention.init(device),
            out: LinearConfig::new(WIDTH, 1).init(device),
        };
        let adapters = Lora::new(3, 6.0).set_param_group(ParamGroup::from_predicate("attention"));
        made_up(made_up(model, 0.4).apply_lora(adapters), 0.9)
    }
}

#[derive(Clone)]
struct Rows(Tensor<3>);

impl Rows {
    fn made_up(count: usize, device: &Device) -> Self {
        let values = (0..count * 4 * WIDTH).map(|k| (0.37 * (k * k % 97) as f32).sin());
        let data = TensorData::new(values.collect::<Vec<f32>>(), [count, 4, WIDTH]);
        Self(Tensor::from_data(data, device))
    }
}

impl SampleBatch for Rows {
    fn len(&self) -> usize {
        self.0.dims()[0]
    }

    fn map_samples(&self, mapper: &mut SampleMapper) -> Self {
        Self(mapper.tensor(&self.0))
    }
}

impl SampleLoss for Adapted {
    type Batch = Rows;

    fn sample_losses(&self, batch: &Rows) -> SampleLosses {
        let attended = self.attention.forward(MhaInput::self_attn(batch.0.clone()));
        let y = self.out.forward(attended.context.tanh()).square();
        let [samples, positions, _] = y.dims();
        let sums = y.sum_dim(1).reshape([samples]);
        SampleLosses::token_sum(sums, vec![positions as u64; samples])
    }
}

fn path(name: &str, factor: &str) -> String {
    format!("attention.{name}.weight.lora.{factor}")
}

#[rstest]
fn burns_adapters_have_the_heads_of_what_they_adapt(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let device = device.autodiff();
    let model = Adapted::init(&device);
    let catalogue = Catalogue::of(&model).expect("parameters");
    let config = AttentionConfig::new(HEADS);
    let layout = HeadLayout::recognize(&catalogue, &config).expect("heads");
    let headless: Vec<&str> = layout.headless().collect();
    let shared = ["key", "query", "value"].map(|name| path(name, "a"));
    assert_eq!(
        headless,
        [&*shared[0], &path("output", "b"), &shared[1], &shared[2]]
    );
    // The frozen weights have no gradients, so the adapters stand for them.
    let attention = &layout.attention()[0];
    let paths: Vec<&str> = attention.paths().collect();
    assert_eq!(
        paths,
        [
            path("key", "b"),
            path("output", "a"),
            path("query", "b"),
            path("value", "b")
        ]
    );
    assert_eq!(
        attention.blocks(&path("output", "a")).collect::<Vec<_>>(),
        [Block::O]
    );

    let statistics = StatisticsConfig::new()
        .with_reduction(GroupReduction::Sum)
        .with_attention(Some(config));
    let mut statistics = statistics.init(&model).expect("statistics");
    let store = GradientStoreConfig::new(1 << 24).with_only(Some(layout.group()));
    let mut store = store.init(&model).expect("a store");
    for (task, count) in [("task", 5), ("other", 3)] {
        let data = Rows::made_up(count, &device);
        let collector = CollectorConfig::new().init().expect("a collector");
        collector
            .collect_batches(&model, task, [data], (&mut statistics, &mut store))
            .expect("a collection");
    }
    let task = statistics.task("task").expect("a task");
    let mut of_heads = [0.0; HEADS];
    for (name, factor, label) in [
        ("query", "b", "head.Q"),
        ("key", "b", "head.K"),
        ("value", "b", "head.V"),
        ("output", "a", "head.O"),
    ] {
        let parameter = task.parameter(&path(name, factor)).expect("an adapter");
        let elements = parameter.elementwise().expect("elements");
        let elements = elements.read().expect("values").mean.expect("a mean");
        // B is `[rank, out]`, so a head is columns; A of O is `[in, rank]`, so a head is rows.
        let (rows, columns) = if factor == "b" {
            (3, WIDTH)
        } else {
            (WIDTH, 3)
        };
        let mut expected = [0.0; HEADS];
        for (element, value) in elements.iter().enumerate() {
            let at = match factor {
                "b" => element % columns / (WIDTH / HEADS),
                _ => element / columns / (rows / HEADS),
            };
            expected[at] += value;
        }
        let found = parameter.group(label).expect("heads").read();
        let found = found.expect("values").mean.expect("a mean");
        assert_close(label, &found, &expected, BACKWARD, 0.0);
        (0..HEADS).for_each(|head| of_heads[head] += expected[head]);
        let other = if factor == "a" { "b" } else { "a" };
        let other = task.parameter(&path(name, other)).expect("the other");
        assert_eq!(other.groups()[0].0.label(), "channel");
    }
    let heads = task.heads().mean.expect("a mean");
    assert_close("whole heads", &heads, &of_heads, BACKWARD, 0.0);
    // Comparisons of samples by head find them as well.
    let conflicts = ConflictsConfig::new()
        .with_by(SliceBy::Head)
        .with_relabellings(Some(10));
    let store = store.with_heads(layout).with_device(&Device::flex());
    let conflicts = conflicts.init().expect("settings");
    let report = conflicts.forward(&store, ["task", "other"]);
    assert_eq!(report.expect("a report").slices.len(), 4 * HEADS);
}

fn matrix(path: &str, [input, output]: [usize; 2]) -> Parameter {
    Parameter::new(
        path,
        [input, output],
        Role::Matrix,
        Orientation::InputOutput,
    )
}

/// Grouped-query attention under the names that PEFT gives: queries and values are adapted.
fn wrapped() -> Vec<Parameter> {
    vec![
        matrix("h.0.q_proj.base_layer.weight", [8, 12]),
        matrix("h.0.q_proj.lora_A.default.weight", [8, 2]),
        matrix("h.0.q_proj.lora_B.default.weight", [2, 12]),
        matrix("h.0.k_proj.weight", [8, 6]),
        matrix("h.0.v_proj.base_layer.weight", [8, 6]),
        matrix("h.0.v_proj.lora_A.default.weight", [8, 2]),
        matrix("h.0.v_proj.lora_B.default.weight", [2, 6]),
        matrix("h.0.o_proj.base_layer.weight", [12, 8]),
        matrix("h.0.o_proj.lora_a.weight", [12, 2]),
        matrix("h.0.o_proj.lora_b.weight", [2, 8]),
    ]
}

fn config() -> AttentionConfig {
    AttentionConfig::new(4).with_kv_heads(Some(2))
}

fn init(parameters: Vec<Parameter>, layout: &HeadLayout) -> Result<(), String> {
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let statistics = StatisticsConfig::new().with_elementwise(false);
    let device = Device::flex();
    let statistics = statistics.init_for::<PerToken>(&catalogue, layout, "m".into(), &device);
    statistics.map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn adapters_by_peft_names() {
    let catalogue = Catalogue::new(wrapped()).expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &config()).expect("heads");
    let headless: Vec<&str> = layout.headless().collect();
    assert_eq!(
        headless,
        [
            "h.0.o_proj.lora_b.weight",
            "h.0.q_proj.lora_A.default.weight",
            "h.0.v_proj.lora_A.default.weight"
        ]
    );
    for (path, label, heads, first) in [
        ("h.0.q_proj.lora_B.default.weight", "head.Q", 4, 3),
        ("h.0.v_proj.lora_B.default.weight", "head.V", 2, 3),
        ("h.0.o_proj.lora_a.weight", "head.O", 4, 6),
        ("h.0.q_proj.base_layer.weight", "head.Q", 4, 3),
        ("h.0.k_proj.weight", "head.K", 2, 3),
    ] {
        let parameter = catalogue.require(path).expect("a parameter");
        let grouping = &Grouping::of(parameter, &Scheme::Head, &layout).expect("heads")[0];
        assert_eq!((grouping.label(), grouping.groups()), (label, heads));
        assert_eq!(grouping.ranges(1)[0].start, first, "{path}");
    }
    let shared = catalogue.require(headless[1]).expect("a parameter");
    let error = Grouping::of(shared, &Scheme::Head, &layout).expect_err("no heads");
    assert!(error.to_string().contains("no single head"), "{error}");
    init(wrapped(), &layout).expect("every matrix is accounted for");
}

#[test]
fn adapters_of_a_fused_projection() {
    let catalogue = Catalogue::new(vec![
        matrix("attn.c_attn.weight", [8, 24]),
        matrix("attn.c_attn.lora_A.weight", [8, 2]),
        matrix("attn.c_attn.lora_B.weight", [2, 24]),
        matrix("attn.c_proj.weight", [8, 8]),
    ]);
    let catalogue = catalogue.expect("parameters");
    let paths = ["attn.c_attn.weight", "attn.c_proj.weight"];
    let config = AttentionConfig::new(2);
    let attention = Attention::fused("attn", paths, Fused::Concatenated, &config, &catalogue);
    let layout = HeadLayout::new(vec![attention.expect("it fits")]).expect("a layout");
    let of = |path| {
        let parameter = catalogue.require(path).expect("a parameter");
        let groupings = Grouping::of(parameter, &Scheme::Head, &layout).expect("heads");
        let of = groupings
            .iter()
            .map(|g| (g.label().to_owned(), g.ranges(1)[0].start));
        of.collect::<Vec<_>>()
    };
    let expected = [("head.Q", 4), ("head.K", 12), ("head.V", 20)];
    let expected = expected.map(|(label, start)| (label.to_owned(), start));
    assert_eq!(of("attn.c_attn.weight"), expected);
    assert_eq!(of("attn.c_attn.lora_B.weight"), expected);
}

#[test]
fn what_lies_in_a_projection_is_never_silently_without_heads() {
    let mut parameters = wrapped();
    parameters.push(matrix("h.0.k_proj.router", [8, 6]));
    let catalogue = Catalogue::new(parameters.clone()).expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &config()).expect("heads");
    let error = init(parameters.clone(), &layout).expect_err("unknown");
    assert!(
        error.contains("h.0.k_proj.router") && error.contains("with_headless"),
        "{error}"
    );
    init(parameters, &layout.with_headless("h.0.k_proj.router")).expect("said to have none");
    // Nor is an adapter whose shape does not fit taken for one.
    let mut parameters = wrapped();
    parameters[2] = matrix("h.0.q_proj.lora_B.default.weight", [2, 10]);
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let error = HeadLayout::recognize(&catalogue, &config()).expect_err("10 outputs");
    assert!(
        error.to_string().contains("of length 12, by one of 10"),
        "{error}"
    );
}
