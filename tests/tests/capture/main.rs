//! Where gradients come from: engines, layers, losses, traces.

mod adapters;
mod agreement;
mod alone;
mod collect;
mod decoders;
mod devices;
mod engine;
mod engines;
mod growth;
mod layers;
mod losses;
mod pitfalls;
mod product;
mod trace;
