//! The families of models that are known: what they call their parts, and what their `config.json` means.

use super::error::{Error, Result};
use super::shape::Order;
use super::shapes::{self, Dialect};

/// A family of models.
#[derive(Debug)]
pub(super) struct Family {
    /// `model_type`.
    pub(super) kind: &'static str,
    /// What begins the names of all but the output head, and some files leave out.
    pub(super) prefix: &'static str,
    /// Layers, without their number.
    pub(super) layers: &'static str,
    /// Parts outside of layers in the module and in files, then parts of a layer. The first that fits counts.
    pub(super) parts: &'static [Parts],
    /// Parts of a layer whose two norms are of the same input.
    pub(super) two_norms: Parts,
    /// Gate, up and down of an expert.
    pub(super) expert: [&'static str; 3],
    /// Whether matrices of layers are `[in, out]` in files, GPT-2's `Conv1D`.
    pub(super) conv1d: bool,
    /// What its `config.json` means.
    pub(super) dialect: &'static Dialect,
}

/// Names in the module and in files.
type Parts = &'static [(&'static str, &'static str)];

const LLAMA: Parts = &[
    ("embedding", "embed_tokens"),
    ("norm", "norm"),
    ("head", "lm_head"),
    ("attention.query", "self_attn.q_proj"),
    ("attention.key", "self_attn.k_proj"),
    ("attention.value", "self_attn.v_proj"),
    ("attention.output", "self_attn.o_proj"),
    ("attention.query_norm.shared", "self_attn.q_norm"),
    ("attention.key_norm.shared", "self_attn.k_norm"),
    ("mlp.gate", "mlp.gate_proj"),
    ("mlp.up", "mlp.up_proj"),
    ("mlp.down", "mlp.down_proj"),
    ("attention_norms.before", "input_layernorm"),
    ("mlp_norms.before", "post_attention_layernorm"),
];

/// Norms behind branches.
const BEHIND: Parts = &[
    ("attention_norms.after", "post_attention_layernorm"),
    ("mlp_norms.after", "post_feedforward_layernorm"),
];

/// And before them.
const SANDWICH: Parts = &[
    ("attention_norms.after", "post_attention_layernorm"),
    ("mlp_norms.before", "pre_feedforward_layernorm"),
    ("mlp_norms.after", "post_feedforward_layernorm"),
];

const MIXTRAL: Parts = &[
    ("experts.router", "block_sparse_moe.gate"),
    ("experts.experts", "block_sparse_moe.experts"),
];

const QWEN_MOE: Parts = &[
    ("experts.router", "mlp.gate"),
    ("experts.experts", "mlp.experts"),
    ("experts.shared_gate", "mlp.shared_expert_gate"),
    ("experts.shared", "mlp.shared_expert"),
];

const PHI: Parts = &[
    ("norm", "final_layernorm"),
    ("attention.output", "self_attn.dense"),
    ("attention.query_norm.shared", "self_attn.q_layernorm"),
    ("attention.key_norm.shared", "self_attn.k_layernorm"),
    ("mlp.up", "mlp.fc1"),
    ("mlp.down", "mlp.fc2"),
];

const PHI3: Parts = &[
    ("attention.fused", "self_attn.qkv_proj"),
    ("mlp.gate_up", "mlp.gate_up_proj"),
];

const STABLELM: Parts = &[
    ("attention.query_norm", "self_attn.q_layernorm"),
    ("attention.key_norm", "self_attn.k_layernorm"),
];

const STARCODER2: Parts = &[("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")];

const COHERE: Parts = &[
    ("attention.query_norm", "self_attn.q_norm"),
    ("attention.key_norm", "self_attn.k_norm"),
];

const GPT2: Parts = &[
    ("embedding", "wte"),
    ("positions", "wpe"),
    ("norm", "ln_f"),
    ("head", "lm_head"),
    ("attention.fused", "attn.c_attn"),
    ("attention.output", "attn.c_proj"),
    ("attention_norms.before", "ln_1"),
    ("mlp_norms.before", "ln_2"),
    ("mlp.up", "mlp.c_fc"),
    ("mlp.down", "mlp.c_proj"),
];

const GPTJ: Parts = &[
    ("attention.query", "attn.q_proj"),
    ("attention.key", "attn.k_proj"),
    ("attention.value", "attn.v_proj"),
    ("attention.output", "attn.out_proj"),
    ("mlp.up", "mlp.fc_in"),
    ("mlp.down", "mlp.fc_out"),
];

const NEOX: Parts = &[
    ("embedding", "embed_in"),
    ("norm", "final_layer_norm"),
    ("head", "embed_out"),
    ("attention.fused", "attention.query_key_value"),
    ("attention.output", "attention.dense"),
    ("attention_norms.before", "input_layernorm"),
    ("mlp_norms.before", "post_attention_layernorm"),
    ("mlp.up", "mlp.dense_h_to_4h"),
    ("mlp.down", "mlp.dense_4h_to_h"),
];

const BLOOM: Parts = &[
    ("embedding", "word_embeddings"),
    ("embedding_norm", "word_embeddings_layernorm"),
    ("norm", "ln_f"),
    ("head", "lm_head"),
    ("attention.fused", "self_attention.query_key_value"),
    ("attention.output", "self_attention.dense"),
];

const FALCON: Parts = &[
    ("attention_norms.before", "ln_attn"),
    ("mlp_norms.before", "ln_mlp"),
];

const OPT: Parts = &[
    ("embedding", "embed_tokens"),
    ("positions", "embed_positions"),
    ("project_in", "project_in"),
    ("project_out", "project_out"),
    ("norm", "final_layer_norm"),
    ("head", "lm_head"),
    ("attention.query", "self_attn.q_proj"),
    ("attention.key", "self_attn.k_proj"),
    ("attention.value", "self_attn.v_proj"),
    ("attention.output", "self_attn.out_proj"),
    ("attention_norms.before", "self_attn_layer_norm"),
    ("attention_norms.sum", "self_attn_layer_norm"),
    ("mlp_norms.before", "final_layer_norm"),
    ("mlp_norms.sum", "final_layer_norm"),
    ("mlp.up", "fc1"),
    ("mlp.down", "fc2"),
];

const BERT: Parts = &[
    ("embedding", "embeddings.word_embeddings"),
    ("positions", "embeddings.position_embeddings"),
    ("types", "embeddings.token_type_embeddings"),
    ("embedding_norm", "embeddings.LayerNorm"),
    ("attention.query", "attention.self.query"),
    ("attention.key", "attention.self.key"),
    ("attention.value", "attention.self.value"),
    ("attention.output", "attention.output.dense"),
    ("attention_norms.sum", "attention.output.LayerNorm"),
    ("mlp.up", "intermediate.dense"),
    ("mlp.down", "output.dense"),
    ("mlp_norms.sum", "output.LayerNorm"),
    ("pooler", "pooler.dense"),
    ("head", "classifier"),
];

const ROBERTA: Parts = &[
    ("pooler", "classifier.dense"),
    ("head", "classifier.out_proj"),
];

const DISTILBERT: Parts = &[
    ("attention.query", "attention.q_lin"),
    ("attention.key", "attention.k_lin"),
    ("attention.value", "attention.v_lin"),
    ("attention.output", "attention.out_lin"),
    ("attention_norms.sum", "sa_layer_norm"),
    ("mlp.up", "ffn.lin1"),
    ("mlp.down", "ffn.lin2"),
    ("mlp_norms.sum", "output_layer_norm"),
    ("pooler", "pre_classifier"),
];

/// Names that never have a family's prefix.
const HEADS: [&str; 4] = ["lm_head", "embed_out", "classifier", "pre_classifier"];

const fn family(kind: &'static str, parts: &'static [Parts], dialect: &'static Dialect) -> Family {
    Family {
        kind,
        prefix: "model.",
        layers: "layers",
        parts,
        two_norms: &[],
        expert: ["gate_proj", "up_proj", "down_proj"],
        conv1d: false,
        dialect,
    }
}

/// Of the kinds whose layers are `h` inside of `transformer`.
const fn transformer(
    kind: &'static str,
    parts: &'static [Parts],
    dialect: &'static Dialect,
) -> Family {
    Family {
        prefix: "transformer.",
        layers: "h",
        ..family(kind, parts, dialect)
    }
}

/// All of them.
pub(super) const FAMILIES: [Family; 30] = [
    family("llama", &[LLAMA], &shapes::LLAMA),
    family("mistral", &[LLAMA], &shapes::MISTRAL),
    family("qwen2", &[LLAMA], &shapes::QWEN2),
    family("qwen3", &[LLAMA], &shapes::QWEN3),
    Family {
        expert: ["w1", "w3", "w2"],
        ..family("mixtral", &[MIXTRAL, LLAMA], &shapes::MIXTRAL)
    },
    family("qwen2_moe", &[QWEN_MOE, LLAMA], &shapes::QWEN2_MOE),
    family("qwen3_moe", &[QWEN_MOE, LLAMA], &shapes::QWEN3_MOE),
    family("smollm3", &[LLAMA], &shapes::SMOLLM3),
    family("granite", &[LLAMA], &shapes::GRANITE),
    family("gemma", &[LLAMA], &shapes::GEMMA),
    family("gemma2", &[SANDWICH, LLAMA], &shapes::GEMMA2),
    family("gemma3_text", &[SANDWICH, LLAMA], &shapes::GEMMA3),
    family("olmo", &[LLAMA], &shapes::OLMO),
    family("olmo2", &[BEHIND, LLAMA], &shapes::OLMO2),
    family("olmo3", &[BEHIND, LLAMA], &shapes::OLMO3),
    family("phi", &[PHI, LLAMA], &shapes::PHI),
    family("phi3", &[PHI3, LLAMA], &shapes::PHI3),
    family("stablelm", &[STABLELM, LLAMA], &shapes::STABLELM),
    family("starcoder2", &[STARCODER2, LLAMA], &shapes::STARCODER2),
    family("cohere", &[COHERE, LLAMA], &shapes::COHERE),
    family("cohere2", &[LLAMA], &shapes::COHERE2),
    Family {
        conv1d: true,
        ..transformer("gpt2", &[GPT2], &shapes::GPT2)
    },
    transformer("gptj", &[GPTJ, GPT2], &shapes::GPTJ),
    Family {
        prefix: "gpt_neox.",
        ..family("gpt_neox", &[NEOX], &shapes::GPT_NEOX)
    },
    transformer("bloom", &[BLOOM, NEOX], &shapes::BLOOM),
    Family {
        two_norms: FALCON,
        ..transformer("falcon", &[BLOOM, NEOX], &shapes::FALCON)
    },
    Family {
        prefix: "model.decoder.",
        ..family("opt", &[OPT], &shapes::OPT)
    },
    Family {
        prefix: "bert.",
        layers: "encoder.layer",
        ..family("bert", &[BERT], &shapes::BERT)
    },
    Family {
        prefix: "roberta.",
        layers: "encoder.layer",
        ..family("roberta", &[ROBERTA, BERT], &shapes::ROBERTA)
    },
    Family {
        prefix: "distilbert.",
        layers: "transformer.layer",
        ..family("distilbert", &[DISTILBERT, BERT], &shapes::DISTILBERT)
    },
];

impl Family {
    /// The family of a `model_type`.
    pub(super) fn of(kind: &str) -> Result<&'static Self> {
        let family = FAMILIES.iter().find(|family| family.kind == kind);
        family.ok_or_else(|| {
            let known: Vec<&str> = FAMILIES.iter().map(|family| family.kind).collect();
            Error::Architecture {
                found: kind.into(),
                supported: known.join(", "),
            }
        })
    }

