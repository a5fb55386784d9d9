//! One attention layer: where its heads lie in the projection matrices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::config::AttentionConfig;
use super::finder::{Adapter, Finder};
use super::slices::AxisSlices;
use crate::error::Result;
use crate::model::Catalogue;

/// A block of attention: the query, key, value or output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Block {
    /// Query: a head is a slice of the output axis.
    Q,
    /// Key: a kv head is a slice of the output axis.
    K,
    /// Value: a kv head is a slice of the output axis.
    V,
    /// Output: a head is a slice of the **input** axis.
    O,
}

impl Block {
    /// The projection's name in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Q => "query projection",
            Self::K => "key projection",
            Self::V => "value projection",
            Self::O => "output projection",
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// How Q, K and V lie in one fused matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Fused {
    /// All of Q, then all of K, then all of V (GPT-2).
    Concatenated,
    /// Per kv head its query heads, then its key, then its value; without grouped queries
    /// `[q_h | k_h | v_h]` (GPT-NeoX).
    Interleaved,
}

/// One attention layer: which slice of which parameter is which head.
///
/// Low-rank adapters of a projection, `W + scale · A B`, are found with it: Burn's own
/// (`q_proj.weight.lora.a`) and modules named as PEFT names them, in any case
/// (`q_proj.lora_A.weight`, `q_proj.lora_A.default.weight`; the projection itself is then
/// `q_proj.weight` or `q_proj.base_layer.weight`). The factor on the side of the heads has heads where
/// the projection has: B of Q, K and V on its output axis, A of O on its input axis. The other factor
/// serves all heads at once and belongs to none ([`HeadLayout::headless`](super::HeadLayout::headless)). Where a projection is
/// frozen and its adapter is not, the adapter stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    pub(super) name: String,
    heads: usize,
    kv_heads: usize,
    /// Path of a parameter to the blocks in it.
    pub(super) slices: BTreeMap<String, Vec<(Block, AxisSlices)>>,
    /// Paths of what lies in a projection and belongs to no single head.
    pub(super) headless: BTreeSet<String>,
}

impl Attention {
    /// Separate projections, Q, K, V and O, found in `catalogue` at the four paths.
    ///
    /// # Errors
    /// [`Error::HeadLayout`](crate::Error::HeadLayout) when a path is not there or a shape does not fit.
    pub fn separate(
        name: impl Into<String>,
        [q, k, v, o]: [&str; 4],
        config: &AttentionConfig,
        catalogue: &Catalogue,
    ) -> Result<Self> {
        let paths = [q, k, v, o];
        let found = Finder::new(catalogue, &paths);
        found.check(config.check())?;
        let (heads, kv) = (config.heads, config.kv());
        let d_q = found.width(q, found.output(q)?, heads, config.d_k)?;
        let d_k = found.width(k, found.output(k)?, kv, Some(d_q))?;
        let d_v = found.width(v, found.output(v)?, kv, config.d_v)?;
        found.width(o, found.input(o)?, heads, Some(d_v))?;

        let run = |axis, per, width| AxisSlices {
            axis,
            repeats: 1,
            offset: 0,
            per,
            width,
        };
        let mut attention = Self::empty(name, config);
        for (block, path, per, width) in [
            (Block::Q, q, heads, d_q),
            (Block::K, k, kv, d_k),
            (Block::V, v, kv, d_v),
        ] {
            let (axis, _) = found.output(path)?;
            attention.add(path, block, run(axis, per, width));
            if let Some(bias) = found.bias(path, per * width, config)? {
                attention.add(&bias, block, run(0, per, width));
            }
        }
        attention.add(o, Block::O, run(found.input(o)?.0, heads, d_v));
        attention.adapt(&found)?;
        Ok(attention)
    }

