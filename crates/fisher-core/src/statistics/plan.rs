//! What is accumulated of every parameter.

use std::collections::{BTreeMap, HashSet};

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::grouping::{Grouping, Totals};
use crate::model::Role;
use crate::moments::accumulation_dtype;

/// What is accumulated of every parameter. `G` is what a file has for a grouping, where it is read
/// or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan<G = Grouping> {
    pub(super) parameters: BTreeMap<String, ParameterPlan<G>>,
    pub(super) totals: Totals,
    pub(super) compensated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ParameterPlan<G = Grouping> {
    pub(super) shape: Vec<usize>,
    pub(super) role: Role,
    pub(super) elementwise: bool,
    /// Of elements.
    #[serde(default = "yes")]
    pub(super) variance: bool,
    pub(super) groupings: Vec<G>,
}

fn yes() -> bool {
    true
}

impl<G> Plan<G> {
    /// The same with every grouping turned into something else; `turn` is told its parameter's path
    /// and shape.
    pub(super) fn try_map<H>(
        self,
        mut turn: impl FnMut(&str, &[usize], G) -> Result<H, String>,
    ) -> Result<Plan<H>, String> {
        let mut turned = |(path, plan): (String, ParameterPlan<G>)| {
            let groupings = plan.groupings.into_iter();
            let groupings = groupings.map(|grouping| turn(&path, &plan.shape, grouping));
            let plan = ParameterPlan {
                groupings: groupings.collect::<Result<_, _>>()?,
                shape: plan.shape,
                role: plan.role,
                elementwise: plan.elementwise,
                variance: plan.variance,
            };
            Ok::<_, String>((path, plan))
        };
        let parameters = self.parameters.into_iter();
        Ok(Plan {
            parameters: parameters.map(&mut turned).collect::<Result<_, _>>()?,
            totals: self.totals,
            compensated: self.compensated,
        })
    }
}

impl Plan {
    /// The type that accumulators keep on `device`; pairs where it is float32.
    pub(super) fn dtype(&self, device: &Device) -> DType {
        if self.compensated {
            DType::F32
        } else {
            accumulation_dtype(device)
        }
    }

    /// Whether it fits together: for what comes from a file.
    pub(super) fn check(&self) -> Result<(), String> {
        for (path, parameter) in &self.parameters {
            let labels: HashSet<&str> = parameter.groupings.iter().map(Grouping::label).collect();
            if labels.len() < parameter.groupings.len() {
                return Err(format!("`{path}` is grouped twice in one way"));
            }
            let elements = parameter
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d));
            let fits = |grouping: &Grouping| grouping.shape() == parameter.shape;
            if elements.is_none() || !parameter.groupings.iter().all(fits) {
                return Err(format!("the groups of `{path}` do not fit its shape"));
            }
        }
        let shapes = self.parameters.iter();
        let shapes = shapes.map(|(path, parameter)| (&**path, &*parameter.shape));
        self.totals.check(&shapes.collect())
    }
}

impl ParameterPlan {
    pub(super) fn describe(&self) -> String {
        let groups = self.groupings.iter();
        let groups: Vec<String> = groups
            .map(|g| format!("{} {}", g.groups(), g.label()))
            .collect();
        format!(
            "shape {:?}, elementwise {}, variance {}, groups [{}]",
            self.shape,
            self.elementwise,
            self.variance,
            groups.join(", ")
        )
    }
}
