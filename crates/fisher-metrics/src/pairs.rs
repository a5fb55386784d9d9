//! Products between the gradients of samples, over slices of the model, read in tiles.
//!
//! A [`Slice`] is a set of elements. The rows of one parameter are read once for all slices that lie
//! in it, a tile of elements at a time; each slice's share is gathered, weighed by the caller, and
//! multiplied on the device. Memory is bounded by the tile and by one `[rows, rows]` matrix a slice.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{DType, Device, Element, Tensor, TensorData};
use fisher_core::{Block, Catalogue, GradientStore, Grouping, HeadLayout, Scheme};

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
    ranges: Vec<Range<usize>>,
    /// Where each range begins in the slice.
    starts: Vec<usize>,
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
    match found.is_empty() {
        false => Ok(found),
        true => Err(Error::NotCollected {
            what: "attention heads",
            advice: "give a head layout that is not empty, and blocks to look at",
        }),
    }
}

/// Some samples of a store, as rows.
#[derive(Clone)]
pub(crate) struct Rows<'a> {
    store: &'a GradientStore,
    samples: Vec<(&'a str, usize)>,
    /// `T_i`.
    pub(crate) tokens: Vec<f64>,
    view: View,
}

/// A change of what is read, to check that results answer to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// Multiplies every gradient, unless it is absent.
    pub(crate) factor: Option<f32>,
    /// The elements of some parameters that read 0.
    pub(crate) zero: Vec<(String, Vec<bool>)>,
    /// The first samples only.
    pub(crate) limit: Option<usize>,
}

