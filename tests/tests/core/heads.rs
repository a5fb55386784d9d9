//! Every head layout against an oracle that says, position by position, whose it is.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{Gradient, PerToken, Raw};
use fisher_core::grouping::{
    Attention, AttentionConfig, Block, Fused, GroupReduction, Grouping, HeadLayout, Scheme,
};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::{Sample, Tokens};
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::backend::Backend;
use rstest::rstest;

/// Numbers of an attention layer.
#[derive(Debug, Clone, Copy)]
struct Numbers {
    hidden: usize,
    heads: usize,
    kv: usize,
    d_k: usize,
    d_v: usize,
}

impl Numbers {
    const fn new([hidden, heads, kv, d_k, d_v]: [usize; 5]) -> Self {
        Self {
            hidden,
            heads,
            kv,
            d_k,
            d_v,
        }
    }

    fn fused_width(&self) -> usize {
        (self.heads + self.kv) * self.d_k + self.kv * self.d_v
    }

    fn config(&self) -> AttentionConfig {
        AttentionConfig::new(self.heads)
            .with_kv_heads(Some(self.kv))
            .with_d_k(Some(self.d_k))
            .with_d_v(Some(self.d_v))
            .with_biases(true)
    }

    /// Walks the output axis of a fused matrix: block and head of every position.
    fn owners(&self, fused: Fused) -> Vec<(Block, usize)> {
        let mut owners = Vec::new();
        let mut push = |block, head, width| owners.extend(vec![(block, head); width]);
        match fused {
            Fused::Concatenated => {
                (0..self.heads).for_each(|h| push(Block::Q, h, self.d_k));
                (0..self.kv).for_each(|h| push(Block::K, h, self.d_k));
                (0..self.kv).for_each(|h| push(Block::V, h, self.d_v));
            }
            Fused::Interleaved => {
                for kv in 0..self.kv {
                    let per = self.heads / self.kv;
                    (0..per).for_each(|q| push(Block::Q, kv * per + q, self.d_k));
                    push(Block::K, kv, self.d_k);
                    push(Block::V, kv, self.d_v);
                }
            }
            other => panic!("{other:?} is not known here"),
        }
        owners
    }
}

const MHA: Numbers = Numbers::new([6, 3, 3, 2, 2]);
const GQA: Numbers = Numbers::new([8, 4, 2, 2, 2]);
const MQA: Numbers = Numbers::new([8, 4, 1, 2, 2]);
const WIDE_VALUES: Numbers = Numbers::new([6, 2, 2, 3, 5]);
/// Head width is not hidden / heads, and hidden is no multiple of the heads.
const ODD: Numbers = Numbers::new([7, 4, 2, 3, 3]);
const ODDER: Numbers = Numbers::new([5, 6, 2, 1, 4]);

fn code(block: Block, head: usize) -> f32 {
    (100 * (block as usize + 1) + head) as f32
}

fn parameter(path: &str, [input, output]: [usize; 2], orientation: Orientation) -> Parameter {
    let shape = match orientation {
        Orientation::InputOutput => [input, output],
        Orientation::OutputInput => [output, input],
    };
    Parameter::new(path, shape, Role::Matrix, orientation)
}

fn bias(path: &str, length: usize) -> Parameter {
    Parameter::new(path, [length], Role::Vector, Orientation::InputOutput)
}

