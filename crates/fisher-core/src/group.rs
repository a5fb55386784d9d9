//! Groups of elements, and the reduction of contributions to them.

use std::iter::once;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gradient::{Contribution, ContributionUnit};
use crate::heads::HeadLayout;
use crate::model::{Parameter, Role};
use crate::scatter::add_at;
use crate::stream::Margins;

/// What one number of a group stands for: `r_iG`, the mean or the sum of `C_i` over its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The mean over the group's elements: comparable between groups of different size.
    #[default]
    Mean,
    /// The sum over the group's elements: adds up to the trace.
    Sum,
}

/// How a parameter's elements are put in groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Every element by itself.
    Element,
    /// The whole tensor.
    Tensor,
    /// One group per output of a matrix or kernel. In a transposed convolution of several groups of
    /// channels an output is a group's, told by the input as well as by the kernel's second axis.
    OutputChannel,
    /// One group per input of a matrix or kernel; in a convolution of several groups of channels,
    /// told by the output as well.
    InputChannel,
    /// One group per attention head, for each block (Q, K, V, O) that lies in the parameter.
    Head,
    /// One group per row of a table.
    Row,
    /// Runs of `size` consecutive elements of the flattened parameter; the last may be shorter.
    Buckets {
        /// Elements per bucket.
        size: usize,
    },
    /// The group of every element of the flattened parameter, from 0 without gaps.
    Custom {
        /// One id per element.
        ids: Vec<u32>,
    },
}

impl Scheme {
    /// Heads for attention projections, channel for other matrices and convolutions, row for
    /// embeddings, element for vectors. Channels are outputs, but inputs for a transposed convolution
    /// of which nothing tells the number of groups: see [`Parameter::channel_groups`].
    pub fn default_of(parameter: &Parameter, heads: &HeadLayout) -> Self {
        if heads.has(parameter.path()) {
            return Self::Head;
        }
        match parameter.role() {
            Role::Embedding => Self::Row,
            Role::Vector => Self::Element,
            Role::Convolution
                if parameter.channel_groups().is_none() && parameter.output_axis() == Some(1) =>
            {
                Self::InputChannel
            }
            Role::Matrix | Role::Convolution if parameter.shape().len() > 1 => Self::OutputChannel,
            Role::Matrix | Role::Convolution => Self::Element,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Element => "element",
            Self::Tensor => "tensor",
            Self::OutputChannel => "channel",
            Self::InputChannel => "input_channel",
            Self::Head => "head",
            Self::Row => "row",
            Self::Buckets { .. } => "bucket",
            Self::Custom { .. } => "custom",
        }
    }
}

/// Equal slices of one axis, the shape that channels, rows and heads share.
///
/// The axis is cut into `repeats` equal stretches; in each, starting at `offset`, lie `per`
/// consecutive groups of `width` positions. A plain channel is `repeats 1, offset 0, per = axis,
/// width 1`; Q in a concatenated fused QKV has `repeats 1`, interleaved per head it has one
/// repeat a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AxisSlices {
    pub(crate) axis: usize,
    pub(crate) repeats: usize,
    pub(crate) offset: usize,
    pub(crate) per: usize,
    pub(crate) width: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Plan {
    Element,
    Axis(AxisSlices),
    /// Second axes of a convolution of so many groups of channels: the first axis is cut into as many
    /// stretches, and each has channels of its own.
    Blocks {
        blocks: usize,
    },
    Buckets {
        size: usize,
    },
    Custom {
        /// Not in the text of a file, but a tensor of it: see [`Unchecked::custom_ids`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ids: Vec<u32>,
    },
}

/// A grouping scheme made ready for one parameter.
///
/// The label says what the groups are: `element`, `tensor`, `channel`, `input_channel`, `row`,
/// `bucket`, `custom`, `head.Q`, `head.K`, `head.V`, `head.O`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Grouping {
    label: String,
    shape: Vec<usize>,
    groups: usize,
    plan: Plan,
}

/// A grouping as it comes from a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Unchecked {
    label: String,
    shape: Vec<usize>,
    plan: Plan,
}

impl From<Grouping> for Unchecked {
    fn from(
        Grouping {
            label, shape, plan, ..
        }: Grouping,
    ) -> Self {
        Self { label, shape, plan }
    }
}

impl TryFrom<Unchecked> for Grouping {
    type Error = String;

