//! What was measured of a task, sample by sample.

use std::collections::HashMap;

use fisher_core::statistics::Statistics;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::outcome::Result;
use crate::samples::BadLine;

/// A task as it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The task.
    pub name: String,
    /// Ids of its samples as they were written, in the order of the file.
    pub ids: Vec<Value>,
    /// `T_i`.
    pub tokens: Vec<u64>,
    /// `L_i`, in nats.
    #[serde(rename = "loss_sum")]
    pub losses: Vec<f64>,
    /// Lines that were left out.
    pub bad_lines: Vec<BadLine>,
    /// Samples that were left out because their gradient is not finite, and in which parameter.
    pub skipped: Vec<[String; 2]>,
}

impl Measured {
    /// The samples of `task` that are in `statistics`, of those with these ids and losses.
    ///
    /// # Errors
    /// When the statistics do not have one of them.
    pub fn of(
        statistics: &Statistics,
        task: &str,
        samples: impl IntoIterator<Item = (Value, f64)>,
        bad_lines: Vec<BadLine>,
    ) -> Result<Self> {
        let records = statistics.task(task)?.samples();
        let by_id: HashMap<&str, _> = records.iter().map(|r| (&*r.id, r)).collect();
        let mut measured = Self {
            name: task.into(),
            ids: Vec::new(),
            tokens: Vec::new(),
            losses: Vec::new(),
            bad_lines,
            skipped: Vec::new(),
        };
        for (id, loss) in samples {
            let key = key(&id);
            let record = by_id.get(&*key);
            let record =
                record.ok_or_else(|| format!("sample {key} of {task} was not measured"))?;
            if let Some(parameter) = &record.skipped {
                measured.skipped.push([key, parameter.clone()]);
                continue;
            }
            measured.tokens.push(record.tokens);
            measured.losses.push(loss);
            measured.ids.push(id);
        }
        Ok(measured)
    }

    /// The place of each sample among `known`, which may be in another order: `None` where it is
    /// not there.
    pub fn places<'a>(&self, known: impl IntoIterator<Item = &'a str>) -> Vec<Option<usize>> {
        let places = known.into_iter().enumerate();
        let places: HashMap<&str, usize> = places.map(|(place, id)| (id, place)).collect();
        let place = |id: &Value| places.get(&*key(id)).copied();
        self.ids.iter().map(place).collect()
    }
}

/// An id as samples carry it.
pub fn key(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), Into::into)
}
