//! Statistics as one `.safetensors` file.
//!
//! Tensors, with a task's name percent-encoded where it holds `/` or `%`:
//!
//! | name | shape | |
//! |---|---|---|
//! | `{task}/mean/{parameter}`, `{task}/m2/{parameter}` | the parameter's | elementwise mean, sum of squared deviations |
//! | `{task}/group_mean/{label}/{parameter}`, `../group_m2/..` | `[groups]` | grouped |
//! | `{task}/total_mean/layer`, `{task}/total_mean/head`, `../total_m2/..`, `../total_m3/..` | `[layers]`, `[heads]` | whole layers and heads, always float64; the third is the sum of cubed deviations |
//! | `{task}/unit_sums` | `[units, layers + heads]` | the same summed over units of samples: clusters, samples without one, or neighbours of these where they are many |
//! | `{task}/unit_of_sample` | `[samples]` | uint32: the unit of every sample that was not skipped |
//! | `{task}/samples` | `[bytes]` | JSON: `[{"id", "tokens", "skipped"?, "cluster"?}, ..]` |
//! | `%groups/custom/{parameter}` | the parameter's | uint32: the group of every element, where groups were chosen by hand |
//!
//! Values are float64; or float32 where accumulation was in compensated float32, and then
//! `mean_low`, `m2_low` and so on hold what float32 rounded off: the sum of the two is the value.
//!
//! The metadata's only entry, `fisher`, is JSON: `schema`, `writer`, `provenance`, `plan` (shapes
//! and groups of every parameter, names of the totals), `tasks` (per task the number of samples
//! behind every mean) and `sha256`: over that JSON text with the digits of `sha256` taken out, and
//! then, in the order of their names, the JSON `[name,type,shape]` and the bytes of every tensor.
//! Schemas 1 and 2, which are read as well, have no third moments and no units, and 1 had chosen groups
//! as lists in `plan`. In Python:
//!
//! ```python
//! import json, numpy as np
//! from safetensors import safe_open
//! with safe_open("statistics.safetensors", "np") as file:
//!     about = json.loads(file.metadata()["fisher"])
//!     mean = file.get_tensor("alpha/mean/layers.0.attention.query.weight")
//!     ids = [s["id"] for s in json.loads(file.get_tensor("alpha/samples").tobytes())]
//! ```

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use burn::tensor::{DType, Device, TensorData};
use serde::{Deserialize, Serialize};

use super::accumulators::Statistics;
use super::plan::Plan;
use super::slots::slots;
use super::task::TaskStatistics;
use crate::container::{
    Contents, HEADER_LIMIT, Source, WRITER, encode, ensure_writable, indices, write,
};
use crate::error::{Error, Result, format_error};
use crate::gradient::{ContributionUnit, GradientUnit, TokenSum};
use crate::grouping::{Grouping, Unchecked};
use crate::moments::Welford;
use crate::provenance::Provenance;
use crate::sample::{SampleRecord, Seen};

/// The version of the file format that this library writes. It reads all versions up to it.
pub const SCHEMA_VERSION: u64 = 3;

pub(super) const METADATA: &str = "fisher";

#[derive(Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) schema: u64,
    writer: String,
    provenance: Provenance,
    plan: Plan<Unchecked>,
    /// Task to the name of a mean, of third moments and of units, to its number of samples.
    pub(super) tasks: BTreeMap<String, BTreeMap<String, u64>>,
    pub(super) sha256: String,
}

