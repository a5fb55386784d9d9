//! Which of a model's parameters a flag means.

use std::str::FromStr;

use burn::module::ParamGroup;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::Catalogue;
use serde::{Deserialize, Serialize};

/// Some of the parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// All.
    All,
    /// None.
    None,
    /// Those that hold attention heads.
    Attention,
    /// Those whose name in the checkpoint matches.
    Pattern(String),
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "all" => Self::All,
            "none" => Self::None,
            "attention" => Self::Attention,
            pattern => {
                regex(pattern)?;
                Self::Pattern(pattern.into())
            }
        })
    }
}

impl Selection {
    /// Those among the parameters of `catalogue` that are meant; `None` when none is.
    ///
    /// # Errors
    /// When the pattern matches nothing.
    pub fn of(
        &self,
        catalogue: &Catalogue,
        heads: &HeadLayout,
    ) -> Result<Option<ParamGroup>, String> {
        let group = match self {
            Self::All => {
                let paths = catalogue.parameters().iter().map(|p| p.path().to_owned());
                ParamGroup::from_paths(paths.collect())
            }
            Self::None => return Ok(None),
            Self::Attention => heads.group(),
            Self::Pattern(pattern) => regex(pattern)?,
        };
        catalogue.filter(&group).map_err(|e| match self {
            Self::Pattern(pattern) => format!(
                "`{pattern}` is found in no name. Give a regular expression that is found in those meant, such as \
                 'self_attn\\.(q|v)_proj': {e}"
            ),
            _ => e.to_string(),
        })?;
        Ok(Some(group))
    }
}

fn regex(pattern: &str) -> Result<ParamGroup, String> {
    let group = ParamGroup::from_regex(pattern);
    group.map_err(|e| format!("`{pattern}` is no regular expression: {e:?}"))
}
