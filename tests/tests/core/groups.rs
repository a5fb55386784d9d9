//! Every grouping scheme on every backend, and the moving average.

use burn::tensor::{Tensor, TensorData};
use fisher_core::gradient::{Gradient, Raw};
use fisher_core::grouping::{GroupReduction, Grouping, HeadLayout, Scheme};
use fisher_core::model::{Orientation, Parameter, Role};
use fisher_core::moments::Ema;
use fisher_core::sample::{Sample, Tokens};
use fisher_tests::backend::Backend;
use fisher_tests::tolerance::{GOLDEN, assert_close};
use rstest::rstest;

/// Element k of the flattened [2, 3] matrix contributes k + 1 in the first of two samples, and
/// ten times that in the second.
#[rstest]
#[case(Scheme::Tensor, &[21.0], &[6])]
#[case(Scheme::OutputChannel, &[5.0, 7.0, 9.0], &[2, 2, 2])]
#[case(Scheme::InputChannel, &[6.0, 15.0], &[3, 3])]
#[case(Scheme::Row, &[6.0, 15.0], &[3, 3])]
#[case(Scheme::Buckets { size: 4 }, &[10.0, 11.0], &[4, 2])]
#[case(Scheme::Buckets { size: 3 }, &[6.0, 15.0], &[3, 3])]
#[case(Scheme::Buckets { size: 9 }, &[21.0], &[6])]
#[case(Scheme::Custom { ids: vec![2, 0, 0, 1, 1, 2] }, &[5.0, 9.0, 7.0], &[2, 2, 2])]
#[case(Scheme::Custom { ids: vec![0, 0, 0, 0, 1, 0] }, &[16.0, 5.0], &[5, 1])]
#[case(Scheme::Element, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1; 6])]
fn sums_and_means(
    #[case] scheme: Scheme,
    #[case] sums: &[f64],
    #[case] sizes: &[usize],
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let parameter = Parameter::new("w", [2, 3], Role::Matrix, Orientation::InputOutput);
    let groupings = Grouping::of(&parameter, &scheme, &HeadLayout::none()).expect("a grouping");
    let [grouping] = &groupings[..] else {
        panic!("one grouping");
    };
    assert_eq!(grouping.sizes(), sizes);
    assert_eq!(grouping.groups(), sums.len());
    let mut by_element = vec![0.0; sums.len()];
    for (e, group) in grouping.group_of_elements().into_iter().enumerate() {
        by_element[group.expect("every element has a group")] += (e + 1) as f64;
    }
    assert_eq!(by_element, sums);
    let roots = [1.0f32, 10.0].map(|c| [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(|k| (c * k).sqrt()));
    let gradient = Tensor::<2>::from_data(TensorData::new(roots.concat(), [2, 6]), &device);
    let samples = ["a", "b"].map(|id| Sample::new(id, 1).expect("tokens"));
    let contribution =
        Gradient::token_sum(gradient).contribution::<Raw>(&Tokens::of(&samples, &device));
    for (reduction, divisors) in [
        (GroupReduction::Sum, &[1; 6][..sums.len()]),
        (GroupReduction::Mean, sizes),
    ] {
        let reduced = grouping.reduce(&contribution, reduction);
        let found: Vec<f64> = reduced.tensor().to_data().iter::<f64>().collect();
        let first = sums.iter().zip(divisors).map(|(sum, n)| sum / *n as f64);
        let expected: Vec<f64> = first.clone().chain(first.map(|x| 10.0 * x)).collect();
        assert_close(grouping.label(), &found, &expected, GOLDEN, 0.0);
    }
}

#[rstest]
fn the_moving_average_has_no_warm_up_bias(
    #[values(Backend::Flex, Backend::Ndarray, Backend::Wgpu)] backend: Backend,
) {
    let Some(device) = backend.device() else {
        return;
    };
    let beta = 0.99f64;
    let mut ema = Ema::new(beta, 2, &device).expect("beta");
    let mut biased = [0.0; 2];
    for t in 1..=5 {
        let x = [f64::from(t), 1.0 / f64::from(t)];
        ema.push(Tensor::from_floats(x.map(|x| x as f32), &device));
        biased = [0, 1].map(|i| beta * biased[i] + (1.0 - beta) * x[i]);
        let expected = biased.map(|m| m / (1.0 - beta.powi(t)));
        let found: Vec<f64> = ema
            .value()
            .expect("a value")
            .to_data()
            .iter::<f64>()
            .collect();
        assert_close("average", &found, &expected, GOLDEN, 0.0);
    }
}