/// Every group's mean must be the code of its block and head: then it holds exactly its elements.
fn check(layout: &HeadLayout, parameter: &Parameter, owners: &[(Block, usize)], device: &Device) {
    let owned_axis = match owners[0].0 {
        Block::O => parameter.input_axis(),
        _ => parameter.output_axis(),
    };
    let axis = owned_axis.unwrap_or(0);
    let shape = parameter.shape();
    assert_eq!(shape[axis], owners.len());
    let stride: usize = shape[axis + 1..].iter().product();
    let roots: Vec<f32> = (0..parameter.elements())
        .map(|e| owners[e / stride % owners.len()])
        .map(|(block, head)| code(block, head).sqrt())
        .collect();
    let roots = TensorData::new(roots, [1, parameter.elements()]);
    let tokens = Tokens::of(&[Sample::new("0", 1).expect("tokens")], device);
    let contribution = Gradient::token_sum(Tensor::<2>::from_data(roots, device));
    let contribution = contribution.contribution::<Raw>(&tokens);
    let groupings = Grouping::of(parameter, &Scheme::Head, layout).expect("heads");
    let mut blocks: Vec<Block> = owners.iter().map(|(block, _)| *block).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let labels: Vec<String> = blocks.iter().map(|block| format!("head.{block}")).collect();
    assert_eq!(
        groupings.iter().map(Grouping::label).collect::<Vec<_>>(),
        labels
    );
    for (grouping, block) in groupings.iter().zip(blocks) {
        let means = grouping.reduce(&contribution, GroupReduction::Mean);
        let means = means.tensor().try_to_vec_as::<f32>().expect("values");
        let heads = owners
            .iter()
            .filter(|(b, _)| *b == block)
            .map(|(_, h)| *h)
            .max();
        assert_eq!(means.len(), heads.expect("heads") + 1);
        for (head, mean) in means.iter().enumerate() {
            let wanted = code(block, head);
            assert!(
                (mean - wanted).abs() < 1e-3,
                "{block} {head}: {mean}, not {wanted}"
            );
        }
        let of_elements = grouping.group_of_elements();
        for (e, group) in of_elements.into_iter().enumerate() {
            let (owner, head) = owners[e / stride % owners.len()];
            assert_eq!(group, (owner == block).then_some(head));
        }
        let of_block = owners.iter().filter(|(b, _)| *b == block).count();
        assert_eq!(
            grouping.sizes().iter().sum::<usize>(),
            of_block * parameter.elements() / owners.len()
        );
    }
}

fn run(block: Block, heads: usize, width: usize) -> Vec<(Block, usize)> {
    (0..heads).flat_map(|h| vec![(block, h); width]).collect()
}

#[rstest]
fn separate_projections(
    #[values(MHA, GQA, MQA, WIDE_VALUES, ODD, ODDER)] n: Numbers,
    #[values(Orientation::InputOutput, Orientation::OutputInput)] orientation: Orientation,
    #[values(["query", "key", "value", "output"], ["q_proj", "k_proj", "v_proj", "o_proj"])]
    names: [&str; 4],
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let owners = [
        run(Block::Q, n.heads, n.d_k),
        run(Block::K, n.kv, n.d_k),
        run(Block::V, n.kv, n.d_v),
        run(Block::O, n.heads, n.d_v),
    ];
    let mut parameters = Vec::new();
    for (name, owners) in names.iter().zip(&owners) {
        let path = format!("layers.0.attn.{name}.weight");
        let (shape, out) = match owners[0].0 {
            Block::O => ([owners.len(), n.hidden], n.hidden),
            _ => ([n.hidden, owners.len()], owners.len()),
        };
        parameters.push(parameter(&path, shape, orientation));
        parameters.push(bias(&format!("layers.0.attn.{name}.bias"), out));
    }
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &n.config()).expect("a layout");
    for (pair, owners) in catalogue.parameters().chunks(2).zip(&owners) {
        check(&layout, &pair[0], owners, &device);
        match owners[0].0 {
            Block::O => assert!(!layout.has(pair[1].path()), "O's bias belongs to no head"),
            _ => check(&layout, &pair[1], owners, &device),
        }
    }
    let attention = &layout.attention()[0];
    for head in 0..n.heads {
        assert_eq!(attention.kv_of(head), head / (n.heads / n.kv));
    }
    let without = n.config().with_biases(false);
    let layout = HeadLayout::recognize(&catalogue, &without).expect("a layout");
    assert!(
        catalogue
            .parameters()
            .iter()
            .all(|p| layout.has(p.path()) == (p.shape().len() == 2))
    );
}

