//! A folder of a low-rank adapter as PEFT saves it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::error::{Error, Result};
use super::files::{self, Stored};
use super::names::{ADAPTED, Naming};
use super::transformer::Transformer;

/// An adapter and what is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its folder: adapter_config.json and adapter_model.safetensors.
    pub folder: PathBuf,
    /// Whether it is taken into the weights, which are then those that are measured. Else only it is.
    pub merged: bool,
}

/// Fields that change what an adapter computes, and their values that do not.
const NEUTRAL: [(&str, &[&str]); 17] = [
    ("peft_type", &["\"LORA\""]),
    ("bias", &["\"none\""]),
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("lora_bias", &["false"]),
    ("modules_to_save", &["[]"]),
    ("layer_replication", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("target_parameters", &["[]"]),
    ("alora_invocation_tokens", &["[]"]),
    ("arrow_config", &["{}"]),
    ("kasa_config", &["{}"]),
    ("velora_config", &["{}"]),
    ("monteclora_config", &["{}"]),
    ("ensure_weight_tying", &["false"]),
    ("megatron_config", &["{}"]),
];

/// What adapter_config.json says of scales.
struct Scales {
    alpha: f64,
    /// By patterns of modules.
    alphas: Vec<(regex::Regex, f64)>,
    root: bool,
}

impl Adapter {
    /// Put the adapter beside the projections of `model`, whose weights are called as `naming` says. Its
    /// own weights are still to be loaded: they are given back by their name.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`] when a file cannot be read, [`Error::Adapter`] when it is no
    /// low-rank adapter of this model.
    pub(super) fn attach(
        &self,
        model: &mut Transformer,
        naming: &Naming,
        conv1d: bool,
    ) -> Result<BTreeMap<String, Stored>> {
        let scales = self.scales(conv1d)?;
        let tensors = files::header(&self.folder.join("adapter_model.safetensors"))?;
        let fail = |reason: String| Error::Adapter {
            folder: self.folder.clone(),
            reason,
        };
        let mut ranks: BTreeMap<&str, [Option<usize>; 2]> = BTreeMap::new();
        for (name, stored) in &tensors {
            let inside = name.strip_prefix(ADAPTED);
            let part = |end: &str| inside.and_then(|name| name.strip_suffix(end));
            let (module, of, rank) = match (part(".lora_A.weight"), part(".lora_B.weight")) {
                (Some(module), _) => (module, 0, stored.shape.first()),
                (_, Some(module)) => (module, 1, stored.shape.last()),
                _ => return Err(fail(format!("`{name}` is no low-rank factor"))),
            };
            ranks.entry(module).or_default()[of] = rank.copied();
        }
        let of_module: BTreeMap<String, String> = naming
            .iter()
            .filter_map(|named| {
                let module = named.name.strip_suffix(".weight")?;
                Some((
                    module.into(),
                    named.path.strip_suffix(".linear.weight")?.into(),
                ))
            })
            .collect();
        for (module, factors) in ranks {
            let [Some(rank), Some(other)] = factors else {
                return Err(fail(format!("`{module}` has one of two factors")));
            };
            let path = of_module.get(module);
            let projection = path.and_then(|path| model.projection(path));
            let Some(projection) = projection.filter(|_| rank == other) else {
                return Err(fail(format!(
                    "`{module}` with ranks {rank} and {other} is no projection of this model"
                )));
            };
            projection.adapt(rank, scales.of(module, rank));
        }
        if tensors.is_empty() {
            return Err(fail("it has no tensor".into()));
        }
        Ok(tensors)
    }

    fn scales(&self, conv1d: bool) -> Result<Scales> {
        let path = self.folder.join("adapter_config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| Error::json(&path, e))?;
        let fail = |reason: String| Error::Adapter {
            folder: self.folder.clone(),
            reason,
        };
        for (field, neutral) in NEUTRAL {
            let value = &json[field];
            if !value.is_null() && !neutral.contains(&&*value.to_string()) {
                let neutral = neutral.join(" or ");
                return Err(fail(format!(
                    "`{field}` is {value}; supported is {neutral}"
                )));
            }
        }
        let swapped = json["fan_in_fan_out"].as_bool().unwrap_or(false);
        if swapped != conv1d {
            return Err(fail(format!(
                "`fan_in_fan_out` is {swapped} for this model"
            )));
        }
        let alpha = json["lora_alpha"].as_f64();
        let patterns = json["alpha_pattern"].as_object().into_iter().flatten();
        let alphas = patterns.map(|(pattern, alpha)| {
            let regex = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let alpha = alpha.as_f64();
            let both = regex.ok().zip(alpha);
            both.ok_or_else(|| fail(format!("`alpha_pattern` has `{pattern}`")))
        });
        Ok(Scales {
            alpha: alpha.ok_or_else(|| fail("`lora_alpha` is no number".into()))?,
            alphas: alphas.collect::<Result<_>>()?,
            root: json["use_rslora"].as_bool().unwrap_or(false),
        })
    }
}

impl Scales {
    /// `α / r`, or with `use_rslora` `α / √r`.
    fn of(&self, module: &str, rank: usize) -> f64 {
        let own = self.alphas.iter().find(|(regex, _)| regex.is_match(module));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = rank as f64;
        alpha / if self.root { rank.sqrt() } else { rank }
    }
}
