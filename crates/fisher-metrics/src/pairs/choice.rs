//! Which parts of a model are looked at, each by itself.

use std::collections::HashSet;

use burn::module::ParamGroup;
use fisher_core::grouping::HeadLayout;
use fisher_core::model::{Catalogue, Parameter};
use serde::{Deserialize, Serialize};

use super::slices::{BLOCKS, Slice, head_slices};
use crate::error::{Error, Result};

/// What is compared at a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SliceBy {
    /// All parameters together.
    Model,
    /// Every parameter by itself.
    Parameter,
    /// Every slice of an attention head in Q, K, V and O; shared key/value heads once.
    Head,
    /// All parameters of a layer together.
    Layer,
    /// Chosen parameters together, each set with a name.
    Chosen(Vec<(String, ParamGroup)>),
}

impl SliceBy {
    /// What one slice is, in a word that takes an s.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Parameter => "parameter",
            Self::Head => "head slice",
            Self::Layer => "layer",
            Self::Chosen(_) => "set",
        }
    }

    /// Whether there is something to look at.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Chosen(sets) if sets.is_empty() => Err(Error::Settings {
                what: "no set of parameters was chosen; give at least one, or compare by parameter",
            }),
            _ => Ok(()),
        }
    }

    /// The slices; those that are read together are one unit.
    pub(crate) fn units(
        &self,
        catalogue: &Catalogue,
        heads: &HeadLayout,
    ) -> Result<Vec<Vec<Slice>>> {
        let whole = |p: &Parameter| {
            let all = std::iter::once(0..p.elements());
            (p.path().to_owned(), all.collect::<Vec<_>>())
        };
        let parameters = catalogue.parameters();
        Ok(match self {
            Self::Model => {
                let parts = parameters.iter().map(whole);
                vec![vec![Slice::new("the model".into(), parts)]]
            }
            Self::Parameter => parameters
                .iter()
                .map(|p| vec![Slice::new(p.path().into(), [whole(p)])])
                .collect(),
            Self::Head => {
                let blocks = head_slices(heads, catalogue, &BLOCKS)?;
                blocks.into_iter().map(|block| block.slices).collect()
            }
            Self::Layer => {
                let layers = catalogue.layers().into_iter();
                let slice = |(name, of): (String, Vec<&Parameter>)| {
                    vec![Slice::new(name, of.into_iter().map(whole))]
                };
                layers.map(slice).collect()
            }
            Self::Chosen(sets) => {
                let set = |(name, group): &(String, ParamGroup)| {
                    let chosen = catalogue.filter(group)?;
                    let parts = chosen.parameters().iter().map(whole);
                    Ok(vec![Slice::new(name.clone(), parts)])
                };
                sets.iter().map(set).collect::<Result<_>>()?
            }
        })
    }

    /// Whether slices share a parameter. Those of heads are cut from one, and disjoint.
    pub(crate) fn overlap(&self, slices: &[&Slice]) -> bool {
        if !matches!(self, Self::Chosen(_)) {
            return false;
        }
        let mut seen = HashSet::new();
        let mut paths = slices.iter().flat_map(|s| s.parts.iter().map(|p| &p.path));
        paths.any(|path| !seen.insert(path))
    }
}
