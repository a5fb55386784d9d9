//! The trainable float parameters of a module.

use burn::module::{Module, ParamGroup};

use super::parameter::{Orientation, Parameter};
use super::ties::Ties;
use super::visitor::Visitor;
use super::walk::visit_places;
use crate::error::{Error, Result, list};

/// The trainable float parameters of a module, in the module's own order.
///
/// Left out are frozen parameters and those that never train, such as the running statistics of a
/// batch norm. A parameter that is used in several places (an embedding that is also the output
/// head) appears once, under its first path, and lists the others in [`Parameter::tied`]; a copy of
/// it is a parameter of its own, whatever its id (see [`Ties`]).
///
/// Roles come from name *and* shape. A `weight` in a struct named as one of Burn's layers is that
/// layer's if its rank is (a `Conv1d` of rank 2, as GPT-2 has it, is none of Burn's), and if the
/// length of a `bias` beside it agrees. Everything else is told by shape: no more than one axis
/// longer than 1 is a vector, the rest are matrices `[.., in, out]` by convention, unless the bias is
/// as long as the other axis only. Where just the convention speaks,
/// [`Parameter::is_oriented`] is false and attention heads need [`Catalogue::with_orientation`].
///
/// How many groups a convolution has is told by the bias of a transposed one, and by nothing
/// else: [`Catalogue::with_channel_groups`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    parameters: Vec<Parameter>,
    /// Frozen or filtered out: not measured, but head layouts read their shapes.
    others: Vec<Parameter>,
}

