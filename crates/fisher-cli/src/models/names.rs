//! What a checkpoint calls the parameters of a model, how it lays them out, and where heads are in them.

use std::collections::BTreeMap;

use fisher_core::grouping::{Attention, AttentionConfig, HeadLayout};
use fisher_core::model::{Catalogue, Role};
use fisher_train::capture::Names;

use super::config::ModelConfig;
use super::error::Result;
use super::families::Family;
use super::shape::AttentionShape;

/// One parameter in both worlds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Path in the module.
    pub path: String,
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Whether rows and columns are the other way round there.
    pub transposed: bool,
}

impl Named {
    /// A parameter's values from the module's order to the checkpoint's.
    pub fn to_checkpoint<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match (self.transposed, &*self.shape) {
            (true, &[rows, columns]) => transposed(&values, [columns, rows]),
            _ => values,
        }
    }

    /// And back.
    pub fn to_module<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        match (self.transposed, &*self.shape) {
            (true, &[rows, columns]) => transposed(&values, [rows, columns]),
            _ => values,
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`, in squares that stay in a cache.
fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    const SIDE: usize = 32;
    let mut out = values.to_vec();
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            for r in row..rows.min(row + SIDE) {
                for c in column..columns.min(column + SIDE) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}

/// What begins the names of all parameters of an adapted model.
pub(super) const ADAPTED: &str = "base_model.model.";

/// The name that PEFT gives a parameter of an adapted model.
fn adapted(name: &str) -> String {
    let factors = [(".lora.a.", ".lora_A."), (".lora.b.", ".lora_B.")];
    let name = factors
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    format!("{ADAPTED}{name}")
}

/// All parameters, by their path in the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming(BTreeMap<String, Named>);

impl Naming {
    /// Of a module of `family`. The weights of PyTorch's `Linear` are `[out, in]`, Burn's and those of
    /// GPT-2's `Conv1D` are `[in, out]`.
    pub(super) fn of(module: &Catalogue, family: &Family, config: &ModelConfig) -> Self {
        let named = module.parameters().iter().map(|parameter| {
            let path = parameter.path();
            let name = family.name(path, config.shape.order);
            let linear = parameter.role() == Role::Matrix && path.ends_with(".weight");
            let transposed = linear && (!family.conv1d || family.is_head(&name));
            let mut shape = parameter.shape().to_vec();
            if transposed {
                shape.reverse();
            }
            let named = Named {
                path: path.into(),
                name,
                shape,
                transposed,
            };
            (path.into(), named)
        });
        Self(named.collect())
    }

    /// As PEFT calls them where low-rank adapters are beside.
    pub(super) fn adapted(mut self) -> Self {
        let all = self.0.values_mut();
        all.for_each(|named| named.name = adapted(&named.name));
        self
    }

    /// Those whose path is `wanted`.
    pub(super) fn only(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let some = self.0.iter().filter(|(path, _)| wanted(path));
        Self(
            some.map(|(path, named)| (path.clone(), named.clone()))
                .collect(),
        )
    }

    /// The parameter at `path` of the module.
    pub fn get(&self, path: &str) -> Option<&Named> {
        self.0.get(path)
    }

    /// All parameters.
    pub fn iter(&self) -> impl Iterator<Item = &Named> {
        self.0.values()
    }

    /// For collection.
    pub fn names(&self) -> Names {
        self.iter().fold(Names::new(), |names, named| {
            names.with(&named.path, &named.name, named.transposed)
        })
    }

    /// Where the heads of every layer are in the files' parameters, `catalogue`.
    pub(super) fn heads(&self, catalogue: &Catalogue, config: &ModelConfig) -> Result<HeadLayout> {
        let AttentionShape {
            heads,
            kv_heads,
            head_width,
            fused,
            ..
        } = config.shape.attention;
        let attention = AttentionConfig::new(heads)
            .with_kv_heads(Some(kv_heads))
            .with_d_k(Some(head_width))
            .with_d_v(Some(head_width));
        let layer = |layer: usize| {
            let name = |part: &str| {
                let path = format!("layers.{layer}.attention.{part}.linear.weight");
                self.get(&path).map_or("", |named| &*named.name)
            };
            let output = name("output");
            Ok(match fused {
                Some(fused) => {
                    let paths = [name("fused"), output];
                    Attention::fused(shared(paths), paths, fused, &attention, catalogue)?
                }
                None => {
                    let paths = [name("query"), name("key"), name("value"), output];
                    let shared = shared([paths[0], output]);
                    Attention::separate(shared, paths, &attention, catalogue)?
                }
            })
        };
        let layers: Result<Vec<Attention>> = (0..config.layers()).map(layer).collect();
        Ok(HeadLayout::new(layers?)?)
    }
}

/// The modules that two parameters are both in.
fn shared([a, b]: [&str; 2]) -> String {
    let both = a.split('.').zip(b.split('.'));
    let shared: Vec<&str> = both.take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    shared.join(".")
}