impl<'a> Rows<'a> {
    /// All samples of `tasks`, one task after the other.
    pub(crate) fn of(store: &'a GradientStore, tasks: &[&'a str]) -> Self {
        Self::viewed(store, tasks, &View::default())
    }

    pub(crate) fn viewed(store: &'a GradientStore, tasks: &[&'a str], view: &View) -> Self {
        let limit = view.limit.unwrap_or(usize::MAX);
        let samples = tasks.iter().flat_map(|task| {
            let samples = store.samples(task).iter().enumerate().take(limit);
            samples.map(move |(i, sample)| ((*task, i), sample.tokens() as f64))
        });
        let (samples, tokens) = samples.unzip();
        Self {
            store,
            samples,
            tokens,
            view: view.clone(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Rows `range`.
    pub(crate) fn cut(&self, range: Range<usize>) -> Self {
        Self {
            store: self.store,
            samples: self.samples[range.clone()].to_vec(),
            tokens: self.tokens[range].to_vec(),
            view: self.view.clone(),
        }
    }

    fn read(&self, row: usize, path: &str, range: Range<usize>) -> Result<Cow<'a, [f32]>> {
        let (task, number) = self.samples[row];
        let mut values = self.store.row(task, number, path, range.clone())?;
        if let Some(factor) = self.view.factor {
            values.to_mut().iter_mut().for_each(|g| *g *= factor);
        }
        for (_, zero) in self.view.zero.iter().filter(|(of, _)| of == path) {
            let zeros = values.to_mut().iter_mut().zip(&zero[range.clone()]);
            zeros.for_each(|(g, zero)| *g = if *zero { 0.0 } else { *g });
        }
        Ok(values)
    }

    fn elements(&self, path: &str) -> Result<usize> {
        Ok(self.store.catalogue().require(path)?.elements())
    }
}

/// A slice's share of a tile: spans of the tile and where they lie in the slice.
struct Piece {
    slice: usize,
    /// `(start in the tile, start in the slice, length)`
    spans: Vec<(usize, usize, usize)>,
    elements: usize,
}

/// Elements of a tile that are multiplied at a time: what they are weighed by stays in a processor's
/// cache for all rows.
const PIECE: usize = 1 << 14;

/// Read the rows of `sides` in tiles of at most `bytes`, and give every slice's share of each.
fn for_each_piece<'a>(
    slices: &[Slice],
    sides: &[&Rows<'a>],
    bytes: usize,
    mut take: impl FnMut(&Piece, &[Vec<Cow<'a, [f32]>>]) -> Result<()>,
) -> Result<()> {
    let mut paths: Vec<&str> = Vec::new();
    for part in slices.iter().flat_map(|slice| &slice.parts) {
        if !paths.contains(&&*part.path) {
            paths.push(&part.path);
        }
    }
    let rows: usize = sides.iter().map(|side| side.len()).sum();
    let step = (bytes / (4 * rows.max(1))).max(1);
    for path in paths {
        let Some(side) = sides.first() else {
            return Ok(());
        };
        let elements = side.elements(path)?;
        for start in (0..elements).step_by(step) {
            let tile = start..elements.min(start + step);
            let parts = tile.clone().step_by(PIECE).flat_map(|start| {
                let part = start..tile.end.min(start + PIECE);
                let slices = slices.iter().enumerate();
                let of = move |(i, slice)| Piece::of(i, slice, path, &part, tile.start);
                slices.filter_map(of)
            });
            let pieces: Vec<Piece> = parts.collect();
            if pieces.is_empty() {
                continue;
            }
            let read = |side: &&Rows<'a>| -> Result<Vec<Cow<'a, [f32]>>> {
                let rows = 0..side.len();
                rows.map(|row| side.read(row, path, tile.clone())).collect()
            };
            let read = sides.iter().map(read).collect::<Result<Vec<_>>>()?;
            for piece in &pieces {
                take(piece, &read)?;
            }
        }
    }
    Ok(())
}

impl Piece {
    /// The share of `part` of a tile that begins at `origin`.
    fn of(
        index: usize,
        slice: &Slice,
        path: &str,
        part: &Range<usize>,
        origin: usize,
    ) -> Option<Self> {
        let mut spans = Vec::new();
        for of in slice.parts.iter().filter(|of| of.path == path) {
            let first = of.ranges.partition_point(|range| range.end <= part.start);
            let ranges = of.ranges[first..].iter().zip(&of.starts[first..]);
            for (range, &at) in ranges.take_while(|(range, _)| range.start < part.end) {
                let start = range.start.max(part.start);
                let end = range.end.min(part.end);
                spans.push((start - origin, at + start - range.start, end - start));
            }
        }
        let elements = spans.iter().map(|(_, _, length)| length).sum();
        (elements > 0).then_some(Self {
            slice: index,
            spans,
            elements,
        })
    }
}

/// Give every run of a row that belongs to a slice: slice, row, where the run begins in the slice,
/// and its gradients.
pub(crate) fn for_each_run(
    slices: &[Slice],
    rows: &Rows,
    bytes: usize,
    mut take: impl FnMut(usize, usize, usize, &[f32]),
) -> Result<()> {
    for_each_piece(slices, &[rows], bytes, |piece, read| {
        for (row, values) in read[0].iter().enumerate() {
            for &(start, at, length) in &piece.spans {
                take(piece.slice, row, at, &values[start..start + length]);
            }
        }
        Ok(())
    })
}

/// `F = Σ_i w_i g_i ⊙ g_i / T_i` of every slice, over some tasks, each with its share of F:
/// `w_i = share/n`.
pub(crate) fn fisher(
    slices: &[Slice],
    tasks: &[(&Rows, f64)],
    bytes: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut fisher: Vec<Vec<f64>> = slices.iter().map(|s| vec![0.0; s.elements]).collect();
    for (rows, share) in tasks {
        let n = rows.len() as f64;
        for_each_run(slices, rows, bytes, |slice, row, at, run| {
            let weight = share / (n * rows.tokens[row]);
            let sums = &mut fisher[slice][at..at + run.len()];
            for (sum, &g) in sums.iter_mut().zip(run) {
                *sum += weight * (f64::from(g) * f64::from(g));
            }
        })?;
    }
    Ok(fisher)
}

/// A type products are computed in.
pub(crate) trait Real: Element + Copy + Default {
    const DTYPE: DType;

    fn of(x: f64) -> Self;
}

impl Real for f32 {
    const DTYPE: DType = DType::F32;

    fn of(x: f64) -> Self {
        x as Self
    }
}

impl Real for f64 {
    const DTYPE: DType = DType::F64;

    fn of(x: f64) -> Self {
        x
    }
}

/// How one side of a product is weighed: slice, row, where the run begins in the slice, its
/// gradients, and where the weighed values go.
pub(crate) trait Weigh: Fn(usize, usize, usize, &[f32], &mut [f64]) {}
impl<F: Fn(usize, usize, usize, &[f32], &mut [f64])> Weigh for F {}

/// `Σ_k left_ik right_jk` over the elements of every slice: `[left rows, right rows]`, row-major.
/// Sides are weighed in float64 and multiplied in `T`.
pub(crate) fn products<T: Real>(
    slices: &[Slice],
    (left, weigh_left): (&Rows, impl Weigh),
    (right, weigh_right): (&Rows, impl Weigh),
    device: &Device,
    bytes: usize,
) -> Result<Vec<Vec<f64>>> {
    let size = left.len() * right.len();
    let mut sums = vec![vec![0.0; size]; slices.len()];
    for_each_piece(slices, &[left, right], bytes, |piece, read| {
        let left = Side::of::<T>(piece, &read[0], &weigh_left, device);
        let right = Side::of::<T>(piece, &read[1], &weigh_right, device);
        add(&mut sums[piece.slice], &left, &right)
    })?;
    Ok(sums)
}

/// [`products`] of rows with themselves.
pub(crate) fn gram<T: Real>(
    slices: &[Slice],
    rows: &Rows,
    weigh: impl Weigh,
    device: &Device,
    bytes: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut sums = vec![vec![0.0; rows.len() * rows.len()]; slices.len()];
    for_each_piece(slices, &[rows], bytes, |piece, read| {
        let side = Side::of::<T>(piece, &read[0], &weigh, device);
        add(&mut sums[piece.slice], &side, &side)
    })?;
    Ok(sums)
}

/// One side of a product. Every row is divided by a power of two near its largest element, which is
/// exact, so that no element is too large for float32 and none too small that counts.
struct Side {
    rows: Tensor<2>,
    scales: Vec<f64>,
}

impl Side {
    fn of<T: Real>(
        piece: &Piece,
        rows: &[Cow<[f32]>],
        weigh: &impl Weigh,
        device: &Device,
    ) -> Self {
        let mut values = vec![T::default(); rows.len() * piece.elements];
        let mut weighed = vec![0.0; piece.elements];
        let mut scales = Vec::with_capacity(rows.len());
        let into = values.chunks_exact_mut(piece.elements);
        for (row, (values, into)) in rows.iter().zip(into).enumerate() {
            let mut rest = &mut weighed[..];
            for &(start, at, length) in &piece.spans {
                let (run, others) = rest.split_at_mut(length);
                weigh(piece.slice, row, at, &values[start..start + length], run);
                rest = others;
            }
            let scale = power_of_two(&weighed);
            let factor = scale.recip();
            let terms = into.iter_mut().zip(&weighed);
            terms.for_each(|(into, x)| *into = T::of(x * factor));
            scales.push(scale);
        }
        let data = TensorData::new(values, [rows.len(), piece.elements]);
        Self {
            rows: Tensor::from_data(data, (device, T::DTYPE)),
            scales,
        }
    }
}

/// The power of two at or below the largest element; 1 where there is none.
fn power_of_two(values: &[f64]) -> f64 {
    // Eight at a time, which the compiler turns into vectors.
    let mut largest = [0.0f64; 8];
    for run in values.chunks(8) {
        for (largest, x) in largest.iter_mut().zip(run) {
            *largest = if x.abs() > *largest {
                x.abs()
            } else {
                *largest
            };
        }
    }
    let largest = largest.into_iter().fold(0.0, f64::max);
    match largest.is_normal() {
        // Its exponent without its digits.
        true => f64::from_bits(largest.to_bits() & f64::INFINITY.to_bits()),
        false => 1.0,
    }
}

fn add(sums: &mut [f64], left: &Side, right: &Side) -> Result<()> {
    let product = left.rows.clone().matmul(right.rows.clone().transpose());
    let data = product.try_into_data();
    let data = data.map_err(|e| fisher_core::Error::Device {
        reason: e.to_string(),
    })?;
    let mut terms = data.iter::<f64>();
    for (sums, x) in sums.chunks_mut(right.scales.len().max(1)).zip(&left.scales) {
        // `zip` asks its left side first: no term is lost.
        for ((sum, y), term) in sums.iter_mut().zip(&right.scales).zip(&mut terms) {
            *sum += term * x * y;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_two_is_found() {
        let of = |x: f64| power_of_two(&[0.0, 1e-300, -x, f64::MIN_POSITIVE]);
        for (x, expected) in [(1.0, 1.0), (3.9, 2.0), (0.3, 0.25), (1e200, 2f64.powi(664))] {
            assert_eq!(of(x), expected, "{x}");
        }
        assert_eq!(power_of_two(&[0.0; 11]), 1.0);
        assert_eq!(power_of_two(&[]), 1.0);
    }
}