impl Catalogue {
    /// The parameters of `module` that require gradients.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when there are none, [`Error::Copies`] when a trainable module and its
    /// copy cannot be told from one that is used twice, [`Error::Device`] when the device does not
    /// compare the values of parameters that share an id.
    pub fn of<M: Module>(module: &M) -> Result<Self> {
        let mut visitor = Visitor::new(Ties::of(module)?);
        visit_places(module, &mut visitor)?;
        visitor.ask_biases();
        visitor.ask_adapted();
        if visitor.parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "in the module (is it on an autodiff device? A model that comes from \
                          training or `valid()` needs `.train()`)"
                    .into(),
                found: format!(
                    "{} without gradients",
                    list(visitor.others.iter().map(|p| &p.path))
                ),
            });
        }
        Ok(Self {
            parameters: visitor.parameters,
            others: visitor.others,
        })
    }

    /// A catalogue made by hand.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when the list is empty, [`Error::Argument`] when a path is twice
    /// in it.
    pub fn new(parameters: Vec<Parameter>) -> Result<Self> {
        if parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "in the catalogue".into(),
                found: list::<&str>([]),
            });
        }
        let mut paths: Vec<&str> = parameters.iter().map(Parameter::path).collect();
        paths.sort_unstable();
        if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Argument {
                name: "parameters",
                expected: "of different paths",
                found: twice[0].into(),
            });
        }
        Ok(Self {
            parameters,
            others: Vec::new(),
        })
    }

    /// Only the parameters that `group` matches, by Burn's own patterns.
    ///
    /// ```
    /// use burn::module::ParamGroup;
    /// use fisher_core::model::{Catalogue, Orientation::InputOutput, Parameter, Role::Matrix};
    ///
    /// let of = |path| Parameter::new(path, [4, 4], Matrix, InputOutput);
    /// let all = Catalogue::new(vec![of("layers.0.query.weight"), of("layers.0.mlp.weight")])?;
    /// let some = all.filter(&ParamGroup::from_regex(r"query|key").expect("a pattern"))?;
    /// assert_eq!(some.parameters()[0].path(), "layers.0.query.weight");
    /// # Ok::<(), fisher_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing matches.
    pub fn filter(&self, group: &ParamGroup) -> Result<Self> {
        let (parameters, rest): (Vec<Parameter>, Vec<Parameter>) = self
            .parameters
            .iter()
            .cloned()
            .partition(|p| p.matches(group));
        if parameters.is_empty() {
            return Err(Error::NoParameters {
                context: "matches the filter".into(),
                found: self.describe(),
            });
        }
        let others = self.others.iter().cloned().chain(rest).collect();
        Ok(Self { parameters, others })
    }

    /// Say which axis of the parameter at `path` is its output, trainable or not: for matrices that
    /// lie bare in a module.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none.
    pub fn with_orientation(self, path: &str, orientation: Orientation) -> Result<Self> {
        self.change(path, |parameter| {
            Ok(Parameter {
                orientation,
                oriented: true,
                ..parameter
            })
        })
    }

    /// Say that the channels of the convolution at `path` are in `groups` groups: see
    /// [`Parameter::with_channel_groups`].
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none, [`Error::Shape`] when it is no convolution of
    /// that many groups.
    pub fn with_channel_groups(self, path: &str, groups: usize) -> Result<Self> {
        self.change(path, |parameter| parameter.with_channel_groups(groups))
    }

    fn change(
        mut self,
        path: &str,
        f: impl FnOnce(Parameter) -> Result<Parameter>,
    ) -> Result<Self> {
        let mut all = self.parameters.iter_mut().chain(&mut self.others);
        match all.find(|p| p.path == path) {
            Some(parameter) => {
                *parameter = f(parameter.clone())?;
                Ok(self)
            }
            None => Err(Error::UnknownParameter {
                parameter: path.into(),
                known: self.describe(),
            }),
        }
    }

    /// The parameters, in the module's order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameter at `path`, if it is trainable.
    pub fn get(&self, path: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|p| p.path == path)
    }

    /// The parameter at `path`.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] when there is none that is trainable.
    pub fn require(&self, path: &str) -> Result<&Parameter> {
        self.get(path).ok_or_else(|| Error::UnknownParameter {
            parameter: path.into(),
            known: self.describe(),
        })
    }

    /// The layers, in the order of their numbers, and their parameters. A layer is everything
    /// under one numbered path, such as `decoder.layers.3`; outside of those it is the module that
    /// holds the parameters, such as `embedding`.
    pub fn layers(&self) -> Vec<(String, Vec<&Parameter>)> {
        let mut layers: Vec<(String, Vec<&Parameter>)> = Vec::new();
        for parameter in &self.parameters {
            let name = layer_name(parameter.path());
            match layers.iter_mut().find(|(layer, _)| *layer == name) {
                Some((_, parameters)) => parameters.push(parameter),
                None => layers.push((name, vec![parameter])),
            }
        }
        layers.sort_by_key(|(name, _)| natural(name));
        layers
    }

    /// All parameters known, measured or not: for what only reads shapes.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Parameter> {
        self.parameters.iter().chain(&self.others)
    }

    /// Paths and shapes in one line, for errors.
    pub(crate) fn describe(&self) -> String {
        list(
            self.parameters
                .iter()
                .map(|p| format!("{} {:?}", p.path, p.shape)),
        )
    }
}

/// Everything up to the first number of a path; without one, all but the parameter's own name.
fn layer_name(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let number = parts.iter().position(|part| part.parse::<u64>().is_ok());
    let end = number.map_or(parts.len() - 1, |number| number + 1);
    parts[..end.max(1)].join(".")
}

/// A path in parts that compare as a person would: `layers.10` after `layers.2`.
pub(crate) fn natural(path: &str) -> Vec<(Option<u64>, String)> {
    path.split('.')
        .map(|part| (part.parse().ok(), part.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("model.layers.11.self_attn.q_proj.weight", "model.layers.11")]
    #[case("transformer.h.0.mlp.c_fc.bias", "transformer.h.0")]
    #[case("embedding.weight", "embedding")]
    #[case("model.embed_tokens.weight", "model.embed_tokens")]
    #[case("head", "head")]
    #[case("0.weight", "0")]
    fn layers_are_named_by_their_number(#[case] path: &str, #[case] layer: &str) {
        assert_eq!(layer_name(path), layer);
    }
}
