//! A batch that is squared, reduced and accumulated.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};

use super::plan::Plan;
use super::task::ParameterStatistics;
use crate::error::{Error, Result};
use crate::gradient::{
    BAND, Contribution, ContributionUnit, Gradient, SampleGradient, Tied, TokenSum,
    at_least_single, sides,
};
use crate::grouping::{BatchTotals, GroupReduction, Grouping, Margins, Totals};
use crate::host::{self, Values, Whole, give, is_host, sum_columns};
use crate::moments::{BatchMoments, Welford};
use crate::pieces::pieces;
use crate::read::read;
use crate::sample::{Sample, Tokens};
#[cfg(feature = "cube")]
use crate::squares::for_kernel;
use crate::squares::{Lookup, Outer, Wanted, Way};

/// Contributions that are held at a time.
const CELLS: usize = 1 << 24;

/// Ranges of samples whose `width` contributions each are held at a time.
fn chunks(samples: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    pieces(samples, (CELLS / width.max(1)).max(1))
}

/// A batch while it is squared and accumulated.
#[derive(Debug, Clone)]
pub(super) struct Writer<C> {
    pub(super) samples: Vec<Sample>,
    /// `√(C_i / g_i²)` of every sample.
    roots: Vec<f64>,
    /// Of contributions.
    dtype: DType,
    device: Device,
    ghost: bool,
    /// The roots on a CubeCL device, `[samples]`.
    on_cube: Option<Tensor<1>>,
    pub(super) totals: BatchTotals,
    /// `Σ C_i` over all elements of parameters, `[samples, 1]`, that are still to be looked at.
    traces: BTreeMap<String, Tensor<2>>,
    unit: PhantomData<C>,
}

/// A parameter of which all is known that can be without changing an accumulator.
#[derive(Debug, Clone)]
pub(super) struct Reduced {
    wanted: Wanted,
    squares: Squares,
    /// `None` where they come with the elements.
    margins: Option<Margins>,
}

#[derive(Debug, Clone)]
enum Squares {
    Full(Full),
    Outer(Box<Outer>, Way),
    Tied(Box<Tied>),
    /// A product of which nothing but the margins is needed.
    Summed(Way),
    Rows(Box<Lookup>),
    Zero,
}

/// Gradients, `[samples, elements]`, where they are read fastest.
#[derive(Debug, Clone)]
enum Full {
    Host(Values<f32>),
    Device(Box<Tensor<2>>),
    /// Contributions already, where they were few.
    Squared(Box<Tensor<2>>),
}

impl<C: ContributionUnit> Writer<C> {
    pub(super) fn new(samples: Vec<Sample>, plan: &Plan, device: &Device, ghost: bool) -> Self {
        let roots: Vec<f64> = samples.iter().map(|s| C::root(s.tokens())).collect();
        Self {
            #[cfg(feature = "cube")]
            on_cube: for_kernel(&roots, device),
            #[cfg(not(feature = "cube"))]
            on_cube: None,
            roots,
            dtype: plan.dtype(device),
            device: device.clone(),
            ghost,
            totals: BatchTotals::new(&plan.totals),
            traces: BTreeMap::new(),
            samples,
            unit: PhantomData,
        }
    }

    /// Whether accumulators are float64 in the host's memory.
    fn on_host(&self) -> bool {
        self.dtype == DType::F64 && is_host(&self.device)
    }

    /// Square what is to be squared of a parameter before its elements are accumulated.
    pub(super) fn reduce(
        &mut self,
        path: &str,
        shape: &[usize],
        wanted: Wanted,
        gradient: SampleGradient,
    ) -> Result<Reduced> {
        let [rows, others] = sides(shape);
        let (squares, margins) = match gradient {
            SampleGradient::Full(gradient) if self.is_vector(&gradient, [rows, others]) => {
                let samples = self.samples.len();
                let left = gradient.into_tensor().reshape([samples, 1, rows]);
                let right = Tensor::ones([samples, 1, 1], (&self.device, DType::F32));
                self.reduce_outer(self.outer(left, right), &wanted)?
            }
            SampleGradient::Full(gradient) => {
                let mut full = self.full(gradient)?;
                let few = self.samples.len() * rows * others <= CELLS;
                let trace = if few && let Full::Device(_) = full {
                    let (contribution, sums) =
                        self.contributions(&full, rows * others, 0..self.samples.len());
                    full = Full::Squared(Box::new(contribution.tensor().clone()));
                    sums
                } else {
                    self.trace(&full, rows * others)
                };
                self.traces.insert(path.into(), trace);
                (Squares::Full(full), None)
            }
            SampleGradient::Outer { left, right } => {
                self.reduce_outer(self.outer(left, right), &wanted)?
            }
            SampleGradient::Tied(tied) => self.reduce_tied(tied, &wanted)?,
            SampleGradient::Rows { ids, delta, .. } => {
                let sides = [rows, others];
                let lookup = Lookup::new(path, ids, delta, sides, &self.roots, self.dtype)?;
                let margins = lookup.margins(&wanted)?;
                (Squares::Rows(Box::new(lookup)), Some(margins))
            }
            SampleGradient::Zero { .. } => {
                let zeros = |side| self.zeros([self.samples.len(), side]);
                let margins = Margins {
                    rows: Some(zeros(rows)),
                    columns: Some(zeros(others)),
                };
                (Squares::Zero, Some(margins))
            }
        };
        if let Some(margins) = &margins {
            self.traces.insert(path.into(), self.trace_of(margins)?);
        }
        Ok(Reduced {
            wanted,
            squares,
            margins,
        })
    }

