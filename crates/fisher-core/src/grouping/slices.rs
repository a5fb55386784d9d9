//! Equal slices of an axis.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Equal slices of one axis, the shape that channels, rows and heads share.
///
/// The axis is cut into `repeats` equal stretches; in each, starting at `offset`, lie `per`
/// consecutive groups of `width` positions. A plain channel is `repeats 1, offset 0, per = axis,
/// width 1`; Q in a concatenated fused QKV has `repeats 1`, interleaved per head it has one
/// repeat a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AxisSlices {
    pub(super) axis: usize,
    pub(super) repeats: usize,
    pub(super) offset: usize,
    pub(super) per: usize,
    pub(super) width: usize,
}

impl AxisSlices {
    /// The number of groups, if the slices lie inside the axis.
    pub(super) fn groups(&self, shape: &[usize]) -> Result<usize, String> {
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
    pub(super) fn group_of(&self, position: usize, length: usize) -> Option<usize> {
        let stretch = length / self.repeats;
        let group = (position % stretch).checked_sub(self.offset)? / self.width;
        (group < self.per).then_some(position / stretch * self.per + group)
    }

    pub(super) fn sum(&self, tensor: Tensor<2>, shape: &[usize]) -> Tensor<2> {
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
