//! What a parameter is told to be, by name and shape, and which elements are one channel's.

use burn::module::{Module, Param};
use burn::nn::conv::{
    Conv1dConfig, Conv2dConfig, Conv3dConfig, ConvTranspose1d, ConvTranspose1dConfig,
    ConvTranspose2dConfig, ConvTranspose3dConfig, DeformConv2dConfig,
};
use burn::nn::{EmbeddingConfig, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use fisher_core::Error;
use fisher_core::gradient::{Gradient, PerToken, Raw};
use fisher_core::grouping::{AttentionConfig, GroupReduction, Grouping, HeadLayout, Scheme};
use fisher_core::model::{Catalogue, Orientation, Parameter, Role};
use fisher_core::sample::{Sample, Tokens};
use fisher_core::statistics::StatisticsConfig;
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

use Orientation::{InputOutput, OutputInput};

fn only<M: Module>(module: &M) -> Parameter {
    let catalogue = Catalogue::of(module).expect("parameters");
    catalogue.parameters()[0].clone()
}

#[test]
fn burns_layers_are_told_by_name_and_shape() {
    let device = Device::flex().autodiff();
    let conv = |parameter: Parameter, orientation| {
        assert_eq!(parameter.role(), Role::Convolution, "{parameter:?}");
        assert_eq!(parameter.orientation(), orientation, "{parameter:?}");
        assert!(parameter.is_oriented());
    };
    let linear = only(&LinearConfig::new(3, 3).init(&device));
    assert_eq!(
        (linear.role(), linear.orientation(), linear.is_oriented()),
        (Role::Matrix, InputOutput, true)
    );
    let table = only(&EmbeddingConfig::new(3, 1).init(&device));
    assert_eq!(table.role(), Role::Embedding);
    conv(only(&Conv1dConfig::new(2, 4, 3).init(&device)), OutputInput);
    conv(
        only(&Conv2dConfig::new([2, 4], [3, 3]).init(&device)),
        OutputInput,
    );
    conv(
        only(&Conv3dConfig::new([2, 4], [3, 3, 3]).init(&device)),
        OutputInput,
    );
    conv(
        only(&DeformConv2dConfig::new([2, 4], [3, 3]).init(&device)),
        OutputInput,
    );
    // One channel and one position are a kernel all the same.
    conv(
        only(&Conv2dConfig::new([1, 1], [1, 1]).init(&device)),
        OutputInput,
    );
    conv(
        only(&ConvTranspose1dConfig::new([2, 4], 3).init(&device)),
        InputOutput,
    );
    conv(
        only(&ConvTranspose2dConfig::new([2, 4], [3, 3]).init(&device)),
        InputOutput,
    );
    conv(
        only(&ConvTranspose3dConfig::new([2, 4], [3, 3, 3]).init(&device)),
        InputOutput,
    );
}

/// Layers of somebody else that are named as Burn's.
mod theirs {
    use super::*;

    /// As GPT-2's: `[in, out]`.
    #[derive(Module, Debug)]
    pub(super) struct Conv1d {
        pub(super) weight: Param<Tensor<2>>,
        pub(super) bias: Option<Param<Tensor<1>>>,
    }

    impl Conv1d {
        pub(super) fn new([input, output]: [usize; 2], bias: bool, device: &Device) -> Self {
            Self {
                weight: Param::from_tensor(Tensor::ones([input, output], device)),
                bias: bias.then(|| Param::from_tensor(Tensor::ones([output], device))),
            }
        }
    }

    /// As PyTorch's: `[out, in]`.
    #[derive(Module, Debug)]
    pub(super) struct Linear {
        pub(super) weight: Param<Tensor<2>>,
        pub(super) bias: Param<Tensor<1>>,
    }

    /// A kernel whose bias is not of its outputs.
    #[derive(Module, Debug)]
    pub(super) struct Conv2d {
        pub(super) weight: Param<Tensor<4>>,
        pub(super) bias: Param<Tensor<1>>,
    }

    /// Attention of such layers.
    #[derive(Module, Debug)]
    pub(super) struct Attention {
        pub(super) q_proj: Conv1d,
        pub(super) k_proj: Conv1d,
        pub(super) v_proj: Conv1d,
        pub(super) o_proj: Conv1d,
    }

    impl Attention {
        pub(super) fn new(bias: bool, device: &Device) -> Self {
            let square = || Conv1d::new([4, 4], bias, device);
            Self {
                q_proj: square(),
                k_proj: square(),
                v_proj: square(),
                o_proj: square(),
            }
        }
    }

    /// Bare parameters.
    #[derive(Module, Debug)]
    pub(super) struct Bare {
        pub(super) scale: Param<Tensor<4>>,
        pub(super) column: Param<Tensor<2>>,
        pub(super) token: Param<Tensor<3>>,
        pub(super) matrix: Param<Tensor<2>>,
    }
}

#[test]
fn a_shape_that_is_not_the_named_layers_is_none_of_burns() {
    let device = Device::flex().autodiff();
    let told = |p: &Parameter| (p.role(), p.orientation(), p.is_oriented());
    // The bias is as long as the output.
    let wide = only(&theirs::Conv1d::new([3, 5], true, &device));
    assert_eq!(told(&wide), (Role::Matrix, InputOutput, true));
    assert_eq!(wide.output_axis(), Some(1));
    let bare = only(&theirs::Conv1d::new([3, 5], false, &device));
    assert_eq!(told(&bare), (Role::Matrix, InputOutput, false));
    let linear = |bias| theirs::Linear {
        weight: Param::from_tensor(Tensor::ones([5, 3], &device)),
        bias: Param::from_tensor(Tensor::ones([bias], &device)),
    };
    assert_eq!(told(&only(&linear(5))), (Role::Matrix, OutputInput, true));
    assert_eq!(told(&only(&linear(3))), (Role::Matrix, InputOutput, true));
    assert!(!only(&linear(4)).is_oriented());
    let kernel = only(&theirs::Conv2d {
        weight: Param::from_tensor(Tensor::ones([4, 2, 3, 3], &device)),
        bias: Param::from_tensor(Tensor::ones([7], &device)),
    });
    assert_eq!(told(&kernel), (Role::Matrix, InputOutput, false));
}

#[test]
fn one_long_axis_is_a_vector() {
    let device = Device::flex().autodiff();
    let bare = theirs::Bare {
        scale: Param::from_tensor(Tensor::ones([1, 6, 1, 1], &device)),
        column: Param::from_tensor(Tensor::ones([6, 1], &device)),
        token: Param::from_tensor(Tensor::ones([1, 1, 6], &device)),
        matrix: Param::from_tensor(Tensor::ones([2, 6], &device)),
    };
    let catalogue = Catalogue::of(&bare).expect("parameters");
    for (path, role, scheme) in [
        ("scale", Role::Vector, Scheme::Element),
        ("column", Role::Vector, Scheme::Element),
        ("token", Role::Vector, Scheme::Element),
        ("matrix", Role::Matrix, Scheme::OutputChannel),
    ] {
        let parameter = catalogue.require(path).expect("a parameter");
        assert_eq!(parameter.role(), role, "{path}");
        let default = Scheme::default_of(parameter, &HeadLayout::none());
        assert_eq!(default, scheme, "{path}");
    }
    // Statistics take them, and masks protect vectors by default.
    let statistics = StatisticsConfig::new().init(&bare);
    let statistics = statistics.expect("statistics");
    assert_eq!(statistics.role("scale"), Some(Role::Vector));
}

#[test]
fn heads_are_not_looked_for_where_nothing_tells_the_output() {
    let device = Device::flex().autodiff();
    for bias in [true, false] {
        let model = theirs::Attention::new(bias, &device);
        let catalogue = Catalogue::of(&model).expect("parameters");
        let config = AttentionConfig::new(2);
        let error = HeadLayout::recognize(&catalogue, &config).expect_err("a square matrix");
        let text = error.to_string();
        assert!(
            text.contains("`q_proj.weight`") && text.contains("with_orientation"),
            "{text}"
        );
        assert!(text.contains("o_proj.weight [4, 4]"), "{text}");

        let paths = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("{name}.weight"));
        let told = paths.iter().try_fold(catalogue, |catalogue, path| {
            catalogue.with_orientation(path, InputOutput)
        });
        let catalogue = told.expect("its parameters");
        let layout = HeadLayout::recognize(&catalogue, &config).expect("heads");
        for (path, elements) in paths.iter().zip([[0, 2], [0, 2], [0, 2], [0, 8]]) {
            let parameter = catalogue.require(path).expect("a projection");
            let grouping = &Grouping::of(parameter, &Scheme::Head, &layout).expect("heads")[0];
            // `[in, out]`: the second head begins at column 2, and at row 2 of O.
            assert_eq!([0, 1].map(|head| grouping.ranges(head)[0].start), elements);
        }
        // A layout that was told is good for statistics of the model.
        let statistics = StatisticsConfig::new().init_with_heads::<PerToken, _>(&model, &layout);
        assert_eq!(statistics.expect("statistics").totals().heads().len(), 2);
    }
    let model = theirs::Attention::new(true, &device);
    let error = Catalogue::of(&model)
        .expect("parameters")
        .with_orientation("q_proj", InputOutput);
    assert!(matches!(error, Err(Error::UnknownParameter { .. })));
}

