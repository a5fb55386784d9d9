//! `fisher plan`: what follows from a finished run for whoever makes a model smaller or tunes it: bits for each tensor of a
//! quantized model, ranks for each matrix of a LoRA.
//!
//! A plan is a choice under a budget: each tensor has levels (bits, ranks), a level costs budget and leaves some predicted harm, and the sum of
//! the harms is made small ([`choose`]). Tensors that the samples cannot tell apart get the same level ([`tie_groups`]). What is
//! predicted of bits is measured by [`verify`].

mod args;
mod bits;
mod choose;
mod command;
mod make;
mod rank;
mod resolve;
mod round;
mod scored;
mod source;
mod ties;
mod uniform;
mod verify;
mod words;

pub use args::{Distinctions, PlanArgs};
pub use bits::bits;
pub use choose::{Choice, Item, choose};
pub(crate) use command::plan;
pub use rank::{captured, rank};
pub use resolve::{By, Resolution, resolve};
pub use round::Rounding;
pub use scored::{Scored, Sums};
pub use source::{Elements, Source};
pub use ties::tie_groups;
pub use verify::{Comparison, Rise, verify};