#[rstest]
fn fused_projections(
    #[values(MHA, GQA, MQA, WIDE_VALUES, ODD, ODDER)] n: Numbers,
    #[values(Orientation::InputOutput, Orientation::OutputInput)] orientation: Orientation,
    #[values((Fused::Concatenated, "c_attn", "c_proj"), (Fused::Interleaved, "query_key_value", "dense"))]
    (fused, qkv, o): (Fused, &str, &str),
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let (qkv, o) = (format!("h.0.attn.{qkv}"), format!("h.0.attn.{o}"));
    let catalogue = Catalogue::new(vec![
        parameter(
            &format!("{qkv}.weight"),
            [n.hidden, n.fused_width()],
            orientation,
        ),
        bias(&format!("{qkv}.bias"), n.fused_width()),
        parameter(
            &format!("{o}.weight"),
            [n.heads * n.d_v, n.hidden],
            orientation,
        ),
        bias(&format!("{o}.bias"), n.hidden),
    ])
    .expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &n.config()).expect("a layout");
    let [weight, of_bias, output, output_bias] = catalogue.parameters() else {
        unreachable!()
    };
    check(&layout, weight, &n.owners(fused), &device);
    check(&layout, of_bias, &n.owners(fused), &device);
    check(&layout, output, &run(Block::O, n.heads, n.d_v), &device);
    assert!(!layout.has(output_bias.path()));
}

#[test]
fn burns_own_attention_is_recognized() {
    use fisher_tests::models::Small;
    let model = Small::init(&Device::flex().autodiff());
    let catalogue = Catalogue::of(&model).expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    assert_eq!(layout.attention()[0].name(), "attention");
    for (name, block) in [
        ("query", "Q"),
        ("key", "K"),
        ("value", "V"),
        ("output", "O"),
    ] {
        let path = format!("attention.{name}.weight");
        let parameter = catalogue.get(&path).expect("a projection");
        let grouping = &Grouping::of(parameter, &Scheme::Head, &layout).expect("heads")[0];
        assert_eq!(
            (grouping.label(), grouping.groups()),
            (&*format!("head.{block}"), 2)
        );
    }
}

#[test]
fn a_frozen_projection_does_not_hide_the_others() {
    use fisher_tests::models::Small;
    for frozen in ["query", "key"] {
        let mut model = Small::init(&Device::flex().autodiff());
        match frozen {
            "query" => model.attention.query = model.attention.query.no_grad(),
            _ => model.attention.key = model.attention.key.no_grad(),
        }
        let catalogue = Catalogue::of(&model).expect("parameters");
        let layout = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
        let mut grouped: Vec<String> = Vec::new();
        for parameter in catalogue.parameters() {
            if Scheme::default_of(parameter, &layout) == Scheme::Head {
                grouped.push(parameter.path().into());
            }
        }
        let all = ["query", "key", "value", "output"]
            .into_iter()
            .filter(|name| *name != frozen);
        let all: Vec<String> = all.map(|name| format!("attention.{name}.weight")).collect();
        assert_eq!(grouped, all);
    }
}

#[test]
fn layers_come_in_the_order_of_their_numbers() {
    let layer = |i: usize| {
        ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| {
            parameter(
                &format!("layers.{i}.{name}.weight"),
                [4, 4],
                Orientation::OutputInput,
            )
        })
    };
    // As a checkpoint sorts its names.
    let parameters = [0, 1, 10, 11, 2].into_iter().flat_map(layer).collect();
    let catalogue = Catalogue::new(parameters).expect("parameters");
    let layout = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect("a layout");
    let names: Vec<&str> = layout.attention().iter().map(Attention::name).collect();
    assert_eq!(
        names,
        ["layers.0", "layers.1", "layers.2", "layers.10", "layers.11"]
    );
}