    /// The name in files of the parameter at `path` of the module.
    pub(super) fn name(&self, path: &str, order: Order) -> String {
        let (inside, start) = match path.strip_prefix("layers.") {
            Some(rest) => {
                let (number, inside) = rest.split_once('.').unwrap_or((rest, ""));
                (inside, format!("{}{}.{number}.", self.prefix, self.layers))
            }
            None => (path, self.prefix.to_owned()),
        };
        let layer = !start.is_empty() && inside.len() < path.len();
        let first = match order {
            Order::ParallelTwoNorms => self.two_norms,
            _ => &[],
        };
        let parts = first.iter().chain(self.parts.iter().copied().flatten());
        let mut found = parts.filter_map(|(part, name)| {
            let rest = inside.strip_prefix(part)?;
            let rest = self.inside_of_expert(rest);
            rest.starts_with('.').then(|| format!("{name}{rest}"))
        });
        let name = found.next().unwrap_or_else(|| inside.into());
        let name = name.replace(".linear.", ".");
        let name = match name.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => name,
        };
        if !layer && self.is_head(&name) {
            name
        } else {
            format!("{start}{name}")
        }
    }

    /// The rest of a name behind the experts, whose matrices are called as in `expert`.
    fn inside_of_expert(&self, rest: &str) -> String {
        let [gate, up, down] = self.expert;
        let leaves = [("gate", gate), ("up", up), ("down", down)];
        leaves.iter().fold(rest.into(), |rest, (from, to)| {
            rest.replace(&format!(".{from}.linear."), &format!(".{to}."))
        })
    }

    /// What begins the names of files that leave out less: of OPT's `model.decoder.` only the first.
    pub(super) fn first(&self) -> &'static str {
        let end = self.prefix.find('.').map_or(0, |dot| dot + 1);
        &self.prefix[..end]
    }

    /// A name as files have it that leave out nothing.
    pub(super) fn prefixed(&self, name: &str) -> String {
        if self.is_head(name) {
            name.into()
        } else {
            format!("{}{name}", self.first())
        }
    }

    /// Whether a name is of an output head, which has no prefix.
    pub(super) fn is_head(&self, name: &str) -> bool {
        let first = name.split('.').next().unwrap_or(name);
        HEADS.contains(&first)
    }
}
