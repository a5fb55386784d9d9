//! The projections of an attention layer, looked up in the catalogue with their adapters and biases.

use super::config::AttentionConfig;
use crate::error::{Error, Result, list};
use crate::model::{Catalogue, Parameter};

/// A trainable factor of a low-rank adapter: its `axis` lies beside the axis `of` of what it adapts.
pub(super) struct Adapter<'a> {
    pub(super) path: &'a str,
    pub(super) axis: usize,
    pub(super) of: usize,
}

/// Looks up the parameters of one attention layer and names them all when one does not fit.
pub(super) struct Finder<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) paths: &'a [&'a str],
}

impl<'a> Finder<'a> {
    pub(super) fn new(catalogue: &'a Catalogue, paths: &'a [&'a str]) -> Self {
        Self { catalogue, paths }
    }

    pub(super) fn check<T>(&self, result: Result<T, String>) -> Result<T> {
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
    pub(super) fn output(&self, path: &str) -> Result<(usize, usize)> {
        let parameter = self.get(path)?;
        self.axis(parameter, parameter.output_axis())
    }

    /// The input axis of a projection and its length.
    pub(super) fn input(&self, path: &str) -> Result<(usize, usize)> {
        let parameter = self.get(path)?;
        self.axis(parameter, parameter.input_axis())
    }

    fn axis(&self, parameter: &Parameter, axis: Option<usize>) -> Result<(usize, usize)> {
        let path = parameter.path();
        let axis = axis.filter(|_| parameter.shape().len() == 2);
        let axis = axis.ok_or_else(|| format!("`{path}` is not a matrix"));
        let axis = axis.and_then(|axis| {
            if parameter.is_oriented() {
                Ok(axis)
            } else {
                Err(format!(
                    "nothing tells which axis of `{path}` is its output, since it is no layer of \
                 Burn's; say it with `Catalogue::with_orientation`"
                ))
            }
        });
        self.check(axis).map(|axis| (axis, parameter.shape()[axis]))
    }

    /// The trainable factors of the low-rank adapters of a projection.
    pub(super) fn adapters(&self, projection: &str) -> Result<Vec<Adapter<'a>>> {
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
    pub(super) fn width(
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
    pub(super) fn bias(
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