    fn try_from(Unchecked { label, shape, plan }: Unchecked) -> Result<Self, String> {
        let labels: &[&str] = match &plan {
            Plan::Element => &["element"],
            Plan::Buckets { .. } => &["tensor", "bucket"],
            Plan::Custom { .. } => &["custom"],
            Plan::Blocks { .. } => &["channel", "input_channel"],
            Plan::Axis(_) => &[
                "channel",
                "input_channel",
                "row",
                "head.Q",
                "head.K",
                "head.V",
                "head.O",
            ],
        };
        if !labels.contains(&&*label) {
            return Err(format!("`{label}` is none of {}", labels.join(", ")));
        }
        Self::build(label, shape, plan)
    }
}

impl Unchecked {
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The group of every element, where the groups were chosen by hand. As long as the parameter,
    /// so files keep it as a tensor and not in their header.
    pub(crate) fn custom_ids(&mut self) -> Option<&mut Vec<u32>> {
        match &mut self.plan {
            Plan::Custom { ids } => Some(ids),
            _ => None,
        }
    }
}

impl Grouping {
    /// The groupings that `scheme` means for `parameter`: one, or for heads one per block.
    ///
    /// # Errors
    /// [`Error::Scheme`] when the scheme does not fit the parameter.
    pub fn of(parameter: &Parameter, scheme: &Scheme, heads: &HeadLayout) -> Result<Vec<Self>> {
        let fail = |reason: String| Error::Scheme {
            parameter: parameter.path().into(),
            scheme: scheme.name().into(),
            reason,
        };
        let shape = parameter.shape();
        let axis = |axis: Option<usize>| {
            let axis = axis.ok_or_else(|| {
                fail(format!(
                    "a {:?} of shape {shape:?} has no such axis",
                    parameter.role()
                ))
            })?;
            Ok(whole_axis(axis, shape[axis]))
        };
        // A kernel's second axis is of one group of channels.
        let channel = |of: Option<usize>| match parameter.channel_groups() {
            _ if parameter.role() != Role::Convolution || of != Some(1) => axis(of),
            Some(1) => axis(of),
            Some(blocks) => Ok(Plan::Blocks { blocks }),
            None => Err(fail(
                "nothing tells how many groups the convolution's channels are in; say it with \
                 `Catalogue::with_channel_groups`, 1 where there are none"
                    .into(),
            )),
        };
        let plan = match scheme {
            Scheme::Element => Plan::Element,
            Scheme::Tensor => Plan::Buckets { size: usize::MAX },
            Scheme::OutputChannel => channel(parameter.output_axis())?,
            Scheme::InputChannel => channel(parameter.input_axis())?,
            Scheme::Row => axis((shape.len() > 1).then_some(0))?,
            Scheme::Buckets { size } => Plan::Buckets { size: *size },
            Scheme::Custom { ids } => Plan::Custom { ids: ids.clone() },
            Scheme::Head => {
                let slices = heads.slices(parameter);
                if heads.headless().any(|path| path == parameter.path()) {
                    return Err(fail("it belongs to no single head".into()));
                }
                if slices.is_empty() {
                    return Err(fail(format!(
                        "the head layout does not mention it; it mentions: {}",
                        heads.describe()
                    )));
                }
                return slices
                    .into_iter()
                    .map(|(block, slices)| {
                        let label = format!("head.{block}");
                        Self::build(label, shape.to_vec(), Plan::Axis(slices)).map_err(fail)
                    })
                    .collect();
            }
        };
        let built = Self::build(scheme.name().into(), shape.to_vec(), plan);
        Ok(vec![built.map_err(fail)?])
    }

    /// The only way to make one: counts the groups and refuses what does not fit the shape.
    fn build(label: String, shape: Vec<usize>, mut plan: Plan) -> Result<Self, String> {
        let elements = shape
            .iter()
            .try_fold(1usize, |product, &n| product.checked_mul(n))
            .filter(|&n| n > 0)
            .ok_or_else(|| format!("the shape {shape:?} has no elements or too many"))?;
        let groups = match &mut plan {
            Plan::Element => elements,
            Plan::Axis(slices) => slices.groups(&shape)?,
            Plan::Blocks { blocks } => match *shape {
                [first, second, ..] if *blocks > 0 && first.is_multiple_of(*blocks) => {
                    *blocks * second
                }
                _ => return Err(format!("{blocks} groups of channels do not fit {shape:?}")),
            },
            Plan::Buckets { size: 0 } => return Err("a bucket needs a size above 0".into()),
            Plan::Buckets { size } => {
                *size = elements.min(*size);
                elements.div_ceil(*size)
            }
            Plan::Custom { ids } => custom_groups(ids, elements)?,
        };
        Ok(Self {
            label,
            shape,
            groups,
            plan,
        })
    }

