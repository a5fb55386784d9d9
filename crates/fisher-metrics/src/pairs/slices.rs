//! Slices: sets of elements of the model that are compared together.

use std::ops::Range;

use fisher_core::grouping::{Block, Grouping, HeadLayout, Scheme};
use fisher_core::model::Catalogue;

use crate::error::{Error, Result};

/// A set of elements of the model, in an order of its own.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub(crate) name: String,
    pub(crate) parts: Vec<Part>,
    pub(crate) elements: usize,
}

/// The elements of one parameter that belong to a slice.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) path: String,
    pub(super) ranges: Vec<Range<usize>>,
    /// Where each range begins in the slice.
    pub(super) starts: Vec<usize>,
}

/// The path of a parameter, and ranges of its elements.
type PathRanges = (String, Vec<Range<usize>>);

impl Slice {
    pub(crate) fn new(name: String, parts: impl IntoIterator<Item = PathRanges>) -> Self {
        let mut elements = 0;
        let mut part = |(path, ranges): PathRanges| {
            let starts = ranges.iter().map(|range| {
                let start = elements;
                elements += range.len();
                start
            });
            Part {
                path,
                starts: starts.collect(),
                ranges,
            }
        };
        Self {
            name,
            parts: parts.into_iter().map(&mut part).collect(),
            elements,
        }
    }
}

/// The head slices of one block of one attention layer, shared key/value heads once.
#[derive(Debug, Clone)]
pub(crate) struct BlockSlices {
    pub(crate) layer: usize,
    pub(crate) block: Block,
    pub(crate) slices: Vec<Slice>,
}

/// The blocks, in the order in which they are reported.
pub(crate) const BLOCKS: [Block; 4] = [Block::Q, Block::K, Block::V, Block::O];

/// The head slices of these blocks of every attention layer.
///
/// # Errors
/// [`fisher_core::Error::UnknownParameter`] when a block's parameter is not in `catalogue`,
/// [`Error::NotCollected`] when there is no head.
pub(crate) fn head_slices(
    heads: &HeadLayout,
    catalogue: &Catalogue,
    blocks: &[Block],
) -> Result<Vec<BlockSlices>> {
    let mut found = Vec::new();
    for (layer, attention) in heads.attention().iter().enumerate() {
        // Block to the parts of every head.
        let mut parts: Vec<Vec<Vec<PathRanges>>> = vec![Vec::new(); BLOCKS.len()];
        for path in attention.paths() {
            if !attention.blocks(path).any(|block| blocks.contains(&block)) {
                continue;
            }
            let parameter = catalogue.require(path)?;
            for grouping in Grouping::of(parameter, &Scheme::Head, heads)? {
                let is = |block: &Block| grouping.label() == format!("head.{block}");
                let Some(block) = BLOCKS.iter().position(is) else {
                    continue;
                };
                let of = &mut parts[block];
                of.resize(grouping.groups(), Vec::new());
                for (group, of) in of.iter_mut().enumerate() {
                    of.push((path.to_owned(), grouping.ranges(group)));
                }
            }
        }
        for (block, parts) in BLOCKS.into_iter().zip(parts) {
            if !blocks.contains(&block) {
                continue;
            }
            let shared = parts.len() < attention.heads();
            let slice = |(head, parts)| {
                let kind = if shared { "kv head" } else { "head" };
                Slice::new(format!("{} {block} {kind} {head}", attention.name()), parts)
            };
            found.push(BlockSlices {
                layer,
                block,
                slices: parts.into_iter().enumerate().map(slice).collect(),
            });
        }
    }
    if !found.is_empty() {
        Ok(found)
    } else {
        Err(Error::not_collected(
            "attention heads",
            "give a head layout that is not empty, and blocks to look at",
        ))
    }
}
