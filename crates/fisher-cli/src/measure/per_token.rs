//! Which samples are looked at token by token.

use std::str::FromStr;

use crate::models::{ModelConfig, Outcomes};
use crate::samples::TaskData;

/// Which samples are looked at token by token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PerToken {
    /// The first of each task.
    First(usize),
    /// One by its id, in every task that has it.
    Id(String),
}

impl FromStr for PerToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.strip_prefix("id:"), text.parse()) {
            (Some(id), _) => Ok(Self::Id(id.into())),
            (None, Ok(count)) if count > 0 => Ok(Self::First(count)),
            _ => Err("give a number of samples, or id: and the id of one, such as id:17".into()),
        }
    }
}

impl PerToken {
    /// Whether a model predicts tokens, so that there is something to look at.
    ///
    /// # Errors
    /// When it tells classes apart.
    pub fn suits(config: &ModelConfig) -> Result<(), String> {
        match config.outcomes() {
            Outcomes::Tokens(_) => Ok(()),
            Outcomes::Classes(_) => Err(format!(
                "--per-token looks at each label of a sample, and a sample of this model ({}) has one class and no \
                 labels of tokens: leave it out; report.json has the loss of every sample",
                config.kind
            )),
        }
    }

    /// Whether some task has the sample.
    ///
    /// # Errors
    /// When it has not.
    pub fn is_in(&self, data: &[TaskData]) -> Result<(), String> {
        match self {
            Self::Id(id) if !data.iter().any(|t| t.samples.iter().any(|s| s.id == *id)) => Err(
                format!("no task has a sample `{id}` to look at token by token"),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_named_by_number_or_id() {
        assert_eq!("3".parse(), Ok(PerToken::First(3)));
        assert_eq!("id:3".parse(), Ok(PerToken::Id("3".into())));
        for wrong in ["", "0", "a", "-1"] {
            assert!(wrong.parse::<PerToken>().is_err(), "{wrong}");
        }
    }
}