    /// What the groups are.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The shape of the parameter.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of groups.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// The number of elements of every group.
    pub fn sizes(&self) -> Vec<usize> {
        let elements: usize = self.shape.iter().product();
        match &self.plan {
            Plan::Element => vec![1; elements],
            Plan::Axis(s) => vec![elements / self.shape[s.axis] * s.width; self.groups],
            Plan::Blocks { .. } => vec![elements / self.groups; self.groups],
            Plan::Buckets { size } => (0..self.groups)
                .map(|g| (elements - g * size).min(*size))
                .collect(),
            Plan::Custom { ids } => {
                let mut sizes = vec![0; self.groups];
                ids.iter().for_each(|&id| sizes[id as usize] += 1);
                sizes
            }
        }
    }

    /// The group of every element of the flattened parameter; `None` for elements in none, such
    /// as those of K and V where the groups are the heads of Q in a fused matrix.
    pub fn group_of_elements(&self) -> Vec<Option<usize>> {
        self.group_of(0..self.shape.iter().product())
    }

    /// The group of some elements of the flattened parameter.
    pub(crate) fn group_of(&self, elements: Range<usize>) -> Vec<Option<usize>> {
        match &self.plan {
            Plan::Element => elements.map(Some).collect(),
            Plan::Buckets { size } => elements.map(|e| Some(e / size)).collect(),
            Plan::Custom { ids } => ids[elements].iter().map(|&id| Some(id as usize)).collect(),
            Plan::Axis(slices) => {
                let inner: usize = self.shape[slices.axis + 1..].iter().product();
                let length = self.shape[slices.axis];
                let positions = elements.map(|e| slices.group_of(e / inner % length, length));
                positions.collect()
            }
            Plan::Blocks { .. } => {
                let [stretch, second, inner] = self.block_sides();
                let group = |e: usize| {
                    let (first, channel) = (e / inner / second, e / inner % second);
                    Some(first / stretch * second + channel)
                };
                elements.map(group).collect()
            }
        }
    }

    /// Of [`Plan::Blocks`]: the first axis in a block, the second axis, and all others.
    fn block_sides(&self) -> [usize; 3] {
        let (first, second) = (self.shape[0], self.shape[1]);
        let stretch = first * second / self.groups;
        [stretch, second, self.shape[2..].iter().product()]
    }

