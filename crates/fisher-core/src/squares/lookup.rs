//! Squares of the gradients of a table whose rows were looked up.

use std::collections::HashMap;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::wanted::Wanted;
use crate::error::{Error, Result};
use crate::gradient::{add_at, at_least_single, indices};
use crate::grouping::{Grouping, Margins};
use crate::host::{Rows, take};
use crate::moments::{BatchMoments, Welford};
use crate::read::read;

/// Row `ids_it` of a table got `δ_it`.
///
/// A row that a sample looked up several times has one gradient, the sum over its positions, before
/// any square. So the work is on *slots*, the different rows of each sample, sample after sample: no
/// more of them than positions, however long the table is.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    /// `[slots, width]`
    contributions: Tensor<2>,
    /// The row of every slot.
    rows: Vec<usize>,
    /// The slots of every sample.
    slots: Vec<Range<usize>>,
    /// Of the table: rows and width.
    sides: [usize; 2],
}

/// Moments of the rows that occur, as [`BatchMoments`] are of all.
struct Found {
    mean: Tensor<2>,
    rest: Option<Tensor<2>>,
    m2: Option<Tensor<2>>,
}

impl Lookup {
    /// `roots` are `√(C_i / g_i²)`; contributions are of `dtype`.
    ///
    /// # Shapes
    /// - ids: `[samples, positions]`
    /// - delta: `[samples, positions, width]`
    ///
    /// # Errors
    /// [`Error::Shape`] when an id is no row of the table, [`Error::Device`] when the device does not
    /// give the ids.
    pub(crate) fn new(
        path: &str,
        ids: Tensor<2, Int>,
        delta: Tensor<3>,
        sides: [usize; 2],
        roots: &[f64],
        dtype: DType,
    ) -> Result<Self> {
        let [samples, positions] = ids.dims();
        let data = ids.try_into_data().map_err(Error::device)?;
        let (mut rows, mut slots) = (Vec::new(), Vec::with_capacity(samples));
        let mut slot_of: Vec<usize> = Vec::with_capacity(samples * positions);
        let mut seen: HashMap<i64, usize> = HashMap::new();
        for (at, id) in data.iter::<i64>().enumerate() {
            if at.is_multiple_of(positions) {
                seen.clear();
                slots.push(rows.len()..rows.len());
            }
            let row = usize::try_from(id).ok().filter(|row| *row < sides[0]);
            let row = row.ok_or_else(|| Error::Shape {
                parameter: path.into(),
                expected: format!("ids of its {} rows", sides[0]),
                found: format!("id {id}"),
            })?;
            slot_of.push(*seen.entry(id).or_insert_with(|| {
                rows.push(row);
                rows.len() - 1
            }));
            if let Some(slots) = slots.last_mut() {
                slots.end = rows.len();
            }
        }

        let device = delta.device();
        let width = sides[1];
        // Sums in half precision would lose what is small beside what came before.
        let delta = at_least_single(delta).reshape([samples * positions, width]);
        let gradients = add_rows(rows.len(), &slot_of, delta);
        let of_slots = slots.iter().zip(roots);
        let of_slots = of_slots.flat_map(|(slots, &root)| vec![root; slots.len()]);
        let roots: Vec<f64> = of_slots.collect();
        let roots = TensorData::new(roots, [rows.len(), 1]);
        let roots = Tensor::<2>::from_data(roots, (&device, dtype));
        Ok(Self {
            contributions: (gradients.cast(dtype) * roots).square(),
            rows,
            slots,
            sides,
        })
    }

    /// Sums over the sides that are needed, at least one.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give values.
    pub(crate) fn margins(&self, wanted: &Wanted) -> Result<Margins> {
        Ok(Margins {
            rows: wanted.rows.then(|| self.of_rows()).transpose()?,
            columns: (wanted.columns || !wanted.rows).then(|| {
                let samples: Vec<usize> = self.samples().collect();
                add_rows(self.slots.len(), &samples, self.contributions.clone())
            }),
        })
    }

    /// `[samples, rows]`, most of them 0.
    fn of_rows(&self) -> Result<Tensor<2>> {
        let (samples, rows) = (self.slots.len(), self.sides[0]);
        let mut sums = vec![0.0; samples * rows];
        let values = read(self.contributions.clone().sum_dim(1))?;
        for ((sample, row), value) in self.samples().zip(&self.rows).zip(values) {
            sums[sample * rows + row] = value;
        }
        Ok(self.tensor(sums, [samples, rows]))
    }

