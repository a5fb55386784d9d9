//! Samples that say the same as one before, or the contrary.

use std::collections::HashMap;

use super::finding::{Finding, Judged};
use super::weights::few;
use crate::models::Sequence;
use crate::samples::TaskData;

/// A sample, and one before it that it is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The one before, as `task: id`, and its class.
    pub first: (String, Option<usize>),
    /// The sample.
    pub second: (String, Option<usize>),
    /// Whether both are of one task.
    pub within: bool,
}

/// Samples whose tokens and labels came before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repeated {
    /// How many samples were looked at.
    pub samples: usize,
    /// Whether they have classes.
    pub classes: bool,
    /// With the same class, or none: beside the first of those.
    pub copies: Vec<Pair>,
    /// With other classes alone: beside the first of all.
    pub contradictions: Vec<Pair>,
}

/// Compare every sample with all before it.
pub fn repeated(tasks: &[TaskData]) -> Repeated {
    /// A task, its sample, and the sample's class.
    type Known<'a> = (&'a str, String, Option<usize>);
    let mut known: HashMap<[&[i64]; 2], Vec<Known>> = HashMap::new();
    let mut found = Repeated::default();
    for task in tasks {
        for sample in &task.samples {
            let Sequence { tokens, labels, .. } = sample;
            let name = format!("{}: {}", task.name, sample.id);
            let class = sample.class;
            found.samples += 1;
            found.classes |= class.is_some();
            let alike = known.entry([tokens, labels]).or_default();
            let pair = |(of, first, theirs): &Known| Pair {
                first: (first.clone(), *theirs),
                second: (name.clone(), class),
                within: *of == task.name,
            };
            if let Some(first) = alike.iter().find(|(_, _, theirs)| *theirs == class) {
                found.copies.push(pair(first));
                continue;
            }
            found.contradictions.extend(alike.first().map(pair));
            alike.push((&task.name, name, class));
        }
    }
    found
}

impl Repeated {
    /// What is to be said of them.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.copied()];
        findings.extend(self.classes.then(|| self.contradicted()));
        findings
    }

    fn copied(&self) -> Finding {
        const TEST: &str = "copies";
        let all = self.samples;
        if self.copies.is_empty() {
            let counts = if self.classes { "class" } else { "labels" };
            let said = format!("no two of {all} samples have the same tokens and {counts}");
            return Finding::new(TEST, Judged::Fine, said);
        }
        let within = self.copies.iter().filter(|pair| pair.within).count();
        let mut why = Vec::new();
        if within > 0 {
            why.push("in one task they make errors look smaller than they are");
        }
        if within < self.copies.len() {
            why.push("in two tasks they make these look alike");
        }
        let pairs = self.copies.iter();
        let pairs = pairs.map(|pair| format!("`{}` = `{}`", pair.first.0, pair.second.0));
        let said = format!(
            "{} of {all} samples are copies of another, and {}: {}",
            self.copies.len(),
            why.join(", "),
            few(&pairs.collect::<Vec<_>>())
        );
        Finding::new(TEST, Judged::Warning, said)
    }

    fn contradicted(&self) -> Finding {
        const TEST: &str = "contradictions";
        let all = self.samples;
        if self.contradictions.is_empty() {
            let said = format!("no two of {all} samples have the same tokens and other classes");
            return Finding::new(TEST, Judged::Fine, said);
        }
        let named = |(name, class): &(String, Option<usize>)| {
            let class = class.map_or(String::new(), |class| format!(" (class {class})"));
            format!("`{name}`{class}")
        };
        let pairs = self.contradictions.iter();
        let pairs = pairs.map(|pair| format!("{} and {}", named(&pair.first), named(&pair.second)));
        let said = format!(
            "{} of {all} samples have the tokens of another and contradict its class: {}",
            self.contradictions.len(),
            few(&pairs.collect::<Vec<_>>())
        );
        Finding::new(TEST, Judged::Warning, said)
    }
}
