//! What a checkpoint calls the parameters of a decoder, and how it lays them out.

use std::collections::BTreeMap;

use fisher_core::model::{Catalogue, Role};
use fisher_train::capture::Names;

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
            (true, &[rows, columns]) => {
                let at = |k: usize| values[k % columns * rows + k / columns];
                (0..rows * columns).map(at).collect()
            }
            _ => values,
        }
    }
}

/// All parameters, by their path in the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming(BTreeMap<String, Named>);

impl Naming {
    /// Burn's layers and Hugging Face's differ in two things: norms have `weight` and `bias` where
    /// Burn has `gamma` and `beta`, and the weights of PyTorch's `Linear` are `[out, in]`. GPT-2's
    /// `Conv1D` is `[in, out]` as Burn's is; only its output head is a `Linear`.
    pub fn of(module: &Catalogue, conv1d: bool) -> Self {
        let named = module.parameters().iter().map(|parameter| {
            let path = parameter.path();
            let linear = !conv1d || path == HEAD;
            let transposed = linear && parameter.role() == Role::Matrix;
            let mut shape = parameter.shape().to_vec();
            if transposed {
                shape.reverse();
            }
            let name = match path.rsplit_once('.') {
                Some((layer, "gamma")) => format!("{layer}.weight"),
                Some((layer, "beta")) => format!("{layer}.bias"),
                _ => path.into(),
            };
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
}

/// The output head.
pub(super) const HEAD: &str = "lm_head.weight";
