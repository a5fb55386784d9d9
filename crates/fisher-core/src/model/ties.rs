//! Which paths of a module are one parameter, and which are copies.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;

use super::walk::{PathMapper, Place, PlaceVisitor, map_paths, places, visit_places};
use crate::error::{Error, Result};

/// The paths at which a module uses the same parameter.
///
/// A [`ParamId`] is no identity: `clone()` keeps it, so a target network or a moving average of a
/// model bears the ids of the model, also beside it in one module. What is one parameter follows
/// from more than the id:
///
/// - Paths of one id are *tied*, such as an embedding and the output head, where both or neither
///   require gradients, and shape, type, device and values are equal.
/// - Others of that id are *copies*: parameters of their own.
/// - In a module that is a copy of another (two parameters or more, each with its counterpart of the
///   same id) nothing is tied to the other once one pair differs.
///   While all pairs are equal, nobody can tell a fresh copy from a module that is used in two
///   places: [`Error::Copies`] says so where it matters.
///
/// Burn's own optimizers step only the first of tied parameters: tie them anew after each step, or
/// hold one parameter and use it twice.
#[derive(Debug, Clone, Default)]
pub struct Ties {
    /// Only those whose id more than one path bears.
    parameters: Vec<Shared>,
}

/// A parameter, and the paths it is used at.
#[derive(Debug, Clone)]
struct Shared {
    id: ParamId,
    trainable: bool,
    paths: Vec<String>,
    /// Two modules that are alike, of which one may be a copy.
    unclear: Option<[String; 2]>,
}

impl Ties {
    /// The ties of `module`. Reads values only of parameters that share their id.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not compare values.
    pub fn of<M: Module>(module: &M) -> Result<Self> {
        let all = places(module);
        let mut seen = HashSet::new();
        let again = all.iter().filter(|place| !seen.insert(place.id));
        let shared: HashSet<ParamId> = again.map(|place| place.id).collect();
        if shared.is_empty() {
            return Ok(Self::default());
        }
        let mut uses = Uses {
            shared: &shared,
            values: Vec::new(),
            found: Vec::new(),
        };
        visit_places(module, &mut uses)?;
        Ok(Self::sort(&all, uses.found))
    }

    fn sort(all: &[Place], uses: Vec<Use>) -> Self {
        let copies = copies(all, &uses);
        let apart = |a: &str, b: &str| copies.iter().any(|copy| !copy.equal && copy.between(a, b));
        let mut parameters: Vec<(usize, Shared)> = Vec::new();
        for Use {
            path,
            id,
            trainable,
            value,
        } in uses
        {
            let joins = |(of, shared): &&mut (usize, Shared)| {
                *of == value && !shared.paths.iter().any(|other| apart(other, &path))
            };
            if let Some((_, shared)) = parameters.iter_mut().find(joins) {
                let unclear = copies.iter().find(|copy| {
                    let mut others = shared.paths.iter();
                    others.any(|other| copy.between(other, &path))
                });
                shared.unclear = shared.unclear.take().or(unclear.map(|c| c.modules.clone()));
                shared.paths.push(path);
                continue;
            }
            let shared = Shared {
                id,
                trainable,
                paths: vec![path],
                unclear: None,
            };
            parameters.push((value, shared));
        }
        Self {
            parameters: parameters.into_iter().map(|(_, shared)| shared).collect(),
        }
    }

    /// The other paths at which the parameter at `path` is used.
    ///
    /// # Errors
    /// [`Error::Copies`] where these may be copies instead.
    pub fn tied_with(&self, path: &str) -> Result<Vec<&str>> {
        let is_here = |shared: &&Shared| shared.paths.iter().any(|other| other == path);
        let Some(shared) = self.parameters.iter().find(is_here) else {
            return Ok(Vec::new());
        };
        if let Some([first, second]) = &shared.unclear {
            return Err(Error::Copies {
                first: first.clone(),
                second: second.clone(),
            });
        }
        let others = shared.paths.iter().filter(|other| *other != path);
        Ok(others.map(String::as_str).collect())
    }

    /// Two trainable parameters that share an id and are not tied, if there are any: Burn's
    /// optimizers keep one gradient for an id, and would lose the other's.
    pub fn clash(&self) -> Option<[&str; 2]> {
        let trainable: Vec<&Shared> = self.parameters.iter().filter(|p| p.trainable).collect();
        let mut pairs = trainable.iter().enumerate();
        pairs.find_map(|(at, second)| {
            let first = trainable[..at].iter().find(|first| first.id == second.id)?;
            Some([&*first.paths[0], &*second.paths[0]])
        })
    }

