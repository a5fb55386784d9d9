//! The reduction of contributions to groups.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::groups::{Grouping, Plan};
use super::margins::Margins;
use super::scheme::GroupReduction;
use super::slices::AxisSlices;
use crate::gradient::add_at;
use crate::gradient::{Contribution, ContributionUnit};

impl Grouping {
    /// `r_iG` for every sample and group.
    ///
    /// # Shapes
    /// `[samples, elements]` to `[samples, groups]`.
    ///
    /// # Panics
    /// When the contribution has another number of elements than the parameter.
    pub fn reduce<C: ContributionUnit>(
        &self,
        contribution: &Contribution<C>,
        reduction: GroupReduction,
    ) -> Contribution<C> {
        contribution.map(|tensor| {
            let elements: usize = self.shape.iter().product();
            assert_eq!(tensor.dims()[1], elements, "elements of a contribution");
            self.reduced(self.sum(tensor), reduction)
        })
    }

    /// What sums over groups, `[samples, groups]`, come to.
    pub(crate) fn reduced(&self, sums: Tensor<2>, reduction: GroupReduction) -> Tensor<2> {
        let elements: usize = self.shape.iter().product();
        match (&self.plan, reduction) {
            (Plan::Element, _) | (_, GroupReduction::Sum) => sums,
            (Plan::Axis(slices), GroupReduction::Mean) => {
                sums.div_scalar((elements / self.shape[slices.axis] * slices.width) as f64)
            }
            (Plan::Blocks { .. }, GroupReduction::Mean) => {
                sums.div_scalar((elements / self.groups) as f64)
            }
            (Plan::Buckets { .. } | Plan::Custom { .. }, GroupReduction::Mean) => {
                let sizes: Vec<f32> = self.sizes().iter().map(|&n| n as f32).collect();
                let (device, dtype) = (sums.device(), sums.dtype());
                let sizes = Tensor::<1>::from_data(sizes.as_slice(), (&device, DType::F32));
                sums / sizes.cast(dtype).unsqueeze()
            }
        }
    }

    /// Add the contributions `run`, `[samples, length]`, of consecutive elements from `start` on to
    /// `sums` over groups, `[samples, groups]`.
    pub(crate) fn add_run(&self, sums: Tensor<2>, start: usize, run: Tensor<2>) -> Tensor<2> {
        let [samples, length] = run.dims();
        let (device, dtype) = (run.device(), run.dtype());
        let Plan::Buckets { size } = self.plan else {
            let groups = self.group_of(start..start + length).into_iter();
            // Those of an axis, which has elements in no group, are not scattered.
            let groups: Vec<i32> = groups.flatten().map(|group| group as i32).collect();
            let groups = TensorData::new(groups, [length]);
            let groups = Tensor::<1, Int>::from_data(groups, (&device, DType::I32));
            return add_at(sums, 1, groups, run);
        };
        let first = start / size;
        let add = |sums: Tensor<2>, first: usize, partial: Tensor<2>| {
            let range = [0..samples, first..first + partial.dims()[1]];
            let before = sums.clone().slice(range.clone());
            sums.slice_assign(range, before + partial)
        };
        if size >= length {
            // Of two buckets at most.
            let of_first = length.min((first + 1) * size - start);
            let sums = add(sums, first, run.clone().narrow(1, 0, of_first).sum_dim(1));
            return match length - of_first {
                0 => sums,
                rest => add(sums, first + 1, run.narrow(1, of_first, rest).sum_dim(1)),
            };
        }
        let before = start - first * size;
        let count = (before + length).div_ceil(size);
        let zeros = |length| Tensor::zeros([samples, length], (&device, dtype));
        let mut parts = vec![run];
        if before > 0 {
            parts.insert(0, zeros(before));
        }
        if count * size > before + length {
            parts.push(zeros(count * size - before - length));
        }
        let partial = Tensor::cat(parts, 1).reshape([samples, count, size]);
        add(sums, first, partial.sum_dim(2).reshape([samples, count]))
    }

    /// `r_iG` from sums over one side of the parameter; `None` where they do not tell.
    pub(crate) fn reduce_margins(
        &self,
        margins: &Margins,
        reduction: GroupReduction,
    ) -> Option<Tensor<2>> {
        if self.is_whole() {
            // It can be had from either side.
            let any = margins.rows.as_ref().or(margins.columns.as_ref())?;
            let sums = any.clone().sum_dim(1);
            let elements: usize = self.shape.iter().product();
            return Some(match reduction {
                GroupReduction::Sum => sums,
                GroupReduction::Mean => sums.div_scalar(elements as f64),
            });
        }
        let Plan::Axis(slices) = &self.plan else {
            return None;
        };
        let sums = match slices.axis {
            0 => slices.sum(margins.rows.clone()?, &self.shape[..1]),
            axis => {
                let slices = AxisSlices {
                    axis: axis - 1,
                    ..*slices
                };
                slices.sum(margins.columns.clone()?, &self.shape[1..])
            }
        };
        Some(self.reduced(sums, reduction))
    }

