//! Groups of a parameter's elements: channels, rows, buckets and attention heads, and what spans whole
//! layers.

mod attention;
mod config;
mod finder;
mod groups;
mod heads;
mod margins;
mod naming;
mod reduce;
mod scheme;
mod slices;
mod traces;

pub use attention::{Attention, Block, Fused};
pub use config::AttentionConfig;
pub use groups::Grouping;
pub use heads::HeadLayout;
pub use scheme::{GroupReduction, Scheme};
pub use traces::{HeadKey, Totals};

pub(crate) use groups::Unchecked;
pub(crate) use margins::Margins;
pub(crate) use traces::BatchTotals;