    /// `module` with an id of its own for each parameter. Of those that share one, the first that
    /// requires gradients keeps it (without any, the first); what is tied stays tied.
    pub fn separate<M: Module>(&self, module: M) -> M {
        let keeps = |shared: &Shared| {
            let rivals = || self.parameters.iter().filter(|p| p.id == shared.id);
            let keeper = rivals().find(|p| p.trainable).or(rivals().next());
            keeper.is_some_and(|keeper| keeper.paths[0] == shared.paths[0])
        };
        let copies = self.parameters.iter().filter(|shared| !keeps(shared));
        let ids = copies.flat_map(|shared| {
            let id = ParamId::new();
            shared.paths.iter().map(move |path| (&**path, id))
        });
        rename(module, ids.collect())
    }

    /// A module that [`Ties::separate`] was applied to, with its ids as they were.
    pub fn rejoin<M: Module>(&self, module: M) -> M {
        let ids = self.parameters.iter();
        let ids = ids.flat_map(|shared| shared.paths.iter().map(|path| (&**path, shared.id)));
        rename(module, ids.collect())
    }
}

/// `module` with new ids: for a copy that is to be a model of its own beside the first, such as a
/// target network. What is tied inside it stays tied.
///
/// ```
/// use burn::{module::Module, nn::LinearConfig, tensor::Device};
/// use fisher_core::model::new_ids;
///
/// let student = LinearConfig::new(2, 3).init(&Device::flex());
/// let teacher = new_ids(student.clone());
/// assert_ne!(teacher.weight.id, student.weight.id);
/// ```
pub fn new_ids<M: Module>(module: M) -> M {
    #[derive(Default)]
    struct Renew(HashMap<ParamId, ParamId>);
    impl ModuleMapper for Renew {
        fn map_float<const D: usize>(&mut self, mut param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.id = *self.0.entry(param.id).or_default();
            param
        }
    }
    module.map(&mut Renew::default())
}

fn rename<M: Module>(module: M, ids: HashMap<&str, ParamId>) -> M {
    struct Rename<'a>(HashMap<&'a str, ParamId>);
    impl PathMapper for Rename<'_> {
        fn map<const D: usize>(
            &mut self,
            path: &str,
            mut param: Param<Tensor<D>>,
        ) -> Param<Tensor<D>> {
            param.id = self.0.get(path).copied().unwrap_or(param.id);
            param
        }
    }
    if ids.is_empty() {
        return module;
    }
    map_paths(module, &mut Rename(ids))
}

/// A path whose id others bear too.
struct Use {
    path: String,
    id: ParamId,
    trainable: bool,
    /// Equal for paths that may be tied: id, gradients and values are the same.
    value: usize,
}

struct Uses<'a> {
    shared: &'a HashSet<ParamId>,
    /// Those that differ from each other.
    values: Vec<Value>,
    found: Vec<Use>,
}

struct Value {
    id: ParamId,
    trainable: bool,
    shape: Vec<usize>,
    flat: Tensor<1>,
}

impl Value {
    fn equals(&self, other: &Self) -> Result<bool> {
        let kind = |value: &Self| (value.flat.dtype(), value.flat.device());
        if (self.id, self.trainable, &self.shape) != (other.id, other.trainable, &other.shape)
            || kind(self) != kind(other)
        {
            return Ok(false);
        }
        let [a, b] = [&self.flat, &other.flat].map(Tensor::clone);
        let both_nan = a.clone().is_nan().bool_and(b.clone().is_nan());
        let equal = a.equal(b).bool_or(both_nan).all();
        let equal = equal.try_into_data().map_err(Error::device)?;
        Ok(equal.iter::<bool>().all(|equal| equal))
    }
}

impl PlaceVisitor for Uses<'_> {
    type Error = Error;

    fn visit<const D: usize>(&mut self, place: Place, param: &Param<Tensor<D>>) -> Result<()> {
        if !self.shared.contains(&param.id) {
            return Ok(());
        }
        let tensor = param.val().inner();
        let tensor = if tensor.dtype().is_float() {
            tensor
        } else {
            tensor.dequantize()
        };
        let shape = tensor.dims().to_vec();
        let elements = shape.iter().product::<usize>();
        let new = Value {
            id: param.id,
            trainable: param.is_require_grad(),
            shape,
            flat: tensor.reshape([elements]),
        };
        let mut value = self.values.len();
        for (at, known) in self.values.iter().enumerate() {
            if known.equals(&new)? {
                value = at;
                break;
            }
        }
        self.found.push(Use {
            path: place.path,
            id: new.id,
            trainable: new.trainable,
            value,
        });
        if value == self.values.len() {
            self.values.push(new);
        }
        Ok(())
    }
}

