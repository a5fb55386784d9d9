//! The accumulators of a task's elements and groups, and their places in a file.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, TensorData, Transaction};
use safetensors::tensor::TensorView;

use super::plan::Plan;
use super::task::ParameterStatistics;
use crate::container::{data, encode};
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

    pub(super) fn write(&self, tensors: &mut BTreeMap<String, TensorData>) -> Result<()> {
        let (mean, m2) = self.welford.joined();
        for (name, moment) in [("mean", Some(&mean)), ("m2", m2.as_ref())] {
            let Some(moment) = moment else { continue };
            let parts = [Some(&moment.high), moment.low.as_ref()];
            let parts = parts.into_iter().flatten();
            let transaction =
                parts.fold(Transaction::default(), |t, part| t.register(part.clone()));
            let data = transaction.try_execute().map_err(Error::device)?;
            for (data, low) in data.into_iter().zip(["", "_low"]) {
                let (bytes, _, dtype) = data.into_parts();
                let data = TensorData::from_bytes(bytes, self.shape.clone(), dtype);
                tensors.insert(self.name(&format!("{name}{low}")), data);
            }
        }
        Ok(())
    }

    pub(super) fn read(
        self,
        count: u64,
        views: &BTreeMap<String, TensorView>,
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
