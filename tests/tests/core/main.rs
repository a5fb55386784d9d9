//! What numbers are: groups, heads, accumulators, files, stores.

mod accumulation;
mod factors;
mod files;
mod gates;
mod golden;
mod groups;
mod hardly_varying;
mod heads;
mod imports;
mod kernels;
mod roles;
mod sinks;
mod store;
mod tied;
