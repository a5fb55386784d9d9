//! Gradients of a whole batch from one pass: a model's own forward and backward pass is recorded, its samples are followed
//! through it, and it is carried out without the sums over them.

mod execute;
mod graph;
mod operations;
mod plan;
mod recipe;
mod record;
mod samples;
mod tail;
mod tracer;
mod uses;

pub(crate) use tracer::Tracer;
