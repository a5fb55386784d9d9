//! The names that a model's parameters have elsewhere.

use std::collections::{BTreeMap, HashMap};

use burn::module::Module;
use fisher_core::gradient::GradientBatch;
use fisher_core::model::{Catalogue, Orientation, Role};

use crate::error::{Error, Result};

/// Names and orientations that parameters of a model have elsewhere, such as in the checkpoint it was
/// loaded from. Statistics and stores that are collected with them speak of the checkpoint's
/// tensors, matrices transposed where Burn's `Linear` has them the other way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// By path in the model.
    names: BTreeMap<String, Named>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    /// The shape of the matrix there, when it is transposed.
    transposed: Option<[usize; 2]>,
}

impl Names {
    /// No names: every parameter keeps its path.
    pub fn new() -> Self {
        Self::default()
    }

    /// Call the parameter at `path` by `name`; `transposed` says that it is a matrix whose axes are
    /// swapped there.
    #[must_use]
    pub fn with(
        mut self,
        path: impl Into<String>,
        name: impl Into<String>,
        transposed: bool,
    ) -> Self {
        let named = Named {
            name: name.into(),
            transposed: transposed.then_some([0, 0]),
        };
        self.names.insert(path.into(), named);
        self
    }

    /// The names of a checkpoint's tensors, `keys`, of parameters that `remapper` loads them into.
    ///
    /// ```
    /// use burn_store::KeyRemapper;
    /// use fisher_train::capture::Names;
    ///
    /// let remapper = KeyRemapper::new().add_pattern(r"^model\.", "")?;
    /// let names = Names::from_remapper(&remapper, ["model.embed_tokens.weight"]);
    /// assert_eq!(names, Names::new().with("embed_tokens.weight", "model.embed_tokens.weight", false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "store")]
    pub fn from_remapper<'a>(
        remapper: &burn_store::KeyRemapper,
        keys: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        keys.into_iter().fold(Self::new(), |names, key| {
            let path = remapper
                .patterns
                .iter()
                .fold(key.to_owned(), |path, (from, to)| {
                    from.replace_all(&path, to.as_str()).into_owned()
                });
            names.with(path, key, false)
        })
    }

    /// With the matrices of `model` transposed that Burn's `Linear` holds as `[inputs, outputs]`, and PyTorch as
    /// `[outputs, inputs]`.
    ///
    /// # Errors
    /// Those of reading the model's parameters.
    pub fn with_linear_transposed<M: Module>(mut self, model: &M) -> Result<Self> {
        for parameter in Catalogue::of(model)?.parameters() {
            let linear = parameter.role() == Role::Matrix
                && parameter.orientation() == Orientation::InputOutput;
            if linear && parameter.shape().len() == 2 {
                let name = self.of(parameter.path());
                self = self.with(parameter.path(), name, true);
            }
        }
        Ok(self)
    }

    /// The trainable parameters of `model` under these names.
    ///
    /// # Errors
    /// [`Error::Core`] when a path is not in the model, a name comes twice, or what is to be
    /// transposed is no matrix.
    pub fn catalogue<M: Module>(&self, model: &M) -> Result<Catalogue> {
        let own = Catalogue::of(model)?;
        for path in self.names.keys() {
            own.require(path)?;
        }
        let parameters = own.parameters().iter().map(|parameter| {
            let Some(named) = self.names.get(parameter.path()) else {
                return Ok(parameter.clone());
            };
            let renamed = parameter.renamed(&named.name);
            if named.transposed.is_none() {
                return Ok(renamed);
            }
            renamed.transposed().ok_or_else(|| {
                Error::Core(fisher_core::Error::Shape {
                    parameter: parameter.path().into(),
                    expected: "a matrix, to be transposed".into(),
                    found: format!("{:?}", parameter.shape()),
                })
            })
        });
        Ok(Catalogue::new(parameters.collect::<Result<_>>()?)?)
    }

    /// These names for `model`, whose shapes are needed to transpose.
    pub(crate) fn for_model<M: Module>(&self, model: &M) -> Result<Self> {
        let catalogue = Catalogue::of(model)?;
        let mut names = self.clone();
        for (path, named) in &mut names.names {
            if let (Some(shape), &[rows, columns]) =
                (&mut named.transposed, catalogue.require(path)?.shape())
            {
                *shape = [rows, columns];
            }
        }
        Ok(names)
    }

    /// Paths in the model of parameters by these names.
    pub(crate) fn paths<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let back = self.names.iter().map(|(path, named)| (&*named.name, path));
        let back: HashMap<&str, &String> = back.collect();
        let path = |name: &'a str| {
            back.get(name)
                .map_or(name.to_owned(), |path| (*path).clone())
        };
        names.into_iter().map(path).collect()
    }

    pub(crate) fn of(&self, path: &str) -> String {
        let named = self.names.get(path);
        named.map_or_else(|| path.to_owned(), |named| named.name.clone())
    }

    /// Gradients of a model's parameters, by these names.
    pub(crate) fn rename(&self, batch: GradientBatch) -> GradientBatch {
        if self.names.is_empty() {
            return batch;
        }
        let mut renamed = GradientBatch::new(batch.samples().to_vec());
        for (path, gradient) in batch {
            let transposed = self.names.get(&path).and_then(|named| named.transposed);
            let gradient = match transposed {
                Some(shape) => gradient.transpose(shape),
                None => gradient,
            };
            renamed.insert(self.of(&path), gradient);
        }
        renamed
    }
}
