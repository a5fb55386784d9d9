//! Walks over the float parameters of a module that know the path of each.

use std::convert::Infallible;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// Where a module has a float parameter.
#[derive(Debug, Clone)]
pub struct Place {
    /// The path.
    pub path: String,
    /// What each name of the path is a field of: `Struct:Linear`, ..
    pub containers: Vec<String>,
    /// The id.
    pub id: ParamId,
    /// The shape.
    pub shape: Vec<usize>,
}

/// Sees every float parameter with its place.
pub trait PlaceVisitor {
    /// What can go wrong.
    type Error;

    /// See one; the walk goes on after an error.
    fn visit<const D: usize>(
        &mut self,
        place: Place,
        param: &Param<Tensor<D>>,
    ) -> Result<(), Self::Error>;
}

/// Changes every float parameter by its path.
pub trait PathMapper {
    /// Change one.
    fn map<const D: usize>(&mut self, path: &str, param: Param<Tensor<D>>) -> Param<Tensor<D>>;
}

/// Show all float parameters of `module` to `visitor`.
///
/// # Errors
/// The visitor's last.
pub fn visit_places<M: Module, V: PlaceVisitor>(
    module: &M,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let mut walk = Walk::new(visitor);
    module.visit(&mut walk);
    walk.error.map_or(Ok(()), Err)
}

/// Let `mapper` change all float parameters of `module`.
pub fn map_paths<M: Module, P: PathMapper>(module: M, mapper: &mut P) -> M {
    module.map(&mut Walk::<_, Infallible>::new(mapper))
}

/// The places of all float parameters of `module`. Reads no values.
pub fn places<M: Module>(module: &M) -> Vec<Place> {
    let mut places = Vec::new();
    let Ok(()) = visit_places(module, &mut places);
    places
}

impl PlaceVisitor for Vec<Place> {
    type Error = Infallible;

    fn visit<const D: usize>(
        &mut self,
        place: Place,
        _param: &Param<Tensor<D>>,
    ) -> Result<(), Infallible> {
        self.push(place);
        Ok(())
    }
}

struct Walk<'a, W, E> {
    names: Vec<String>,
    containers: Vec<String>,
    with: &'a mut W,
    error: Option<E>,
}

impl<'a, W, E> Walk<'a, W, E> {
    fn new(with: &'a mut W) -> Self {
        Self {
            names: Vec::new(),
            containers: Vec::new(),
            with,
            error: None,
        }
    }

    fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.into());
        self.containers.push(container.into());
    }

    fn exit(&mut self) {
        self.names.pop();
        self.containers.pop();
    }
}

impl<V: PlaceVisitor> ModuleVisitor for Walk<'_, V, V::Error> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let place = Place {
            path: self.names.join("."),
            containers: self.containers.clone(),
            id: param.id,
            shape: param.lazy_shape().to_vec(),
        };
        if let Err(error) = self.with.visit(place, param) {
            self.error = Some(error);
        }
    }
}

impl<P: PathMapper> ModuleMapper for Walk<'_, P, Infallible> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.with.map(&self.names.join("."), param)
    }
}
