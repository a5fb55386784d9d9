//! The attention layers of a model, by hand or recognized by the names of their parameters.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::ParamGroup;

use super::attention::{Attention, Block};
use super::config::AttentionConfig;
use super::naming::{NAMINGS, Naming, projection};
use super::slices::AxisSlices;
use crate::error::{Error, Result, list};
use crate::model::{Catalogue, Parameter, Role, natural};

/// The attention layers of a model, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeadLayout {
    attention: Vec<Attention>,
    /// Said to belong to no single head.
    headless: BTreeSet<String>,
}

impl HeadLayout {
    /// No heads: for models without attention, or to group attention by channel on purpose.
    pub fn none() -> Self {
        Self::default()
    }

    /// A layout made by hand.
    ///
    /// # Errors
    /// [`Error::HeadLayout`] when a parameter is claimed by two attention layers.
    pub fn new(attention: Vec<Attention>) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for layer in &attention {
            for path in layer.paths() {
                if let Some(first) = seen.insert(path, &layer.name) {
                    return Err(Error::HeadLayout {
                        reason: format!("`{first}` and `{}` both claim `{path}`", layer.name),
                        found: list(layer.paths()),
                    });
                }
            }
        }
        Ok(Self {
            attention,
            headless: BTreeSet::new(),
        })
    }

    /// Say that the parameter at `path` belongs to no single head, though it lies in a projection:
    /// for what is neither its weight nor a known kind of adapter. It is grouped as any other.
    #[must_use]
    pub fn with_headless(mut self, path: impl Into<String>) -> Self {
        self.headless.insert(path.into());
        self
    }

    /// What lies in a projection and belongs to no single head: factors of low-rank adapters that
    /// serve all heads at once (see [`Attention`]), and [`HeadLayout::with_headless`]. No head's
    /// number counts them.
    pub fn headless(&self) -> impl Iterator<Item = &str> {
        let found = self.attention.iter().flat_map(|a| &a.headless);
        found.chain(&self.headless).map(String::as_str)
    }

    /// Recognize attention layers by the names of their parameters.
    ///
    /// | names | layout |
    /// |---|---|
    /// | `query`, `key`, `value`, `output` | separate (Burn's `MultiHeadAttention`) |
    /// | `q_proj`, `k_proj`, `v_proj`, and `o_proj`, `out_proj` or `dense` | separate (LLaMA and its kin; OPT, GPT-J; Phi) |
    /// | `self.query`, `self.key`, `self.value`, `output.dense` | separate (BERT, RoBERTa) |
    /// | `q_lin`, `k_lin`, `v_lin`, `out_lin` | separate (DistilBERT) |
    /// | `c_attn`, `c_proj` | fused, concatenated (GPT-2) |
    /// | `qkv_proj`, `o_proj` | fused, concatenated (Phi-3) |
    /// | `query_key_value`, `dense` | fused, interleaved (GPT-NeoX, BLOOM, Falcon) |
    ///
    /// Each with `.weight`, or `.base_layer.weight` where PEFT wraps it; adapters as in
    /// [`Attention`]. Every layer must have the head counts of `config`; build the layout by hand
    /// where they differ.
    ///
    /// # Errors
    /// [`Error::HeadLayout`], listing what was found, when nothing is recognized, a projection of
    /// a layer is missing, or a shape does not fit.
    pub fn recognize(catalogue: &Catalogue, config: &AttentionConfig) -> Result<Self> {
        let mut attention = Vec::new();
        for (naming, prefix) in Naming::find(catalogue) {
            let name = prefix.trim_end_matches('.');
            let at = |name: &str| projection(catalogue, &format!("{prefix}{name}"));
            attention.push(match naming {
                Naming::Separate(names) => {
                    let paths = names.map(at);
                    let paths = paths.each_ref().map(String::as_str);
                    Attention::separate(name, paths, config, catalogue)?
                }
                Naming::Fused(names, fused) => {
                    let paths = names.map(at);
                    let paths = paths.each_ref().map(String::as_str);
                    Attention::fused(name, paths, *fused, config, catalogue)?
                }
            });
        }
        if attention.is_empty() {
            return Err(Error::HeadLayout {
                reason: format!(
                    "no attention projection is named as in {}",
                    list(NAMINGS.iter().map(|naming| naming.names().join("/")))
                ),
                found: catalogue.describe(),
            });
        }
        attention.sort_by_key(|a| natural(&a.name));
        Self::new(attention)
    }

    /// Trainable parameters that look like attention projections by name, or lie in one, but that
    /// this layout leaves out. Vectors may be left out.
    pub(crate) fn unmentioned(&self, catalogue: &Catalogue) -> Vec<String> {
        let headless: BTreeSet<&str> = self.headless().collect();
        let mut paths = BTreeSet::new();
        for (naming, prefix) in Naming::find(catalogue) {
            for name in naming.names() {
                let module = format!("{prefix}{name}.");
                let inside = catalogue.parameters().iter().filter(|p| {
                    p.path().starts_with(&module)
                        && p.role() != Role::Vector
                        && !self.has(p.path())
                        && !headless.contains(p.path())
                });
                paths.extend(inside.map(|p| p.path().to_owned()));
            }
        }
        paths.into_iter().collect()
    }

    /// The attention layers.
    pub fn attention(&self) -> &[Attention] {
        &self.attention
    }

    /// Whether the layout says where the heads of this parameter are.
    pub fn has(&self, path: &str) -> bool {
        self.attention.iter().any(|a| a.slices.contains_key(path))
    }

    /// The parameters that hold heads: attention only.
    pub fn group(&self) -> ParamGroup {
        let paths = self.attention.iter().flat_map(Attention::paths);
        ParamGroup::from_paths(paths.collect())
    }

    /// The blocks that lie in a parameter, and where.
    pub(super) fn slices(&self, parameter: &Parameter) -> Vec<(Block, AxisSlices)> {
        self.attention
            .iter()
            .find_map(|a| a.slices.get(parameter.path()))
            .cloned()
            .unwrap_or_default()
    }

    pub(super) fn describe(&self) -> String {
        list(self.attention.iter().flat_map(Attention::paths))
    }
}
