//! The parameters of a model: their paths, shapes, roles, weights and ties.

mod catalogue;
mod parameter;
mod ties;
mod visitor;
mod weights;

pub use catalogue::Catalogue;
pub use parameter::{Orientation, Parameter, Role};
pub use ties::{Ties, new_ids};
pub use weights::{for_each_weight, hash_weights};

pub(crate) use catalogue::natural;
