//! The groups of a parameter's elements.

use std::iter::once;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::heads::HeadLayout;
use super::scheme::Scheme;
use super::slices::AxisSlices;
use crate::error::{Error, Result};
use crate::model::{Parameter, Role};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Plan {
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
    pub(super) shape: Vec<usize>,
    pub(super) groups: usize,
    pub(super) plan: Plan,
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
    pub(super) fn block_sides(&self) -> [usize; 3] {
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

    /// The same groups of a bias of this shape, for slices of the output axis that it lies beside; `None` where it has
    /// another length.
    pub(crate) fn of_bias(&self, bias: &[usize]) -> Option<Self> {
        let &[length] = bias else { return None };
        let (label, plan) = match &self.plan {
            Plan::Axis(slices) if self.shape[slices.axis] == length => (
                self.label.clone(),
                Plan::Axis(AxisSlices { axis: 0, ..*slices }),
            ),
            // One output for each group, in the same order.
            Plan::Blocks { .. } if self.groups == length => ("element".into(), Plan::Element),
            _ => return None,
        };
        Self::build(label, bias.to_vec(), plan).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Orientation;
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
