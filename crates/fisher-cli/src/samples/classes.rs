//! The classes of a classifier.

use std::collections::BTreeMap;

use serde_json::Value;

/// How many classes a classifier tells apart, and what they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    count: usize,
    names: BTreeMap<String, usize>,
}

impl Classes {
    /// So many classes, with the numbers of those that have a name (`label2id` of config.json).
    ///
    /// # Errors
    /// When a name has a number that is no class.
    pub fn new(count: usize, names: BTreeMap<String, usize>) -> Result<Self, String> {
        match names.iter().find(|(_, number)| **number >= count) {
            None => Ok(Self { count, names }),
            Some((name, number)) => Err(format!(
                "`label2id` in config.json gives `{name}` the number {number}, and there are {count} classes, \
                 from 0"
            )),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of the class that a `label` says, by number or by name.
    ///
    /// # Errors
    /// When it is no class.
    pub fn number(&self, label: &Value) -> Result<usize, String> {
        let by_number = |number: u64| usize::try_from(number).ok().filter(|n| *n < self.count);
        let found = match label {
            Value::String(name) => self.names.get(name).copied(),
            Value::Number(number) => number.as_u64().and_then(by_number),
            _ => None,
        };
        found.ok_or_else(|| format!("the label {label} is no class: {}", self.known()))
    }

    /// What labels there are.
    fn known(&self) -> String {
        const SHOWN: usize = 8;
        let names: Vec<String> = self
            .names
            .keys()
            .take(SHOWN)
            .map(|n| format!("`{n}`"))
            .collect();
        let more = if self.names.len() > SHOWN { ", .." } else { "" };
        let named = match &*names.join(", ") {
            "" => ", and config.json has no names of them (`label2id`)".into(),
            names => format!(", or {names}{more}"),
        };
        format!("there are 0 to {}{named}", self.count.saturating_sub(1))
    }
}
