//! The accumulators of a task's elements and groups, and their places in a file.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::plan::Plan;
use super::task::ParameterStatistics;
use crate::container::{Source, data, dtype_of, encode};
use crate::error::{Error, Result};
use crate::moments::{Welford, to_device};

/// One accumulator of a task and its place in the file.
pub(super) struct Slot<'a> {
    task: String,
    /// `` for elements, `group_`.
    kind: &'static str,
    rest: String,
    shape: Vec<usize>,
    pub(super) welford: &'a mut Welford,
}

pub(super) fn slots<'a>(
    parameters: &'a mut BTreeMap<String, ParameterStatistics>,
    task: &str,
    plan: &Plan,
) -> Vec<Slot<'a>> {
    let task = encode(task);
    let slot = |kind, rest: String, shape: &[usize], welford| Slot {
        task: task.clone(),
        kind,
        rest,
        shape: shape.to_vec(),
        welford,
    };
    let mut slots = Vec::new();
    for ((path, parameter), plan) in parameters.iter_mut().zip(plan.parameters.values()) {
        if let Some(welford) = &mut parameter.elementwise {
            slots.push(slot("", path.clone(), &plan.shape, welford));
        }
        for (grouping, welford) in &mut parameter.groups {
            let rest = format!("{}/{path}", grouping.label());
            slots.push(slot("group_", rest, &[grouping.groups()], welford));
        }
    }
    slots
}

impl Slot<'_> {
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn name(&self, moment: &str) -> String {
        format!("{}/{}{moment}/{}", self.task, self.kind, self.rest)
    }

    /// What the file has of it; read from the device when it is asked for.
    pub(super) fn write(&self, tensors: &mut BTreeMap<String, Source>) {
        let kept = self.welford.keeps_variance();
        for (name, of_m2) in [("mean", false), ("m2", true)] {
            if of_m2 && !kept {
                continue;
            }
            let (dtype, pairs) = self.welford.dtype();
            for low in [false, true].into_iter().take(1 + usize::from(pairs)) {
                // A handle: the values are those of the statistics.
                let welford = self.welford.clone();
                let bytes = move || {
                    let (mean, m2) = welford.joined();
                    let moment = if of_m2 { m2 } else { Some(mean) };
                    let part = moment.and_then(|m| if low { m.low } else { Some(m.high) });
                    bytes(part)
                };
                let end = if low { "_low" } else { "" };
                let source = Source::new(dtype_of(dtype), self.shape.clone(), bytes);
                tensors.insert(self.name(&format!("{name}{end}")), source);
            }
        }
    }

    pub(super) fn read(
        self,
        count: u64,
        views: &BTreeMap<String, Source>,
        device: &Device,
        dtype: DType,
    ) -> Result<(), String> {
        let part = |name: &str| match views.get(name) {
            Some(view) if view.shape() != self.shape => Err(format!(
                "`{name}` has shape {:?}, expected {:?}",
                view.shape(),
                self.shape
            )),
            Some(view) => data(name, view).map(Some),
            None => Ok(None),
        };
        let moment = |name: &str| {
            let high = self.name(name);
            let low = part(&self.name(&format!("{name}_low")))?;
            let found = part(&high)?.ok_or_else(|| format!("no `{high}`"))?;
            let pair = low.as_ref().map(TensorData::dtype);
            if (found.dtype(), pair) != (DType::F64, None)
                && (found.dtype(), pair) != (DType::F32, Some(DType::F32))
            {
                return Err(format!("`{high}` is neither float64 nor a pair of float32"));
            }
            Ok::<_, String>(to_device(found, low, device, dtype))
        };
        let m2 = self.welford.keeps_variance().then(|| moment("m2"));
        let (mean, m2) = (moment("mean")?, m2.transpose()?);
        *self.welford = Welford::from_parts(count, mean, m2);
        Ok(())
    }
}

/// The values of a tensor; none where there is none.
fn bytes(tensor: Option<Tensor<1>>) -> Result<Cow<'static, [u8]>> {
    let data = tensor.map(|tensor| tensor.try_into_data().map_err(Error::device));
    let (bytes, _, _) = match data.transpose()? {
        Some(data) => data.into_parts(),
        None => return Ok(Cow::Borrowed(&[])),
    };
    Ok(Cow::Owned(bytes.to_vec()))
}
