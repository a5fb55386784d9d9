//! The names that known models give to the projections of attention.

use super::attention::Fused;
use crate::model::Catalogue;

pub(super) enum Naming {
    Separate([&'static str; 4]),
    Fused([&'static str; 2], Fused),
}

pub(super) const NAMINGS: [Naming; 4] = [
    Naming::Separate(["query", "key", "value", "output"]),
    Naming::Separate(["q_proj", "k_proj", "v_proj", "o_proj"]),
    Naming::Fused(["c_attn", "c_proj"], Fused::Concatenated),
    Naming::Fused(["query_key_value", "dense"], Fused::Interleaved),
];

impl Naming {
    pub(super) fn names(&self) -> &[&'static str] {
        match self {
            Self::Separate(names) => names,
            Self::Fused(names, _) => names,
        }
    }

    /// The naming and prefix of every attention layer: wherever the first projection is.
    pub(super) fn find(catalogue: &Catalogue) -> Vec<(&'static Self, String)> {
        let prefix = |path: &str, first: &str| {
            let module = path.strip_suffix(".weight")?;
            let module = module.strip_suffix(".base_layer").unwrap_or(module);
            let prefix = module.strip_suffix(first)?;
            (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
        };
        let mut found = Vec::new();
        for parameter in catalogue.all() {
            for naming in &NAMINGS {
                if let Some(prefix) = prefix(parameter.path(), naming.names()[0]) {
                    found.push((naming, prefix));
                }
            }
        }
        found
    }
}

/// The weight of the projection that is the module at `path`: PEFT wraps it.
pub(super) fn projection(catalogue: &Catalogue, path: &str) -> String {
    let wrapped = format!("{path}.base_layer.weight");
    if catalogue.all().any(|p| p.path() == wrapped) {
        wrapped
    } else {
        format!("{path}.weight")
    }
}
