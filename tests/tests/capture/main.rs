//! Where gradients come from: engines, layers, losses, traces, sketches.

mod adapters;
mod agreement;
mod alone;
mod both_engines;
mod by_loop;
mod collect;
mod decoders;
mod devices;
mod growth;
mod layers;
mod losses;
mod pitfalls;
mod product;
mod sketch;
mod trace;
mod zoo;