    fn sum(&self, tensor: Tensor<2>) -> Tensor<2> {
        let [samples, elements] = tensor.dims();
        match &self.plan {
            Plan::Element => tensor,
            Plan::Axis(slices) => slices.sum(tensor, &self.shape),
            Plan::Buckets { size } => {
                let whole = elements / size;
                let full = tensor
                    .clone()
                    .narrow(1, 0, whole * size)
                    .reshape([samples, whole, *size])
                    .sum_dim(2)
                    .reshape([samples, whole]);
                match elements - whole * size {
                    0 => full,
                    rest => {
                        let last = tensor.narrow(1, whole * size, rest).sum_dim(1);
                        Tensor::cat(vec![full, last], 1)
                    }
                }
            }
            Plan::Blocks { blocks } => {
                let [stretch, second, inner] = self.block_sides();
                tensor
                    .reshape([samples, *blocks, stretch, second, inner])
                    .sum_dim(4)
                    .sum_dim(2)
                    .reshape([samples, self.groups])
            }
            Plan::Custom { ids } => {
                let (device, dtype) = (tensor.device(), tensor.dtype());
                let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
                let ids = TensorData::new(ids, [elements]);
                let ids = Tensor::<1, Int>::from_data(ids, (&device, DType::I32));
                let zeros = Tensor::zeros([samples, self.groups], (&device, dtype));
                add_at(zeros, 1, ids, tensor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradient::{Gradient, Raw};
    use crate::grouping::{HeadLayout, Scheme};
    use crate::model::{Orientation, Parameter, Role};
    use crate::sample::{Sample, Tokens};
    use burn::tensor::Device;
    use rstest::rstest;

    #[test]
    fn a_convolution_has_its_outputs_first() {
        let device = Device::flex();
        let kernel = Parameter::new("k", [2, 1, 2], Role::Convolution, Orientation::OutputInput);
        let grouping = Grouping::of(&kernel, &Scheme::OutputChannel, &HeadLayout::none());
        let tokens = Tokens::of(&[Sample::new("0", 1).expect("tokens")], &device);
        let gradient = Tensor::<4>::from_floats([[[[1.0, 2.0]], [[3.0, 4.0]]]], &device);
        let contribution = Gradient::token_sum(gradient).contribution::<Raw>(&tokens);
        let sums = grouping.expect("a grouping")[0].reduce(&contribution, GroupReduction::Sum);
        assert_eq!(
            sums.tensor().try_to_vec_as::<f32>().expect("data"),
            [5.0, 25.0]
        );
    }

    #[test]
    fn a_vector_has_no_channels() {
        let bias = Parameter::new("b", [3], Role::Vector, Orientation::InputOutput);
        assert!(Grouping::of(&bias, &Scheme::OutputChannel, &HeadLayout::none()).is_err());
        assert_eq!(
            Scheme::default_of(&bias, &HeadLayout::none()),
            Scheme::Element
        );
    }
    #[rstest]
    #[case(Scheme::Buckets { size: 4 })]
    #[case(Scheme::Buckets { size: 11 })]
    #[case(Scheme::Custom { ids: (0..30).map(|e| e * 7 % 5).collect() })]
    #[case(Scheme::Element)]
    #[case(Scheme::OutputChannel)]
    fn runs_add_up(#[case] scheme: Scheme, #[values(1, 3, 7, 30)] length: usize) {
        let device = Device::flex();
        let kernel = Parameter::new("k", [2, 5, 3], Role::Convolution, Orientation::InputOutput);
        let kernel = kernel.with_channel_groups(2).expect("two groups");
        let grouping = Grouping::of(&kernel, &scheme, &HeadLayout::none()).expect("a grouping");
        let [grouping] = &*grouping else {
            panic!("one grouping")
        };
        assert!(grouping.is_scattered());
        let values: Vec<f32> = (0..60).map(|k| (k * k % 17) as f32).collect();
        let values = Tensor::<2>::from_data(TensorData::new(values, [2, 30]), &device);
        let mut sums = Tensor::<2>::zeros([2, grouping.groups()], &device);
        for start in (0..30).step_by(length) {
            let length = length.min(30 - start);
            sums = grouping.add_run(sums, start, values.clone().narrow(1, start, length));
        }
        sums.into_data()
            .assert_eq(&grouping.sum(values).into_data(), true);
    }
}
