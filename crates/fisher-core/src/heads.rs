//! Where the attention heads lie in the projection matrices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burn::config::Config;
use burn::module::ParamGroup;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, list};
use crate::group::AxisSlices;
use crate::model::{Catalogue, Parameter, Role, natural};

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

/// The head counts of an attention layer.
///
/// Head widths are read off the matrices and are not assumed to be hidden size / heads; give
/// them to have them checked.
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Query heads, `H`.
    pub heads: usize,
    /// Key/value heads, `H_kv`, a divisor of `H`; `H` when absent.
    pub kv_heads: Option<usize>,
    /// Width of a query or key head.
    pub d_k: Option<usize>,
    /// Width of a value head.
    pub d_v: Option<usize>,
    /// Whether the biases of Q, K and V are grouped by head too. The bias of O belongs to no head.
    #[config(default = false)]
    pub biases: bool,
}

impl AttentionConfig {
    fn kv(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    fn check(&self) -> Result<(), String> {
        let kv = self.kv();
        if self.heads == 0 || kv == 0 || !self.heads.is_multiple_of(kv) {
            return Err(format!(
                "{kv} key/value heads do not divide {} heads",
                self.heads
            ));
        }
        Ok(())
    }
}

/// How Q, K and V lie in one fused matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
/// serves all heads at once and belongs to none ([`HeadLayout::headless`]). Where a projection is
/// frozen and its adapter is not, the adapter stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    name: String,
    heads: usize,
    kv_heads: usize,
    /// Path of a parameter to the blocks in it.
    slices: BTreeMap<String, Vec<(Block, AxisSlices)>>,
    /// Paths of what lies in a projection and belongs to no single head.
    headless: BTreeSet<String>,
}

impl Attention {
    /// Separate projections, Q, K, V and O, found in `catalogue` at the four paths.
    ///
    /// # Errors
    /// [`Error::HeadLayout`] when a path is not there or a shape does not fit.
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
    /// [`Error::HeadLayout`] when a path is not there or a shape does not fit.
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

    /// Recognise attention layers by the names of their parameters.
    ///
    /// | names | layout |
    /// |---|---|
    /// | `query`, `key`, `value`, `output` | separate (Burn's `MultiHeadAttention`) |
    /// | `q_proj`, `k_proj`, `v_proj`, `o_proj` | separate (LLaMA, Mistral, Qwen2) |
    /// | `c_attn`, `c_proj` | fused, concatenated (GPT-2) |
    /// | `query_key_value`, `dense` | fused, interleaved (GPT-NeoX) |
    ///
    /// Each with `.weight`, or `.base_layer.weight` where PEFT wraps it; adapters as in
    /// [`Attention`]. Every layer must have the head counts of `config`; build the layout by hand
    /// where they differ.
    ///
    /// # Errors
    /// [`Error::HeadLayout`], listing what was found, when nothing is recognised, a projection of
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
    pub(crate) fn slices(&self, parameter: &Parameter) -> Vec<(Block, AxisSlices)> {
        self.attention
            .iter()
            .find_map(|a| a.slices.get(parameter.path()))
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn describe(&self) -> String {
        list(self.attention.iter().flat_map(Attention::paths))
    }
}

/// The weight of the projection that is the module at `path`: PEFT wraps it.
fn projection(catalogue: &Catalogue, path: &str) -> String {
    let wrapped = format!("{path}.base_layer.weight");
    if catalogue.all().any(|p| p.path() == wrapped) {
        wrapped
    } else {
        format!("{path}.weight")
    }
}

/// A trainable factor of a low-rank adapter: its `axis` lies beside the axis `of` of what it adapts.
struct Adapter<'a> {
    path: &'a str,
    axis: usize,
    of: usize,
}

/// Looks up the parameters of one attention layer and names them all when one does not fit.
struct Finder<'a> {
    catalogue: &'a Catalogue,
    paths: &'a [&'a str],
}

impl<'a> Finder<'a> {
    fn new(catalogue: &'a Catalogue, paths: &'a [&'a str]) -> Self {
        Self { catalogue, paths }
    }

    fn check<T>(&self, result: Result<T, String>) -> Result<T> {
        result.map_err(|reason| {
            let found = self.paths.iter().filter_map(|path| self.known(path));
            let found: Vec<String> = found
                .map(|p| format!("{} {:?} ({:?})", p.path(), p.shape(), p.orientation()))
                .collect();
            Error::HeadLayout {
                reason,
                found: if found.is_empty() {
                    self.catalogue.describe()
                } else {
                    list(found)
                },
            }
        })
    }

    /// Trainable or not: a frozen projection's shape still says where the heads are.
    fn known(&self, path: &str) -> Option<&'a Parameter> {
        self.catalogue.all().find(|p| p.path() == path)
    }