#[rstest]
#[case(AttentionConfig::new(3), "not 3 heads")]
#[case(AttentionConfig::new(0), "do not divide 0 heads")]
#[case(AttentionConfig::new(4).with_kv_heads(Some(3)), "do not divide 4 heads")]
#[case(AttentionConfig::new(4).with_kv_heads(Some(1)), "of width 2")]
#[case(AttentionConfig::new(4).with_d_k(Some(4)), "of width 4")]
fn what_does_not_fit_is_an_error_that_lists_what_was_found(
    #[case] config: AttentionConfig,
    #[case] reason: &str,
) {
    let names = ["q_proj", "k_proj", "v_proj", "o_proj"];
    let parameters = names.map(|name| {
        parameter(
            &format!("layers.0.{name}.weight"),
            [8, 8],
            Orientation::OutputInput,
        )
    });
    let catalogue = Catalogue::new(parameters.to_vec()).expect("parameters");
    let error = HeadLayout::recognize(&catalogue, &config).expect_err("it does not fit");
    assert!(matches!(error, Error::HeadLayout { .. }));
    let text = error.to_string();
    assert!(
        text.contains(reason) && text.contains("layers.0.k_proj.weight [8, 8]"),
        "{text}"
    );
}

#[test]
fn unknown_names_are_an_error_that_lists_what_was_found() {
    let names = ["encoder.wq.weight", "encoder.wk.weight", "mlp.dense.weight"];
    let parameters = names.map(|path| parameter(path, [8, 8], Orientation::InputOutput));
    let catalogue = Catalogue::new(parameters.to_vec()).expect("parameters");
    let error = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect_err("unknown");
    let text = error.to_string();
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
    assert!(text.contains("q_proj/k_proj/v_proj/o_proj"), "{text}");
    // The same names are fine when somebody says what they are.
    let [q, k] = [names[0], names[1]];
    let by_hand = Attention::separate(
        "encoder",
        [q, k, k, q],
        &AttentionConfig::new(2),
        &catalogue,
    );
    assert!(by_hand.is_ok());
}

#[test]
fn a_projection_that_is_missing_is_named() {
    let names = ["q_proj", "k_proj", "v_proj"];
    let parameters = names.map(|name| {
        parameter(
            &format!("layers.0.{name}.weight"),
            [8, 8],
            Orientation::OutputInput,
        )
    });
    let catalogue = Catalogue::new(parameters.to_vec()).expect("parameters");
    let error = HeadLayout::recognize(&catalogue, &AttentionConfig::new(2)).expect_err("missing");
    assert!(
        error.to_string().contains("`layers.0.o_proj.weight`"),
        "{error}"
    );
}

#[test]
fn attention_is_never_silently_grouped_by_channel() {
    let layer = |i: usize| {
        ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| {
            parameter(
                &format!("layers.{i}.{name}.weight"),
                [4, 4],
                Orientation::OutputInput,
            )
        })
    };
    let catalogue = Catalogue::new([layer(0), layer(1)].concat()).expect("parameters");
    let first = Attention::separate(
        "layers.0",
        ["q_proj", "k_proj", "v_proj", "o_proj"]
            .map(|name| format!("layers.0.{name}.weight"))
            .each_ref()
            .map(String::as_str),
        &AttentionConfig::new(2),
        &catalogue,
    );
    let half = HeadLayout::new(vec![first.expect("it fits")]).expect("a layout");
    let device = Device::flex();
    let init = |heads: &HeadLayout| {
        StatisticsConfig::new().init_for::<PerToken>(&catalogue, heads, "m".into(), &device)
    };
    let error = init(&half).expect_err("layer 1 is left out").to_string();
    assert!(error.contains("layers.1.q_proj.weight"), "{error}");
    init(&HeadLayout::none()).expect("no heads, on purpose");
}