/// Which output (or input) every element of a kernel is of, by the kernel itself: one element is 1,
/// all others 0, and one input channel at a time.
fn owners(
    shape: [usize; 3],
    inputs: usize,
    forward: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>,
    device: &Device,
) -> [Vec<usize>; 2] {
    let elements: usize = shape.iter().product();
    let mut owners = [vec![], vec![]];
    for element in 0..elements {
        let mut kernel = vec![0.0f32; elements];
        kernel[element] = 1.0;
        let kernel = Tensor::<3>::from_data(TensorData::new(kernel, shape), device);
        let mut found = None;
        for input in 0..inputs {
            let mut x = vec![0.0f32; inputs * 4];
            x[input * 4..][..4].fill(1.0);
            let x = Tensor::<3>::from_data(TensorData::new(x, [1, inputs, 4]), device);
            let y = forward(x, kernel.clone());
            let [_, _, length] = y.dims();
            let y: Vec<f32> = y.to_data().iter().collect();
            if let Some(at) = y.iter().position(|y| *y != 0.0) {
                found = Some((at / length, input));
            }
        }
        let (output, input) = found.expect("an element that is used");
        owners[0].push(output);
        owners[1].push(input);
    }
    owners
}

/// Groups against the owners: sums, means, sizes and ranges.
fn grouped(parameter: &Parameter, scheme: &Scheme, owners: &[usize], device: &Device) {
    let groupings = Grouping::of(parameter, scheme, &HeadLayout::none()).expect("a grouping");
    let grouping = &groupings[0];
    let groups = owners.iter().max().expect("elements") + 1;
    assert_eq!(grouping.groups(), groups);
    let expected: Vec<Option<usize>> = owners.iter().copied().map(Some).collect();
    assert_eq!(grouping.group_of_elements(), expected);
    let mut sums = vec![0.0; groups];
    let mut sizes = vec![0; groups];
    for (element, &owner) in owners.iter().enumerate() {
        sums[owner] += ((element + 1) * (element + 1)) as f64;
        sizes[owner] += 1;
    }
    assert_eq!(grouping.sizes(), sizes);
    for group in 0..groups {
        let of_ranges = grouping.ranges(group).into_iter().flatten();
        let of_owners = (0..owners.len()).filter(|e| owners[*e] == group);
        assert!(of_ranges.eq(of_owners), "group {group}");
    }
    let roots: Vec<f32> = (1..=owners.len()).map(|k| k as f32).collect();
    let gradient = Tensor::<2>::from_data(TensorData::new(roots, [1, owners.len()]), device);
    let tokens = Tokens::of(&[Sample::new("0", 1).expect("tokens")], device);
    let contribution = Gradient::token_sum(gradient).contribution::<Raw>(&tokens);
    let means = sums.iter().zip(&sizes).map(|(sum, n)| sum / *n as f64);
    let means: Vec<f64> = means.collect();
    for (reduction, expected) in [(GroupReduction::Sum, &sums), (GroupReduction::Mean, &means)] {
        let reduced = grouping.reduce(&contribution, reduction);
        let found: Vec<f64> = reduced.tensor().to_data().iter::<f64>().collect();
        assert_close("channels", &found, expected, GOLDEN, 0.0);
    }
    // And it comes out of a file as it went in.
    let json = serde_json::to_string(grouping).expect("JSON");
    let again: Grouping = serde_json::from_str(&json).expect("a grouping");
    assert_eq!(&again, grouping);
}