/// Two modules, of which each parameter has its counterpart of the same id in the other.
struct Copy {
    modules: [String; 2],
    equal: bool,
}

impl Copy {
    fn between(&self, a: &str, b: &str) -> bool {
        let [first, second] = &self.modules;
        let is_in = |path: &str, module: &str| within(path, module).is_some();
        (is_in(a, first) && is_in(b, second)) || (is_in(a, second) && is_in(b, first))
    }
}

/// The largest modules that are copies of each other.
fn copies(all: &[Place], uses: &[Use]) -> Vec<Copy> {
    let by_path: HashMap<&str, usize> = uses.iter().map(|u| (&*u.path, u.value)).collect();
    let mut found: Vec<Copy> = Vec::new();
    for (at, second) in uses.iter().enumerate() {
        for first in uses[..at].iter().filter(|first| first.id == second.id) {
            if found.iter().any(|c| c.between(&first.path, &second.path)) {
                continue;
            }
            for modules in enclosing(&first.path, &second.path) {
                let [ours, theirs] = modules.each_ref().map(|module| content(all, module));
                if ours.len() < 2 || ours != theirs {
                    continue;
                }
                let value = |module: &String, name: &str| by_path.get(&*format!("{module}.{name}"));
                let equal = ours
                    .keys()
                    .all(|name| value(&modules[0], name) == value(&modules[1], name));
                found.push(Copy { modules, equal });
                break;
            }
        }
    }
    found
}

/// The ids of a module's parameters, by their paths in it.
fn content<'a>(all: &'a [Place], module: &str) -> BTreeMap<&'a str, ParamId> {
    let inside = |place: &'a Place| Some((within(&place.path, module)?, place.id));
    all.iter().filter_map(inside).collect()
}

/// What follows `module` in `path`, if it lies there.
fn within<'a>(path: &'a str, module: &str) -> Option<&'a str> {
    path.strip_prefix(module)?.strip_prefix('.')
}

/// The modules around two parameters in which both have the same path, the largest first.
fn enclosing(first: &str, second: &str) -> Vec<[String; 2]> {
    let [a, b]: [Vec<&str>; 2] = [first, second].map(|path| path.split('.').collect());
    let pairs = a.iter().rev().zip(b.iter().rev());
    let common = pairs.take_while(|(a, b)| a == b).count();
    let around = |path: &[&str], inside: usize| path[..path.len() - inside].join(".");
    let levels = (1..=common).rev();
    let levels = levels.map(|inside| [around(&a, inside), around(&b, inside)]);
    levels
        .filter(|modules| modules.iter().all(|module| !module.is_empty()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::Device;
    use rstest::rstest;

    #[rstest]
    #[case("student.block.w", "teacher.block.w", vec![["student", "teacher"], ["student.block", "teacher.block"]])]
    #[case("layers.0.w", "layers.1.w", vec![["layers.0", "layers.1"]])]
    #[case("embedding.weight", "head", vec![])]
    #[case("w", "copy.w", vec![])]
    fn modules_around_two_paths(
        #[case] first: &str,
        #[case] second: &str,
        #[case] expected: Vec<[&str; 2]>,
    ) {
        assert_eq!(enclosing(first, second), expected);
    }

    #[derive(Module, Debug)]
    struct Bare {
        a: Param<Tensor<1>>,
        b: Param<Tensor<1>>,
    }

    /// NaN is not equal to itself, but a tied NaN stays tied.
    #[test]
    fn values_that_are_not_numbers_are_tied_too() {
        let device = Device::flex();
        let a = Param::from_tensor(Tensor::<1>::from_floats([1.0, f32::NAN], &device));
        let tied = Bare {
            b: a.clone(),
            a: a.clone(),
        };
        let ties = Ties::of(&tied).expect("values");
        assert_eq!(ties.tied_with("a").expect("a tie"), ["b"]);
        let moved = Bare {
            b: a.clone().map(|t| t.mul_scalar(2.0)),
            a,
        };
        let ties = Ties::of(&moved).expect("values");
        assert!(ties.tied_with("a").expect("a copy").is_empty());
        let ids = |m: &Bare| [m.a.id, m.b.id];
        let apart = ties.separate(moved.clone());
        assert_eq!(apart.a.id, moved.a.id);
        assert_ne!(apart.b.id, moved.b.id);
        assert_eq!(ids(&ties.rejoin(apart)), ids(&moved));
    }
}