    /// Take mean and M2 of every element over the samples, most of which did not look up its row, into
    /// `welford`, which is in the host's memory where `on_host` says so.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give values.
    pub(crate) fn push(&self, welford: &mut Welford, on_host: bool) -> Result<()> {
        let samples = self.slots.len();
        let (present, found) = self.found(welford.keeps_variance());
        let [rows, width] = self.sides;
        if !on_host {
            let whole =
                |values: Tensor<2>| add_rows(rows, &present, values).reshape([rows * width]);
            welford.push_moments(
                samples,
                &BatchMoments {
                    mean: whole(found.mean),
                    rest: found.rest.map(whole),
                    m2: found.m2.map(whole),
                },
            );
            return Ok(());
        }
        let mean = match found.rest {
            Some(rest) => found.mean + rest,
            None => found.mean,
        };
        let rows = Rows {
            samples,
            width,
            present: &present,
            mean: take(mean)?,
            m2: found.m2.map(take).transpose()?,
        };
        welford.on_host(|moments| rows.push(moments))?;
        welford.advance(samples);
        Ok(())
    }

    /// The rows that occur, in the order in which they do, and mean and M2 of their elements, `[rows that
    /// occur, width]`.
    fn found(&self, variance: bool) -> (Vec<usize>, Found) {
        let samples = self.slots.len() as f64;
        let mut places: HashMap<usize, usize> = HashMap::new();
        let mut present: Vec<usize> = Vec::new();
        let mut times: Vec<f64> = Vec::new();
        let place_of = self.rows.iter().map(|&row| {
            let place = *places.entry(row).or_insert_with(|| {
                present.push(row);
                times.push(0.0);
                present.len() - 1
            });
            times[place] += 1.0;
            place
        });
        let place_of: Vec<usize> = place_of.collect();
        let device = self.contributions.device();
        let add = |values| add_rows(present.len(), &place_of, values);
        let mean = add(self.contributions.clone()).div_scalar(samples);
        if !variance {
            let (rest, m2) = (None, None);
            return (present, Found { mean, rest, m2 });
        }
        let absent: Vec<f64> = times.iter().map(|times| samples - times).collect();
        let absent = self.tensor(absent, [present.len(), 1]);
        let spread = |values: &Tensor<2>| values.clone().select(0, indices(&place_of, &device));
        // Where a row was not looked up, the contribution is 0 and deviates by the mean.
        let deviations = self.contributions.clone() - spread(&mean);
        let rest = add(deviations.clone()) - mean.clone() * absent.clone();
        let rest = rest.div_scalar(samples);
        let deviations = deviations - spread(&rest);
        let m2 = add(deviations.square()) + (mean.clone() + rest.clone()).square() * absent;
        let (rest, m2) = (Some(rest), Some(m2));
        (present, Found { mean, rest, m2 })
    }

    /// Sums over the groups of samples `range`, `[samples, groups]`, for groups that are no slices of
    /// an axis.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give values.
    pub(crate) fn scattered(&self, grouping: &Grouping, range: Range<usize>) -> Result<Tensor<2>> {
        let (groups, width) = (grouping.groups(), self.sides[1]);
        let mut sums = vec![0.0; range.len() * groups];
        let slots = self.slots[range.start].start..self.slots[range.end - 1].end;
        let part = self.contributions.clone();
        let part = part.narrow(0, slots.start, slots.len());
        let mut values = read(part)?.into_iter();
        for (sums, slots) in sums.chunks_mut(groups).zip(&self.slots[range.clone()]) {
            for &row in &self.rows[slots.clone()] {
                let ids = grouping.group_of(row * width..(row + 1) * width);
                for (group, value) in ids.into_iter().zip(&mut values) {
                    if let Some(group) = group {
                        sums[group] += value;
                    }
                }
            }
        }
        Ok(self.tensor(sums, [range.len(), groups]))
    }

    /// Values as contributions are.
    fn tensor(&self, values: Vec<f64>, shape: [usize; 2]) -> Tensor<2> {
        let options = (&self.contributions.device(), self.contributions.dtype());
        Tensor::from_data(TensorData::new(values, shape), options)
    }

    /// The sample of every slot.
    fn samples(&self) -> impl Iterator<Item = usize> {
        let slots = self.slots.iter().enumerate();
        slots.flat_map(|(sample, slots)| vec![sample; slots.len()])
    }
}

/// A table of `rows` rows of zeros, with each of `values` added to the row that `at` says.
fn add_rows(rows: usize, at: &[usize], values: Tensor<2>) -> Tensor<2> {
    let (device, dtype, width) = (values.device(), values.dtype(), values.dims()[1]);
    let zeros = Tensor::<2>::zeros([rows, width], (&device, dtype));
    add_at(zeros, 0, indices(at, &device), values)
}