#[rstest]
fn channels_of_grouped_convolutions(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
    #[values(1, 2)] groups: usize,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let cpu = Device::flex();
    let transposed = ConvTranspose1dConfig::new([4, 6], 2).with_groups(groups);
    let model = transposed.init(&device.clone().autodiff());
    let up = only(&model);
    let forward = |x, kernel: Tensor<3>| {
        let layer = ConvTranspose1d {
            weight: Param::from_tensor(kernel),
            ..transposed.clone().with_bias(false).init(&cpu)
        };
        layer.forward(x)
    };
    let of = |shape: &[usize]| -> [usize; 3] { shape.try_into().expect("three axes") };
    let [outputs, inputs] = owners(of(up.shape()), 4, forward, &cpu);
    // The bias tells the groups.
    assert_eq!(up.channel_groups(), Some(groups));
    grouped(&up, &Scheme::OutputChannel, &outputs, &device);
    grouped(&up, &Scheme::InputChannel, &inputs, &device);

    let plain = Conv1dConfig::new(4, 6, 2).with_groups(groups);
    let model = plain.init(&device.clone().autodiff());
    let catalogue = Catalogue::of(&model).expect("parameters");
    let down = catalogue.require("weight").expect("a kernel");
    let forward = |x, kernel: Tensor<3>| {
        let layer = burn::nn::conv::Conv1d {
            weight: Param::from_tensor(kernel),
            ..plain.clone().with_bias(false).init(&cpu)
        };
        layer.forward(x)
    };
    let [outputs, inputs] = owners(of(down.shape()), 4, forward, &cpu);
    grouped(down, &Scheme::OutputChannel, &outputs, &device);
    // Nothing tells the groups of inputs, so somebody must.
    let unknown = Grouping::of(down, &Scheme::InputChannel, &HeadLayout::none());
    let text = unknown.expect_err("unknown groups").to_string();
    assert!(
        text.contains("`weight`") && text.contains("with_channel_groups"),
        "{text}"
    );
    let told = catalogue.with_channel_groups("weight", groups).expect("so");
    let down = told.require("weight").expect("a kernel");
    grouped(down, &Scheme::InputChannel, &inputs, &device);
}

#[test]
fn a_transposed_convolution_without_a_bias_is_grouped_by_inputs() {
    let device = Device::flex().autodiff();
    let layer = ConvTranspose2dConfig::new([4, 6], [2, 2]).with_groups(2);
    let model = layer.with_bias(false).init(&device);
    let kernel = only(&model);
    assert_eq!(kernel.channel_groups(), None);
    let heads = HeadLayout::none();
    assert_eq!(Scheme::default_of(&kernel, &heads), Scheme::InputChannel);
    let refused = Grouping::of(&kernel, &Scheme::OutputChannel, &heads);
    assert!(matches!(refused, Err(Error::Scheme { .. })), "{refused:?}");
    let told = kernel.clone().with_channel_groups(2).expect("two groups");
    assert_eq!(Scheme::default_of(&told, &heads), Scheme::OutputChannel);
    let grouping = Grouping::of(&told, &Scheme::OutputChannel, &heads).expect("channels");
    assert_eq!((grouping[0].groups(), grouping[0].label()), (6, "channel"));
    for wrong in [0, 3] {
        let refused = kernel.clone().with_channel_groups(wrong);
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    }
}