    /// One matrix for Q, K and V, and one for O, found in `catalogue` at the two paths.
    ///
    /// `d_k = d_v` unless the configuration gives one of them.
    ///
    /// # Errors
    /// [`Error::HeadLayout`](crate::Error::HeadLayout) when a path is not there or a shape does not fit.
    pub fn fused(
        name: impl Into<String>,
        [qkv, o]: [&str; 2],
        fused: Fused,
        config: &AttentionConfig,
        catalogue: &Catalogue,
    ) -> Result<Self> {
        let paths = [qkv, o];
        let found = Finder::new(catalogue, &paths);
        found.check(config.check())?;
        let (heads, kv) = (config.heads, config.kv());
        // O's input axis is H·d_v, whatever the fused matrix is.
        let d_v = found.width(o, found.input(o)?, heads, config.d_v)?;
        let (axis, length) = found.output(qkv)?;
        let d_k = config.d_k.unwrap_or(d_v);
        let expected = (heads + kv) * d_k + kv * d_v;
        found.check((length == expected).then_some(()).ok_or_else(|| {
            format!(
                "`{qkv}` has {length} outputs, but {heads} query heads and {kv} key heads of \
                 width {d_k} and {kv} value heads of width {d_v} need {expected}"
            )
        }))?;

        let per_kv = heads / kv;
        let place = |axis, block| {
            let (repeats, queries, keys) = match fused {
                Fused::Concatenated => (1, heads, kv),
                Fused::Interleaved => (kv, per_kv, 1),
            };
            let (offset, per, width) = match block {
                Block::Q => (0, queries, d_k),
                Block::K => (queries * d_k, keys, d_k),
                _ => ((queries + keys) * d_k, keys, d_v),
            };
            AxisSlices {
                axis,
                repeats,
                offset,
                per,
                width,
            }
        };
        let mut attention = Self::empty(name, config);
        let bias = found.bias(qkv, length, config)?;
        for block in [Block::Q, Block::K, Block::V] {
            attention.add(qkv, block, place(axis, block));
            if let Some(bias) = &bias {
                attention.add(bias, block, place(0, block));
            }
        }
        attention.add(
            o,
            Block::O,
            AxisSlices {
                axis: found.input(o)?.0,
                repeats: 1,
                offset: 0,
                per: heads,
                width: d_v,
            },
        );
        attention.adapt(&found)?;
        Ok(attention)
    }

    fn empty(name: impl Into<String>, config: &AttentionConfig) -> Self {
        Self {
            name: name.into(),
            heads: config.heads,
            kv_heads: config.kv(),
            slices: BTreeMap::new(),
            headless: BTreeSet::new(),
        }
    }

    /// Give the heads of the projections to their adapters.
    fn adapt(&mut self, found: &Finder) -> Result<()> {
        let projections: BTreeSet<&str> = found.paths.iter().copied().collect();
        for path in projections {
            let adapters = found.adapters(path)?;
            let slices = self.slices.get(path).cloned().unwrap_or_default();
            for Adapter { path, axis, of } in &adapters {
                let beside = slices.iter().filter(|(_, slices)| slices.axis == *of);
                let beside: Vec<(Block, AxisSlices)> = beside.copied().collect();
                if beside.is_empty() {
                    self.headless.insert((*path).into());
                }
                for (block, slices) in beside {
                    let slices = AxisSlices {
                        axis: *axis,
                        ..slices
                    };
                    self.add(path, block, slices);
                }
            }
            if !adapters.is_empty() && found.catalogue.get(path).is_none() {
                self.slices.remove(path);
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, block: Block, slices: AxisSlices) {
        let blocks = self.slices.entry(path.into()).or_default();
        blocks.push((block, slices));
    }

    /// The name: the path that the projections share.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of query heads, `H`.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// The number of key/value heads, `H_kv`.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// The kv head that query head `h` reads, `⌊h / (H / H_kv)⌋`.
    pub fn kv_of(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// The blocks that have slices in the parameter at `path`.
    pub fn blocks(&self, path: &str) -> impl Iterator<Item = Block> {
        let slices = self.slices.get(path).into_iter().flatten();
        slices.map(|(block, _)| *block)
    }

    /// The parameters with a slice per head.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.slices.keys().map(String::as_str)
    }
}
