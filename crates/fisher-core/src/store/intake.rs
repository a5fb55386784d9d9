//! A batch on its way into a store, a slice at a time.

use std::ops::Range;

use burn::tensor::{DType, Tensor, Transaction};
use crc32fast::Hasher;

use super::precision::{Matrix, Precision, exponent};
use crate::error::{Error, Result};
use crate::pieces::pieces;
use crate::sample::Sample;

/// Elements that are read from the device at once, and held besides what the store keeps: 4 MB.
pub(super) const SLICE: usize = 1 << 20;

/// A batch that was begun and not committed.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) task: String,
    pub(super) samples: Vec<Sample>,
    /// Whether it is held in memory.
    pub(super) held: bool,
    /// The shard it goes to and where in it, if it goes to the disk.
    pub(super) place: Option<(usize, u64)>,
    /// Of every parameter, once it has come.
    pub(super) parts: Vec<Option<Part>>,
}

/// The gradients of one parameter as they are kept, or what is known of those on disk.
#[derive(Debug)]
pub(super) struct Part {
    precision: Precision,
    /// Of every row, the powers of two that half precision is scaled by.
    exponents: Vec<i16>,
    /// What is held in memory.
    matrix: Option<Matrix>,
    crc: Hasher,
}

impl Part {
    /// Take gradients from `source`. `write` is given the bytes in their order.
    pub(super) fn of(
        source: &Source,
        precision: Precision,
        held: bool,
        naming: impl Fn(usize) -> Error,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let [rows, elements] = source.dims();
        let check = |rows: &Range<usize>, columns: &Range<usize>, values: &[f32]| {
            let infinite = values.iter().position(|x| !x.is_finite());
            infinite.map_or(Ok(()), |at| Err(naming(rows.start + at / columns.len())))
        };
        let mut largest = vec![0f32; rows];
        if precision != Precision::Float32 {
            source.slices(|rows, columns, values| {
                check(&rows, &columns, values)?;
                for (row, values) in rows.zip(values.chunks(columns.len())) {
                    largest[row] = values.iter().fold(largest[row], |m, x| m.max(x.abs()));
                }
                Ok(())
            })?;
        }
        let exponents: Vec<i16> = match precision {
            Precision::Float32 => Vec::new(),
            _ => largest.into_iter().map(exponent).collect(),
        };
        let mut part = Self {
            precision,
            matrix: held.then(|| Matrix::empty(precision, rows * elements, &exponents)),
            exponents,
            crc: Hasher::new(),
        };
        source.slices(|rows, columns, values| {
            check(&rows, &columns, values)?;
            let exponents = part.exponents.get(rows).unwrap_or_default();
            let slice = Matrix::encode(values, columns.len(), precision, exponents);
            let bytes = slice.bytes();
            part.crc.update(&bytes);
            write(&bytes)?;
            if let Some(matrix) = &mut part.matrix {
                matrix.append(slice);
            }
            Ok(())
        })?;
        Ok(part)
    }
}

impl Prepared {
    /// CRC-32 of all parts and then of their exponents, little-endian; and what is kept of them.
    pub(super) fn finish(parts: Vec<Part>) -> (u32, Vec<Vec<i16>>, Vec<Matrix>) {
        let mut crc = Hasher::new();
        parts.iter().for_each(|part| crc.combine(&part.crc));
        for exponent in parts.iter().flat_map(|part| &part.exponents) {
            crc.update(&exponent.to_le_bytes());
        }
        let (mut exponents, mut matrices) = (Vec::new(), Vec::new());
        for part in parts {
            if part.precision != Precision::Float32 {
                exponents.push(part.exponents);
            }
            matrices.extend(part.matrix);
        }
        (crc.finalize(), exponents, matrices)
    }
}

/// Gradients of one parameter, `[samples, elements]`, where they are.
pub(super) enum Source {
    Host { values: Vec<f32>, dims: [usize; 2] },
    Device(Box<Tensor<2>>),
}

impl Source {
    /// The gradients of several parameters, read in one transfer where they are few.
    pub(super) fn of(tensors: Vec<Tensor<2>>) -> Result<Vec<Self>> {
        let elements = |t: &Tensor<2>| t.dims().iter().product::<usize>();
        if tensors.iter().map(elements).sum::<usize>() > SLICE {
            return Ok(tensors
                .into_iter()
                .map(|t| Self::Device(Box::new(t)))
                .collect());
        }
        let dims: Vec<[usize; 2]> = tensors.iter().map(Tensor::dims).collect();
        let values = read(tensors)?;
        let host = |(values, dims)| Self::Host { values, dims };
        Ok(values.into_iter().zip(dims).map(host).collect())
    }

    pub(super) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Host { dims, .. } => *dims,
            Self::Device(tensor) => tensor.dims(),
        }
    }

    /// Give rows, elements and their values, in the order of a row-major matrix: whole rows or parts of
    /// one, [`SLICE`] elements at most.
    pub(super) fn slices(
        &self,
        mut take: impl FnMut(Range<usize>, Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let [rows, elements] = self.dims();
        if rows == 0 || elements == 0 {
            return Ok(());
        }
        let tensor = match self {
            Self::Host { values, .. } => return take(0..rows, 0..elements, values),
            Self::Device(tensor) => tensor,
        };
        let (height, width) = ((SLICE / elements).max(1), elements.min(SLICE));
        for rows in pieces(rows, height) {
            for columns in pieces(elements, width) {
                let slice = tensor.clone().slice([rows.clone(), columns.clone()]);
                for values in read(vec![slice])? {
                    take(rows.clone(), columns.clone(), &values)?;
                }
            }
        }
        Ok(())
    }
}

/// The values in float32, in one transfer.
fn read(tensors: Vec<Tensor<2>>) -> Result<Vec<Vec<f32>>> {
    let tensors = tensors.into_iter().map(|t| t.cast(DType::F32));
    let all = tensors.fold(Transaction::default(), |all, t| all.register(t));
    let all = all.try_execute().map_err(Error::device)?;
    let values = all.into_iter().map(|data| data.try_into_vec());
    let values: Result<_, _> = values.collect();
    values.map_err(Error::device)
}
