//! The parameters of a model: their paths, shapes, roles, weights and ties.

mod catalogue;
mod parameter;
mod ties;
mod visitor;
mod walk;
mod weights;

pub use catalogue::Catalogue;
pub use parameter::{Orientation, Parameter, Role};
pub use ties::{Ties, new_ids};
pub use weights::{for_each_weight, hash_weights};

#[doc(hidden)]
pub use walk::{PathMapper, Place, PlaceVisitor, map_paths, places, visit_places};

pub(crate) use catalogue::natural;