    fn get(&self, path: &str) -> Result<&'a Parameter> {
        let parameter = self.known(path);
        self.check(parameter.ok_or_else(|| format!("there is no `{path}`")))
    }

    /// The output axis of a projection and its length.
    fn output(&self, path: &str) -> Result<(usize, usize)> {
        let parameter = self.get(path)?;
        self.axis(parameter, parameter.output_axis())
    }

    /// The input axis of a projection and its length.
    fn input(&self, path: &str) -> Result<(usize, usize)> {
        let parameter = self.get(path)?;
        self.axis(parameter, parameter.input_axis())
    }

    fn axis(&self, parameter: &Parameter, axis: Option<usize>) -> Result<(usize, usize)> {
        let path = parameter.path();
        let axis = axis.filter(|_| parameter.shape().len() == 2);
        let axis = axis.ok_or_else(|| format!("`{path}` is not a matrix"));
        let axis = axis.and_then(|axis| match parameter.is_oriented() {
            true => Ok(axis),
            false => Err(format!(
                "nothing tells which axis of `{path}` is its output, since it is no layer of \
                 Burn's; say it with `Catalogue::with_orientation`"
            )),
        });
        self.check(axis).map(|axis| (axis, parameter.shape()[axis]))
    }

    /// The trainable factors of the low-rank adapters of a projection.
    fn adapters(&self, projection: &str) -> Result<Vec<Adapter<'a>>> {
        let adapted = self.get(projection)?;
        let module = projection.strip_suffix(".weight");
        let module = module.map(|m| m.strip_suffix(".base_layer").unwrap_or(m));
        let mut adapters = Vec::new();
        for parameter in self.catalogue.parameters() {
            let path = parameter.path();
            let below = |module: &str| path.strip_prefix(module)?.strip_prefix('.');
            let adapter = match below(projection) {
                // W + scale · A B
                Some("lora.a") => Some((0, 0)),
                Some("lora.b") => Some((1, 1)),
                _ => None,
            };
            let named = module
                .and_then(below)
                .filter(|_| parameter.shape().len() == 2);
            let named = named.and_then(|name| name.split('.').next());
            let named = named.unwrap_or_default().to_ascii_lowercase();
            let (axis, of) = match (adapter, &*named) {
                (Some(axes), _) => axes,
                (None, "lora_a") => (
                    self.input(path)?.0,
                    self.axis(adapted, adapted.input_axis())?.0,
                ),
                (None, "lora_b") => (
                    self.output(path)?.0,
                    self.axis(adapted, adapted.output_axis())?.0,
                ),
                _ => continue,
            };
            let [length, expected] = [parameter.shape()[axis], adapted.shape()[of]];
            self.check((length == expected).then_some(()).ok_or_else(|| {
                format!(
                    "`{path}` adapts axis {of} of `{projection}`, of length {expected}, by one of \
                     {length}"
                )
            }))?;
            adapters.push(Adapter { path, axis, of });
        }
        Ok(adapters)
    }

    /// The width of a head on an axis, checked against the wanted one.
    fn width(
        &self,
        path: &str,
        (axis, length): (usize, usize),
        heads: usize,
        wanted: Option<usize>,
    ) -> Result<usize> {
        let width = length / heads;
        let fits = width > 0 && width * heads == length && wanted.is_none_or(|w| w == width);
        self.check(fits.then_some(width).ok_or_else(|| {
            let wanted = wanted.map_or(String::new(), |w| format!(" of width {w}"));
            format!("axis {axis} of `{path}` has length {length}, not {heads} heads{wanted}")
        }))
    }

    /// The path of a projection's bias, if it has one and biases are wanted.
    fn bias(
        &self,
        weight: &str,
        length: usize,
        config: &AttentionConfig,
    ) -> Result<Option<String>> {
        if !config.biases {
            return Ok(None);
        }
        let path = match weight.strip_suffix("weight") {
            Some(prefix) => format!("{prefix}bias"),
            None => return Ok(None),
        };
        match self.known(&path) {
            Some(bias) if bias.shape() != [length] => self.check(Err(format!(
                "`{path}` has shape {:?}, expected [{length}]",
                bias.shape()
            ))),
            found => Ok(found.map(|_| path)),
        }
    }
}

enum Naming {
    Separate([&'static str; 4]),
    Fused([&'static str; 2], Fused),
}

const NAMINGS: [Naming; 4] = [
    Naming::Separate(["query", "key", "value", "output"]),
    Naming::Separate(["q_proj", "k_proj", "v_proj", "o_proj"]),
    Naming::Fused(["c_attn", "c_proj"], Fused::Concatenated),
    Naming::Fused(["query_key_value", "dense"], Fused::Interleaved),
];

impl Naming {
    fn names(&self) -> &[&'static str] {
        match self {
            Self::Separate(names) => names,
            Self::Fused(names, _) => names,
        }
    }

    /// The naming and prefix of every attention layer: wherever the first projection is.
    fn find(catalogue: &Catalogue) -> Vec<(&'static Self, String)> {
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