    /// The elements of a group, as ranges of the flattened parameter in rising order.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn ranges(&self, group: usize) -> Vec<Range<usize>> {
        assert!(group < self.groups, "group {group} of {}", self.groups);
        let elements: usize = self.shape.iter().product();
        match &self.plan {
            Plan::Element => once(group..group + 1).collect(),
            Plan::Buckets { size } => {
                once(group * size..elements.min((group + 1) * size)).collect()
            }
            Plan::Custom { ids } => {
                let mut ranges: Vec<Range<usize>> = Vec::new();
                for (e, _) in ids
                    .iter()
                    .enumerate()
                    .filter(|(_, id)| **id as usize == group)
                {
                    match ranges.last_mut() {
                        Some(last) if last.end == e => last.end += 1,
                        _ => ranges.push(e..e + 1),
                    }
                }
                ranges
            }
            Plan::Blocks { .. } => {
                let [stretch, second, inner] = self.block_sides();
                let (block, channel) = (group / second, group % second);
                (block * stretch..(block + 1) * stretch)
                    .map(|first| (first * second + channel) * inner)
                    .map(|start| start..start + inner)
                    .collect()
            }
            Plan::Axis(s) => {
                let length = self.shape[s.axis];
                let outer: usize = self.shape[..s.axis].iter().product();
                let inner: usize = self.shape[s.axis + 1..].iter().product();
                let position =
                    group / s.per * (length / s.repeats) + s.offset + group % s.per * s.width;
                (0..outer)
                    .map(|o| (o * length + position) * inner)
                    .map(|start| start..start + s.width * inner)
                    .collect()
            }
        }
    }

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
        reduction: Reduction,
    ) -> Contribution<C> {
        contribution.map(|tensor| {
            let elements: usize = self.shape.iter().product();
            assert_eq!(tensor.dims()[1], elements, "elements of a contribution");
            self.reduced(self.sum(tensor), reduction)
        })
    }

    /// What sums over groups, `[samples, groups]`, come to.
    pub(crate) fn reduced(&self, sums: Tensor<2>, reduction: Reduction) -> Tensor<2> {
        let elements: usize = self.shape.iter().product();
        match (&self.plan, reduction) {
            (Plan::Element, _) | (_, Reduction::Sum) => sums,
            (Plan::Axis(slices), Reduction::Mean) => {
                sums.div_scalar((elements / self.shape[slices.axis] * slices.width) as f64)
            }
            (Plan::Blocks { .. }, Reduction::Mean) => {
                sums.div_scalar((elements / self.groups) as f64)
            }
            (Plan::Buckets { .. } | Plan::Custom { .. }, Reduction::Mean) => {
                let sizes: Vec<f32> = self.sizes().iter().map(|&n| n as f32).collect();
                let (device, dtype) = (sums.device(), sums.dtype());
                let sizes = Tensor::<1>::from_data(sizes.as_slice(), (&device, DType::F32));
                sums / sizes.cast(dtype).unsqueeze()
            }
        }
    }

    /// Whether the whole parameter is one group: such as all keys, where all queries share one head.
    pub(crate) fn is_whole(&self) -> bool {
        self.groups == 1 && self.sizes()[0] == self.shape.iter().product::<usize>()
    }

    /// The axis that the groups are slices of, if they are.
    pub(crate) fn axis(&self) -> Option<usize> {
        match &self.plan {
            Plan::Axis(slices) => Some(slices.axis),
            _ => None,
        }
    }

    /// Whether its sums do not follow from sums over a side of the parameter.
    pub(crate) fn is_scattered(&self) -> bool {
        !self.is_whole() && self.axis().is_none()
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
        reduction: Reduction,
    ) -> Option<Tensor<2>> {
        if self.is_whole() {
            // It can be had from either side.
            let any = margins.rows.as_ref().or(margins.columns.as_ref())?;
            let sums = any.clone().sum_dim(1);
            let elements: usize = self.shape.iter().product();
            return Some(match reduction {
                Reduction::Sum => sums,
                Reduction::Mean => sums.div_scalar(elements as f64),
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

fn whole_axis(axis: usize, length: usize) -> Plan {
    Plan::Axis(AxisSlices {
        axis,
        repeats: 1,
        offset: 0,
        per: length,
        width: 1,
    })
}

fn custom_groups(ids: &[u32], elements: usize) -> Result<usize, String> {
    if ids.len() != elements {
        return Err(format!("{} ids for {elements} elements", ids.len()));
    }
    let groups = ids.iter().max().map_or(0, |&id| id as usize + 1);
    // Every id needs an element, so there cannot be more groups than elements.
    if groups > elements {
        return Err(format!("group {} is beyond the elements", groups - 1));
    }
    let mut seen = vec![false; groups];
    ids.iter().for_each(|&id| seen[id as usize] = true);
    match seen.iter().position(|seen| !seen) {
        Some(gap) => Err(format!("group {gap} has no elements")),
        None => Ok(groups),
    }
}

impl AxisSlices {
    /// The number of groups, if the slices lie inside the axis.
    fn groups(&self, shape: &[usize]) -> Result<usize, String> {
        let length = *shape
            .get(self.axis)
            .ok_or_else(|| format!("the shape {shape:?} has no axis {}", self.axis))?;
        let inside = || {
            let stretch = length.checked_div(self.repeats)?;
            let end = self.per.checked_mul(self.width)?.checked_add(self.offset)?;
            let fits = stretch * self.repeats == length && end <= stretch;
            (fits && self.per > 0 && self.width > 0).then(|| self.per * self.repeats)
        };
        inside().ok_or_else(|| {
            format!(
                "{self:?} does not fit axis {} of length {length}",
                self.axis
            )
        })
    }

    /// The group of a position on the axis.
    fn group_of(&self, position: usize, length: usize) -> Option<usize> {
        let stretch = length / self.repeats;
        let group = (position % stretch).checked_sub(self.offset)? / self.width;
        (group < self.per).then_some(position / stretch * self.per + group)
    }

    fn sum(&self, tensor: Tensor<2>, shape: &[usize]) -> Tensor<2> {
        let samples = tensor.dims()[0];
        let outer: usize = shape[..self.axis].iter().product();
        let inner: usize = shape[self.axis + 1..].iter().product();
        let stretch = shape[self.axis] / self.repeats;
        let groups = self.repeats * self.per;
        let tensor = tensor
            .reshape([samples, outer, self.repeats, stretch, inner])
            .narrow(3, self.offset, self.per * self.width)
            .reshape([samples, outer, groups, self.width * inner]);
        let over = |tensor: Tensor<4>, axis: usize| match tensor.dims()[axis] {
            1 => tensor,
            _ => tensor.sum_dim(axis),
        };
        over(over(tensor, 3), 1).reshape([samples, groups])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gradient, Orientation, Raw, Sample, Tokens};
    use burn::tensor::Device;
    use rstest::rstest;

    #[rstest]
    #[case(Scheme::Buckets { size: 0 }, "size above 0")]
    #[case(Scheme::Custom { ids: vec![0, 1] }, "2 ids for 6 elements")]
    #[case(Scheme::Custom { ids: vec![0, 0, 0, 2, 2, 2] }, "group 1 has no elements")]
    #[case(Scheme::Custom { ids: vec![0, 0, 0, 2, 2, u32::MAX] }, "beyond the elements")]
    #[case(Scheme::Head, "does not mention it")]
    fn what_does_not_fit_is_refused(#[case] scheme: Scheme, #[case] reason: &str) {
        let parameter = Parameter::new("w", [2, 3], Role::Matrix, Orientation::InputOutput);
        let error = Grouping::of(&parameter, &scheme, &HeadLayout::none()).expect_err("refused");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains("`w`"), "{error}");
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

    #[test]
    fn a_convolution_has_its_outputs_first() {
        let device = Device::flex();
        let kernel = Parameter::new("k", [2, 1, 2], Role::Convolution, Orientation::OutputInput);
        let grouping = Grouping::of(&kernel, &Scheme::OutputChannel, &HeadLayout::none());
        let tokens = Tokens::of(&[Sample::new("0", 1).expect("tokens")], &device);
        let gradient = Tensor::<4>::from_floats([[[[1.0, 2.0]], [[3.0, 4.0]]]], &device);
        let contribution = Gradient::token_sum(gradient).contribution::<Raw>(&tokens);
        let sums = grouping.expect("a grouping")[0].reduce(&contribution, Reduction::Sum);
        assert_eq!(
            sums.tensor().try_to_vec_as::<f32>().expect("data"),
            [5.0, 25.0]
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

    #[test]
    fn a_hostile_grouping_is_refused() {
        for json in [
            r#"{"label":"channel","shape":[2,3],"plan":{"axis":{"axis":7,"repeats":1,"offset":0,"per":3,"width":1}}}"#,
            r#"{"label":"channel","shape":[2,3],"plan":{"axis":{"axis":1,"repeats":18446744073709551615,"offset":0,"per":3,"width":1}}}"#,
            r#"{"label":"channel","shape":[2,3],"plan":{"axis":{"axis":1,"repeats":0,"offset":0,"per":3,"width":1}}}"#,
            r#"{"label":"channel","shape":[2,3],"plan":{"axis":{"axis":1,"repeats":1,"offset":1,"per":3,"width":1}}}"#,
            r#"{"label":"channel","shape":[2,3],"plan":{"axis":{"axis":1,"repeats":1,"offset":1,"per":9223372036854775807,"width":9}}}"#,
            r#"{"label":"element","shape":[4294967296,4294967296,4294967296],"plan":"element"}"#,
            r#"{"label":"custom","shape":[2],"plan":{"custom":{"ids":[0,4294967295]}}}"#,
            r#"{"label":"channel","shape":[4],"plan":{"blocks":{"blocks":2}}}"#,
            r#"{"label":"channel","shape":[4,3],"plan":{"blocks":{"blocks":0}}}"#,
            r#"{"label":"channel","shape":[4,3],"plan":{"blocks":{"blocks":3}}}"#,
        ] {
            assert!(serde_json::from_str::<Grouping>(json).is_err(), "{json}");
        }
    }
}