impl<C: ContributionUnit> Statistics<C> {
    /// Write the statistics to `path`, atomically: a reader finds the old file or the new one,
    /// whole, also when the program is killed meanwhile.
    ///
    /// Files that a killed program had begun in the same folder are removed.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written, for which
    /// [`Statistics::ensure_savable`] tells beforehand; [`Error::HalfBatch`] when a batch
    /// did not end well, [`Error::Header`] when there are too many tasks and parameters for one file,
    /// [`Error::Device`] when the device does not give the values.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write(path.as_ref(), true)
    }

    /// The same without the records of the samples, for whoever keeps them elsewhere: read by
    /// [`Statistics::load_with_samples`]. Of a run of training they grow with every capture, and the
    /// rest does not.
    ///
    /// # Errors
    /// As [`Statistics::save`].
    pub fn save_without_samples(&self, path: impl AsRef<Path>) -> Result<()> {
        self.write(path.as_ref(), false)
    }

    fn write(&self, path: &Path, with_samples: bool) -> Result<()> {
        self.check_whole()?;
        let (metadata, mut tensors) = self.about(path, with_samples)?;
        for (name, task) in &self.tasks {
            // Accumulators are handles: a clone copies no values. Records of samples are values, and grow.
            let mut accumulators = task.parameters.clone();
            for slot in slots(&mut accumulators, name, &self.plan) {
                slot.write(&mut tensors);
            }
        }
        write(path, METADATA, &tensors, metadata, |m| &mut m.sha256)
    }

    /// The metadata of a file, and all of its tensors but those of elements and groups.
    pub(super) fn about(
        &self,
        path: &Path,
        with_samples: bool,
    ) -> Result<(Metadata, BTreeMap<String, Source<'static>>)> {
        let mut tensors = BTreeMap::new();
        let mut tasks: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (name, task) in &self.tasks {
            let counts = tasks.entry(name.clone()).or_default();
            let mut accumulators = task.parameters.clone();
            for slot in slots(&mut accumulators, name, &self.plan) {
                counts.insert(slot.name("mean"), task.totals.count);
            }
            for (_, mean, _) in TaskStatistics::totals_named(name, &self.plan) {
                counts.insert(mean, task.totals.count);
            }
            // What statistics that hold samples of an older version's file do not have is not named.
            for written in task.write_totals(name, &self.plan, &mut tensors) {
                counts.insert(written, task.totals.count);
            }
            if with_samples {
                let samples = serde_json::to_vec(task.samples());
                let samples = samples.map_err(|e| format_error(path, e))?;
                let length = samples.len();
                let samples = TensorData::from_bytes_vec(samples, [length], DType::U8);
                tensors.insert(format!("{}/samples", encode(name)), samples.into());
            }
        }
        let plan = self.plan.clone().try_map(|path, shape, grouping| {
            let mut grouping = Unchecked::from(grouping);
            let name = groups_name(path, grouping.label());
            if let Some(ids) = grouping.custom_ids() {
                let ids = TensorData::new(std::mem::take(ids), shape.to_vec());
                tensors.insert(name, ids.into());
            }
            Ok(grouping)
        });
        let metadata = Metadata {
            schema: SCHEMA_VERSION,
            writer: WRITER.into(),
            provenance: self.provenance.clone(),
            plan: plan.map_err(|e| format_error(path, e))?,
            tasks,
            sha256: String::new(),
        };
        Ok((metadata, tensors))
    }

    /// Make sure, before long work begins, that these statistics can be saved to `path` when they have
    /// `task` as well: see [`ensure_writable`](crate::container::ensure_writable). All names of all tasks stand in
    /// the file's header, whose length has an end.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Header`], as [`Statistics::save`] would give them.
    pub fn ensure_savable(&self, path: impl AsRef<Path>, task: &str) -> Result<()> {
        let path = path.as_ref();
        ensure_writable(path)?;
        let bytes = self.least_header(task);
        if bytes <= HEADER_LIMIT {
            return Ok(());
        }
        Err(Error::Header {
            path: path.into(),
            bytes,
            limit: HEADER_LIMIT,
        })
    }

    /// Bytes that a header takes at least.
    fn least_header(&self, task: &str) -> usize {
        let accumulators = self.plan.parameters.iter().flat_map(|(path, plan)| {
            let elements = plan.elementwise.then_some((path.len(), plan.variance));
            let groups = plan.groupings.iter();
            let groups = groups.map(|g| (g.label().len() + path.len(), true));
            elements.into_iter().chain(groups)
        });
        let pair = self.plan.dtype(&self.device) == DType::F32;
        let (mut count, mut bytes) = (0, 0);
        for (name, variance) in accumulators {
            // `"..":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},` for each, and `\"..\":1,`.
            let tensors = (1 + usize::from(variance)) * (1 + usize::from(pair));
            count += tensors + 1;
            bytes += tensors * (name + 60) + name + 7;
        }
        let named = self.tasks.keys().filter(|known| *known != task);
        let named = named.map(String::len).chain([task.len()]);
        named.map(|name| count * name + bytes).sum()
    }

    /// Read statistics from `path` to `device`, as [`Statistics::to_device`] would bring them there:
    /// bit for bit, unless one of the two devices has float64 and the other has not.
    ///
    /// A file that counts samples more than once, as versions before could write it, is read with a
    /// warning.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read; [`Error::Format`], [`Error::Checksum`] or
    /// [`Error::Version`] when it is not a whole statistics file of a version that is known;
    /// [`Error::Incompatible`] when its contributions are of another unit than `C`.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::read(path.as_ref(), device, None)
    }

    /// Read statistics that were written by [`Statistics::save_without_samples`], with the records of
    /// each task's samples as they were then, in their order.
    ///
    /// # Errors
    /// As [`Statistics::load`]; [`Error::Format`] when the samples are not those of the accumulators.
    pub fn load_with_samples(
        path: impl AsRef<Path>,
        device: &Device,
        samples: BTreeMap<String, Vec<SampleRecord>>,
    ) -> Result<Self> {
        Self::read(path.as_ref(), device, Some(samples))
    }

    /// `kept` are the samples, where they are not in the file.
    fn read(
        path: &Path,
        device: &Device,
        kept: Option<BTreeMap<String, Vec<SampleRecord>>>,
    ) -> Result<Self> {
        let file = Contents::open(path, METADATA)?;
        file.check_version(1..=SCHEMA_VERSION)?;
        let metadata: Metadata = file.metadata()?;
        let views = file.tensors(&metadata.sha256)?;
        Self::of_file(path, device, metadata, &views, kept, true)
    }

    /// From what was found in a file; without its elements and groups, the accumulators have none.
    pub(super) fn of_file(
        path: &Path,
        device: &Device,
        metadata: Metadata,
        views: &BTreeMap<String, Source>,
        mut kept: Option<BTreeMap<String, Vec<SampleRecord>>>,
        elements: bool,
    ) -> Result<Self> {
        let format = |reason: String| format_error(path, reason);
        if metadata.provenance.loss != TokenSum::NAME {
            return Err(format(format!(
                "its losses are `{}`",
                metadata.provenance.loss
            )));
        }
        if metadata.provenance.unit != C::NAME {
            return Err(Error::Incompatible {
                what: "the contribution unit".into(),
                ours: C::NAME.into(),
                theirs: metadata.provenance.unit,
            });
        }
        let plan = metadata.plan.try_map(|path, shape, mut grouping| {
            let name = groups_name(path, grouping.label());
            if let Some(ids) = grouping.custom_ids().filter(|ids| ids.is_empty()) {
                *ids = custom_ids(&name, shape, views)?;
            }
            Grouping::try_from(grouping)
        });
        let mut plan = plan.map_err(format)?;
        plan.check().map_err(format)?;
        if metadata.schema < 3 && plan.totals.leave_out_shared() {
            tracing::warn!(
                ?path,
                "whole heads are left out: versions before counted key/value heads that are shared \
                 once for each head; measure again to have them"
            );
        }

        let device = device.clone().without_autodiff();
        let mut tasks = BTreeMap::new();
        for (name, counts) in &metadata.tasks {
            // Sizes come from the file's tensors, never from its numbers alone.
            let mut task = TaskStatistics::with(&plan, |_| Welford::new(0, &device));
            let samples: Vec<SampleRecord> = match &mut kept {
                Some(kept) => kept.remove(name).unwrap_or_default(),
                None => {
                    let samples = format!("{}/samples", encode(name));
                    let samples = views
                        .get(&*samples)
                        .ok_or_else(|| format(format!("no `{samples}`")))?;
                    serde_json::from_slice(&samples.bytes()?).map_err(|e| format_error(path, e))?
                }
            };
            let (samples, twice) = Seen::of(samples);
            if twice > 0 {
                tracing::warn!(
                    ?path,
                    task = name,
                    samples = twice,
                    "samples were counted more than once: error bars are too small"
                );
            }
            task.samples = samples;
            let count = task.check_samples().map_err(format)?;
            for (_, mean, _) in TaskStatistics::totals_named(name, &plan) {
                if counts.get(&mean) != Some(&count) {
                    return Err(format(format!(
                        "`{mean}` is not of the task's {count} samples"
                    )));
                }
            }
            task.read_totals(name, &plan, counts, views)
                .map_err(format)?;
            for slot in slots(&mut task.parameters, name, &plan) {
                if counts.get(&slot.name("mean")) != Some(&count) {
                    let name = slot.name("mean");
                    return Err(format(format!(
                        "`{name}` is not of the task's {count} samples"
                    )));
                }
                if elements {
                    let read = slot.read(count, views, &device, plan.dtype(&device));
                    read.map_err(format)?;
                }
            }
            tasks.insert(name.clone(), task);
        }
        Ok(Self {
            ghost: true,
            pending: None,
            half: false,
            provenance: metadata.provenance,
            plan,
            tasks,
            device,
            unit: PhantomData,
        })
    }
}

/// No task's name begins with `%`, as it stands in tensor names: see [`encode`].
fn groups_name(parameter: &str, label: &str) -> String {
    format!("%groups/{label}/{parameter}")
}

fn custom_ids(
    name: &str,
    shape: &[usize],
    views: &BTreeMap<String, Source>,
) -> Result<Vec<u32>, String> {
    let view = views.get(name).ok_or_else(|| format!("no `{name}`"))?;
    indices(name, view, shape)
}
