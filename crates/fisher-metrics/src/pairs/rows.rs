//! Samples of a store as rows, read in tiles.
//!
//! The rows of one parameter are read once for all slices that lie in it, a tile of elements at a
//! time.

use std::borrow::Cow;
use std::ops::Range;

use fisher_core::pieces;
use fisher_core::store::GradientStore;

use super::slices::Slice;
use crate::error::Result;

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

    /// Some of the rows.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        Self {
            store: self.store,
            samples: rows.iter().map(|&row| self.samples[row]).collect(),
            tokens: rows.iter().map(|&row| self.tokens[row]).collect(),
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
pub(super) struct Piece {
    pub(super) slice: usize,
    /// `(start in the tile, start in the slice, length)`
    pub(super) spans: Vec<(usize, usize, usize)>,
    pub(super) elements: usize,
}

/// Elements of a tile that are multiplied at a time: what they are weighed by stays in a processor's
/// cache for all rows.
const PIECE: usize = 1 << 14;

/// Read the rows of `sides` in tiles of at most `bytes`, and give every slice's share of each.
pub(super) fn for_each_piece<'a>(
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
        for tile in pieces(elements, step) {
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
