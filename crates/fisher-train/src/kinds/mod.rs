//! Engines of other Fishers than the empirical one: labels drawn from the model, the expectation over its classes, single
//! tokens, centred gradients.

mod centre;
mod fisher;
mod rounds;
mod spread;
mod tokens;

pub use centre::MeanGradient;
pub(crate) use centre::{Centred, Means};
pub use fisher::Fisher;
pub(crate) use rounds::{Plan, Rounds, held};
pub(crate) use spread::Spread;
pub use spread::{DrawError, DrawSpread};
