//! The totals of a task and their places in a file.

use std::collections::BTreeMap;

use burn::tensor::{DType, TensorData};

use super::plan::Plan;
use super::rows::Rows;
use super::task::TaskStatistics;
use crate::container::{Source, data, encode, indices};
use crate::moments::Skewed;

impl TaskStatistics {
    /// Names of the means of layers and heads, and what part of the totals they are.
    pub(super) fn totals_named(task: &str, plan: &Plan) -> Vec<(&'static str, String, [usize; 2])> {
        let (layers, all) = (plan.totals.layers().len(), plan.totals.values());
        let parts = [("layer", [0, layers]), ("head", [layers, all])];
        let parts = parts.into_iter().filter(|(_, [start, end])| start < end);
        let named = parts.map(|(part, range)| {
            let name = format!("{}/total_mean/{part}", encode(task));
            (part, name, range)
        });
        named.collect()
    }

    /// Names of what not all statistics have: third moments and units.
    pub(super) fn write_totals(
        &self,
        task: &str,
        plan: &Plan,
        tensors: &mut BTreeMap<String, Source>,
    ) -> Vec<String> {
        let mut optional = Vec::new();
        let task_name = encode(task);
        let totals = &self.totals;
        let moments = [
            ("mean", Some(&totals.mean)),
            ("m2", Some(&totals.m2)),
            ("m3", totals.m3.as_ref()),
        ];
        for (part, _, [start, end]) in Self::totals_named(task, plan) {
            for (moment, values) in moments {
                let Some(values) = values else { continue };
                let values = values[start..end].to_vec();
                let name = format!("{task_name}/total_{moment}/{part}");
                optional.extend((moment == "m3").then(|| name.clone()));
                tensors.insert(name, TensorData::new(values, [end - start]).into());
            }
        }
        if self.has_units() {
            let columns = self.rows.columns();
            let sums = self.rows.sums().to_vec();
            let units = sums.len() / columns.max(1);
            let sums = TensorData::new(sums, [units, columns]);
            let name = format!("{task_name}/unit_sums");
            optional.push(name.clone());
            tensors.insert(name, sums.into());
            let unit_of = self.rows.unit_of().to_vec();
            let samples = unit_of.len();
            let unit_of = TensorData::new(unit_of, [samples]);
            tensors.insert(format!("{task_name}/unit_of_sample"), unit_of.into());
        }
        optional
    }

    /// What was written, of samples that are known already; `counts` names all of it.
    pub(super) fn read_totals(
        &mut self,
        task: &str,
        plan: &Plan,
        counts: &BTreeMap<String, u64>,
        views: &BTreeMap<String, Source>,
    ) -> Result<(), String> {
        let task_name = encode(task);
        let of = |name: &str, shape: &[usize]| match views.get(name) {
            None => Ok(None),
            Some(view) if view.shape() == shape => {
                let data = data(name, view)?;
                match data.dtype() {
                    DType::F64 | DType::F32 => Ok(Some(data.iter::<f64>().collect::<Vec<_>>())),
                    _ => Err(format!("`{name}` is not of numbers")),
                }
            }
            Some(view) => Err(format!(
                "`{name}` has shape {:?}, expected {shape:?}",
                view.shape()
            )),
        };
        let count = self.count() as u64;
        let named = |name: &String| counts.get(name) == Some(&count);
        let mut totals = Skewed::new(0);
        totals.count = count;
        for (part, _, [start, end]) in Self::totals_named(task, plan) {
            let moment = |moment: &str| {
                let name = format!("{task_name}/total_{moment}/{part}");
                let Some(mut values) = of(&name, &[end - start])? else {
                    return Ok(None);
                };
                // Older versions wrote pairs where devices have no float64.
                let low = format!("{task_name}/total_{moment}_low/{part}");
                for (value, low) in values
                    .iter_mut()
                    .zip(of(&low, &[end - start])?.iter().flatten())
                {
                    *value += low;
                }
                Ok::<_, String>(Some(values))
            };
            let needed = |name: &str| {
                let missing = || format!("no `{task_name}/total_{name}/{part}`");
                moment(name)?.ok_or_else(missing)
            };
            totals.mean.extend(needed("mean")?);
            totals.m2.extend(needed("m2")?);
            let third = named(&format!("{task_name}/total_m3/{part}"));
            let third = third.then(|| needed("m3")).transpose()?;
            totals.m3 = totals.m3.take().zip(third).map(|(mut all, m3)| {
                all.extend(m3);
                all
            });
        }
        self.totals = totals;
        let columns = plan.totals.values();
        let [sums, unit_of] = ["unit_sums", "unit_of_sample"].map(|n| format!("{task_name}/{n}"));
        if !named(&sums) {
            return Ok(());
        }
        let view = |name: &String| views.get(&**name).ok_or_else(|| format!("no `{name}`"));
        let (view, ours) = (view(&sums)?, view(&unit_of)?);
        let units = view.shape().first().copied().unwrap_or(0);
        let sums = of(&sums, &[units, columns])?.unwrap_or_default();
        let ours = indices(&unit_of, ours, &[count as usize])?;
        let clusters: Vec<Option<&str>> = self.counted().map(|s| s.cluster.as_deref()).collect();
        let rows = Rows::of_saved(columns, sums, ours, clusters.into_iter());
        self.rows = rows.map_err(|reason| format!("task `{task}`: {reason}"))?;
        Ok(())
    }
}
