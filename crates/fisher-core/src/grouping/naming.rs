//! The names that known models give to the projections of attention.

use std::collections::BTreeSet;

use super::attention::Fused;
use crate::model::{Catalogue, Parameter};

pub(super) enum Naming {
    Separate([&'static str; 4]),
    Fused([&'static str; 2], Fused),
}

pub(super) const NAMINGS: [Naming; 9] = [
    Naming::Separate(["query", "key", "value", "output"]),
    Naming::Separate(["q_proj", "k_proj", "v_proj", "o_proj"]),
    Naming::Separate(["q_proj", "k_proj", "v_proj", "out_proj"]),
    Naming::Separate(["q_proj", "k_proj", "v_proj", "dense"]),
    Naming::Separate(["self.query", "self.key", "self.value", "output.dense"]),
    Naming::Separate(["q_lin", "k_lin", "v_lin", "out_lin"]),
    Naming::Fused(["c_attn", "c_proj"], Fused::Concatenated),
    Naming::Fused(["qkv_proj", "o_proj"], Fused::Concatenated),
    Naming::Fused(["query_key_value", "dense"], Fused::Interleaved),
];

impl Naming {
    pub(super) fn names(&self) -> &[&'static str] {
        match self {
            Self::Separate(names) => names,
            Self::Fused(names, _) => names,
        }
    }

    /// The naming and prefix of every attention layer: wherever the first projection is. Of several namings that
    /// begin alike it is the one whose projections are all there.
    pub(super) fn find(catalogue: &Catalogue) -> Vec<(&'static Self, String)> {
        let paths: BTreeSet<&str> = catalogue.all().map(Parameter::path).collect();
        let prefix = |path: &str, first: &str| {
            let module = path.strip_suffix(".weight")?;
            let module = module.strip_suffix(".base_layer").unwrap_or(module);
            let prefix = module.strip_suffix(first)?;
            (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
        };
        let whole = |(naming, prefix): &(&'static Self, String)| {
            let mut names = naming.names().iter();
            names.all(|name| paths.contains(&*projection(catalogue, &format!("{prefix}{name}"))))
        };
        let found = catalogue.all().filter_map(|parameter| {
            let namings = NAMINGS.iter().filter_map(|naming| {
                let prefix = prefix(parameter.path(), naming.names()[0])?;
                Some((naming, prefix))
            });
            let found: Vec<_> = namings.collect();
            let best = found.iter().find(|found| whole(found));
            best.or(found.first()).cloned()
        });
        found.collect()
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