    /// Whether gradients are of one column and a kernel of the device takes them, as products.
    fn is_vector(&self, gradient: &Gradient<TokenSum>, [rows, others]: [usize; 2]) -> bool {
        let single = gradient.tensor().dtype() == DType::F32;
        self.on_cube.is_some() && single && others == 1 && rows > 0
    }

    fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::zeros(shape, (&self.device, self.dtype))
    }

    fn outer(&self, left: Tensor<3>, right: Tensor<3>) -> Outer {
        let [left, right] = [left, right].map(at_least_single);
        let single = [left.dtype(), right.dtype()] == [DType::F32; 2];
        Outer {
            left,
            right,
            roots: self.roots.clone(),
            dtype: self.dtype,
            on_host: self.on_host() && single,
            on_cube: self.on_cube.clone().filter(|_| single),
        }
    }

    /// A product; its elements are squared when they are accumulated, anything else now.
    fn reduce_outer(&self, outer: Outer, wanted: &Wanted) -> Result<(Squares, Option<Margins>)> {
        let way = outer.way(wanted, self.ghost);
        if wanted.elements {
            return Ok((Squares::Outer(Box::new(outer), way), None));
        }
        let left = wanted.scattered.then(|| outer.clone());
        let squares = |way| match left {
            Some(outer) => Squares::Outer(Box::new(outer), way),
            None => Squares::Summed(way),
        };
        if way == Way::Ghost
            && let Some(sums) = outer.ghost(wanted)?
        {
            return Ok((squares(way), Some(sums)));
        }
        let way = outer.way(wanted, false);
        let margins = if way == Way::Squares {
            outer.squares(wanted).0
        } else {
            outer.fold(None, wanted)?
        };
        Ok((squares(way), Some(margins)))
    }

    /// The same for a product and a lookup, a band of rows at a time.
    fn reduce_tied(&self, tied: Box<Tied>, wanted: &Wanted) -> Result<(Squares, Option<Margins>)> {
        let mut margins = None;
        if !wanted.elements {
            let wanted = Wanted {
                scattered: false,
                ..*wanted
            };
            for band in tied.bands() {
                let (_, of_band) = self.reduce_outer(self.outer(band.left, band.right), &wanted)?;
                margins = Margins::stacked(margins, of_band);
            }
        }
        Ok((Squares::Tied(tied), margins))
    }

    /// Take a parameter into its accumulators.
    pub(super) fn write(
        &mut self,
        path: &str,
        shape: &[usize],
        reduced: Reduced,
        totals: &Totals,
        reduction: GroupReduction,
        into: &mut ParameterStatistics,
    ) -> Result<Way> {
        let Reduced {
            wanted,
            squares,
            margins,
        } = reduced;
        let samples = self.samples.len();
        let elements = into.elementwise.as_mut();
        let (way, margins) = match squares {
            Squares::Full(Full::Host(gradients)) if !wanted.scattered => {
                let margins = self.write_whole(shape, &gradients, &wanted, elements)?;
                (Way::Whole, Some(margins))
            }
            Squares::Full(full) => {
                self.write_full(path, &full, totals, reduction, into);
                return Ok(Way::Whole);
            }
            Squares::Zero => {
                if let Some(welford) = elements {
                    welford.push_moments(
                        samples,
                        &BatchMoments::zeros(welford, &self.device, self.dtype),
                    );
                }
                scatter(into, samples, reduction, |grouping, range| {
                    Ok(self.zeros([range.len(), grouping.groups()]))
                })?;
                (Way::Whole, margins)
            }
            Squares::Rows(lookup) => {
                if let Some(welford) = elements {
                    lookup.push(welford, self.on_host())?;
                }
                scatter(into, samples, reduction, |grouping, range| {
                    lookup.scattered(grouping, range)
                })?;
                (Way::Lookup, margins)
            }
            Squares::Tied(tied) => {
                scatter(into, samples, reduction, |grouping, range| {
                    let sums = tied.bands().map(|band| {
                        let outer = self.outer(band.left, band.right);
                        outer.scattered(grouping, range.clone(), band.rows.start)
                    });
                    let zeros = self.zeros([range.len(), grouping.groups()]);
                    sums.into_iter()
                        .try_fold(zeros, |sum, of_band| Ok(sum + of_band?))
                })?;
                let margins = match into.elementwise.as_mut() {
                    Some(welford) => {
                        let margins = self.write_bands(&tied, &wanted, welford)?;
                        if let Some(margins) = &margins {
                            self.traces.insert(path.into(), self.trace_of(margins)?);
                        }
                        margins
                    }
                    None => margins,
                };
                (Way::Bands, margins)
            }
            Squares::Outer(outer, way) => {
                scatter(into, samples, reduction, |grouping, range| {
                    outer.scattered(grouping, range, 0)
                })?;
                match into.elementwise.as_mut() {
                    Some(welford) => {
                        let margins = self.write_elements(*outer, way, &wanted, welford)?;
                        self.traces.insert(path.into(), self.trace_of(&margins)?);
                        (way, Some(margins))
                    }
                    None => (way, margins),
                }
            }
            Squares::Summed(way) => (way, margins),
        };
        if let Some(margins) = margins {
            self.write_margins(path, &margins, totals, reduction, into)?;
        }
        Ok(way)
    }

    /// The elements of a product, and the sums over its sides that come with them.
    fn write_elements(
        &mut self,
        outer: Outer,
        way: Way,
        wanted: &Wanted,
        welford: &mut Welford,
    ) -> Result<Margins> {
        let samples = self.samples.len();
        if way != Way::Squares {
            let margins = outer.fold(Some(welford), wanted)?;
            welford.advance(samples);
            return Ok(margins);
        }
        let (margins, mean) = outer.squares(wanted);
        if let Some(mean) = mean {
            welford.push_moments(samples, &BatchMoments::without_variance(mean));
        }
        Ok(margins)
    }

    /// The elements of a product and a lookup, each band of rows as an accumulator of its own.
    fn write_bands(
        &self,
        tied: &Tied,
        wanted: &Wanted,
        welford: &mut Welford,
    ) -> Result<Option<Margins>> {
        let [_, _, width] = tied.right.dims();
        welford.split(BAND * width.max(1));
        let mut margins = None;
        for (run, band) in tied.bands().enumerate() {
            let outer = self.outer(band.left, band.right);
            let of_band = welford.on_run(run, |welford| outer.fold(Some(welford), wanted))?;
            margins = Margins::stacked(margins, Some(of_band));
        }
        welford.advance(self.samples.len());
        Ok(margins)
    }

    /// Gradients that are written out, in the host's memory.
    fn write_whole(
        &self,
        shape: &[usize],
        gradients: &[f32],
        wanted: &Wanted,
        elements: Option<&mut Welford>,
    ) -> Result<Margins> {
        let [rows, columns] = sides(shape);
        let (samples, sides) = (self.samples.len(), wanted.sides());
        let whole = Whole {
            rows,
            columns,
            gradients,
            roots: &self.roots,
        };
        let sums = match elements {
            Some(welford) => {
                let sums = welford.on_host(|moments| whole.fold(Some(moments), sides))?;
                welford.advance(samples);
                sums
            }
            None => whole.fold(None, sides),
        };
        Ok(Margins::on_host(sums, samples, &self.device))
    }

    /// The same elsewhere: squared again, a few samples at a time.
    fn write_full(
        &mut self,
        path: &str,
        full: &Full,
        totals: &Totals,
        reduction: GroupReduction,
        into: &mut ParameterStatistics,
    ) {
        let elements = full.elements(self.samples.len());
        let (mut sums, mut heads) = (Vec::new(), Vec::new());
        for range in chunks(self.samples.len(), elements) {
            let (contribution, sum) = self.contributions(full, elements, range);
            let of_heads = totals.groupings(path).map(|grouping| {
                let sums = grouping.reduce(&contribution, GroupReduction::Sum);
                sums.tensor().clone()
            });
            heads.push(of_heads.collect::<Vec<_>>());
            for (grouping, welford) in &mut into.groups {
                let reduced = grouping.reduce(&contribution, reduction);
                welford.push_batch(reduced.tensor().clone());
            }
            if let Some(welford) = &mut into.elementwise {
                welford.push_batch(contribution.tensor().clone());
            }
            sums.push(sum);
        }
        let of_grouping = |at: usize| {
            let parts = heads.iter().map(|heads| heads[at].clone());
            Tensor::cat(parts.collect(), 0)
        };
        let heads = (0..heads[0].len()).map(of_grouping).collect();
        self.totals
            .add_sums(totals, path, Tensor::cat(sums, 0), heads);
    }

    /// Contributions, summed over one side; all groups but the scattered ones.
    fn write_margins(
        &mut self,
        path: &str,
        margins: &Margins,
        totals: &Totals,
        reduction: GroupReduction,
        into: &mut ParameterStatistics,
    ) -> Result<()> {
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let sums = self.trace_of(margins)?;
        let added = self.totals.add_margins(totals, path, margins, sums);
        added.ok_or_else(missing)?;
        for (grouping, welford) in &mut into.groups {
            if !grouping.is_scattered() {
                let reduced = grouping.reduce_margins(margins, reduction);
                welford.push_batch(reduced.ok_or_else(missing)?);
            }
        }
        Ok(())
    }

    fn full(&self, gradient: Gradient<TokenSum>) -> Result<Full> {
        let tensor = gradient.into_tensor();
        if self.on_host() && tensor.dtype() == DType::F32 {
            Ok(Full::Host(Values::of(tensor)?))
        } else {
            Ok(Full::Device(Box::new(tensor)))
        }
    }

    /// Contributions of samples `range` and their sums over elements, `[samples, 1]`.
    fn contributions(
        &self,
        full: &Full,
        elements: usize,
        range: Range<usize>,
    ) -> (Contribution<C>, Tensor<2>) {
        match full {
            Full::Host(values) => {
                let roots = &self.roots[range.clone()];
                let part = &values[range.start * elements..range.end * elements];
                let (squares, sums) = host::contributions(part, roots);
                let contribution = give(squares, [range.len(), elements], &self.device);
                (
                    Contribution::of(contribution),
                    give(sums, [range.len(), 1], &self.device),
                )
            }
            Full::Device(tensor) => {
                let part = Tensor::clone(tensor).narrow(0, range.start, range.len());
                let tokens = Tokens::of(&self.samples[range], &self.device);
                let gradient = Gradient::token_sum(part);
                let contribution = gradient.contribution_in::<C>(&tokens, self.dtype);
                let sums = contribution.tensor().clone().sum_dim(1);
                (contribution, sums)
            }
            Full::Squared(tensor) => {
                let part = Tensor::clone(tensor).narrow(0, range.start, range.len());
                (Contribution::of(part.clone()), part.sum_dim(1))
            }
        }
    }

    /// `Σ C_i` over the elements of every sample, `[samples, 1]`.
    fn trace(&self, full: &Full, elements: usize) -> Tensor<2> {
        let ranges = chunks(self.samples.len(), elements);
        let sums = ranges.map(|range| match full {
            Full::Host(values) => {
                let part = &values[range.start * elements..range.end * elements];
                let sums = host::traces(part, &self.roots[range.clone()]);
                give(sums, [range.len(), 1], &self.device)
            }
            Full::Device(_) | Full::Squared(_) => self.contributions(full, elements, range).1,
        });
        Tensor::cat(sums.collect(), 0)
    }

    /// `Σ C_i` over all elements of a parameter, from sums over one of its sides.
    fn trace_of(&self, margins: &Margins) -> Result<Tensor<2>> {
        match (&margins.rows, &margins.columns) {
            (Some(side), _) | (None, Some(side)) => Ok(sum_columns(side.clone())?.cast(self.dtype)),
            (None, None) => unreachable!("margins have a side"),
        }
    }

    /// Whether the traces that came since the last time are finite, read in one transfer.
    pub(super) fn check_finite(&mut self) -> Result<()> {
        let traces = std::mem::take(&mut self.traces);
        if traces.is_empty() {
            return Ok(());
        }
        let (paths, sums): (Vec<String>, Vec<Tensor<2>>) = traces.into_iter().unzip();
        let sums = read(Tensor::cat(sums, 1))?;
        let infinite = sums.iter().position(|sum| !sum.is_finite());
        infinite.map_or(Ok(()), |at| {
            Err(Error::NonFinite {
                sample: self.samples[at / paths.len()].id().into(),
                parameter: paths[at % paths.len()].clone(),
            })
        })
    }
}

impl Full {
    fn elements(&self, samples: usize) -> usize {
        match self {
            Self::Host(values) => values.len() / samples,
            Self::Device(tensor) | Self::Squared(tensor) => tensor.dims()[1],
        }
    }
}

/// Groups that are no slices of an axis: `sums` over the groups of some samples, `[samples, groups]`.
fn scatter(
    into: &mut ParameterStatistics,
    samples: usize,
    reduction: GroupReduction,
    sums: impl Fn(&Grouping, Range<usize>) -> Result<Tensor<2>>,
) -> Result<()> {
    for (grouping, welford) in &mut into.groups {
        if grouping.is_scattered() {
            for range in chunks(samples, grouping.groups()) {
                welford.push_batch(grouping.reduced(sums(grouping, range)?, reduction));
            }
        }
    }
    Ok(())
}
