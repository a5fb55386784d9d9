//! Launches of the kernel.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::door::{close, open};
use super::geometry::Geometry;
use super::kernel::{self, Shape};
use crate::host::Sides;

/// Sums of cubes over sides that are held at a time.
const MOST: usize = 1 << 26;
/// Of the kernel.
const BUFFERS: u32 = 8;
/// Of accumulators and sums where terms are so.
const SAME: &str = "a tensor of the same CubeCL device";

/// What is squared, summed and accumulated.
pub(crate) enum Terms<'a> {
    /// Gradients `root_i L_iᵀ R_i`.
    Products {
        /// `[samples, positions, rows]`
        left: &'a Tensor<3>,
        /// `[samples, positions, columns]`
        right: &'a Tensor<3>,
        /// `√(C_i / g_i²)`, `[samples]`
        roots: &'a Tensor<1>,
    },
    /// Contributions, `[samples, columns]`: of one row.
    Contributions(&'a Tensor<2>),
}

/// Mean and M2 that terms go into, each in float64, or as a pair in float32.
pub(crate) struct Accumulators<'a> {
    /// Samples they have seen.
    pub(crate) before: u64,
    /// Samples that the terms stand for.
    pub(crate) added: u64,
    pub(crate) mean: [Option<&'a mut Tensor<1>>; 2],
    pub(crate) m2: [Option<&'a mut Tensor<1>>; 2],
}

/// Sums over the sides, where wanted.
pub(crate) struct Folded {
    /// `[samples, rows]`
    pub(crate) rows: Option<Tensor<2>>,
    /// `[samples, columns]`
    pub(crate) columns: Option<Tensor<2>>,
}

/// One launch over all samples; sums over a side that is longer than a cube take another.
///
/// `None`, with nothing done, where the tensors are not float32 on a CubeCL device, it cannot hold so many
/// cubes or buffers, or there are more numbers than it counts.
pub(crate) fn fold(
    terms: &Terms,
    accumulators: Option<Accumulators>,
    sides: Sides,
) -> Option<Folded> {
    let opened = |tensor: CubeTensor| (tensor.dtype == DType::F32).then(|| into_contiguous(tensor));
    let (left, right, roots) = match terms {
        Terms::Products { left, right, roots } => (
            Some(opened(open(Tensor::clone(left))?)?),
            opened(open(Tensor::clone(right))?)?,
            Some(opened(open(Tensor::clone(roots))?)?),
        ),
        Terms::Contributions(values) => (None, opened(open(Tensor::clone(values))?)?, None),
    };
    let [samples, positions, rows, columns] = match terms {
        Terms::Products { left, right, .. } => {
            let [samples, positions, rows] = left.dims();
            [samples, positions, rows, right.dims()[2]]
        }
        Terms::Contributions(values) => [values.dims()[0], 1, 1, values.dims()[1]],
    };
    if samples * positions * rows * columns == 0 {
        return None;
    }
    let (client, device) = (right.client.clone(), right.device.clone());
    let hardware = &client.properties().hardware;
    let Geometry {
        cells,
        units,
        cubes,
    } = Geometry::new([rows, columns], sides, hardware)?;
    let empty = |length: usize, dtype| {
        let (client, device) = (client.clone(), device.clone());
        empty_device_contiguous_dtype(client, device, [length.max(1)].into(), dtype)
    };
    let length = |wanted, length| if wanted { samples * length } else { 0 };
    let of_rows = length(sides.rows, cubes[1] * rows);
    let of_columns = length(sides.columns, cubes[0] * columns);
    let factors = samples * positions * rows.max(columns);
    let longest = factors.max(rows * columns).max(of_rows + of_columns);
    if of_rows + of_columns > MOST || longest > u32::MAX as usize || hardware.max_bindings < BUFFERS
    {
        return None;
    }
    let sums = empty(of_rows + of_columns, DType::F32);
    // Mean and M2, each with what it lacks of its type, and where they are to be put back.
    let (mut before, mut added) = (0.0, 1.0);
    let mut places: [Option<&mut Tensor<1>>; 4] = [None, None, None, None];
    let elements = accumulators.is_some();
    if let Some(accumulators) = accumulators {
        (before, added) = (accumulators.before as f64, accumulators.added as f64);
        let ([mean, mean_low], [m2, m2_low]) = (accumulators.mean, accumulators.m2);
        places = [mean, mean_low, m2, m2_low];
    }
    let dtype = places[0].as_ref().map_or(DType::F32, |mean| mean.dtype());
    let moments = places.each_mut().map(|place| {
        let place = place.as_mut()?;
        // Nobody else holds it then, and it can be written where it is.
        let one = Tensor::empty([1], &place.device());
        let own = open(std::mem::replace(*place, one)).expect(SAME);
        Some(if own.can_mut() { own } else { own.copy() })
    });
    let pair = |value: f64| (value as f32, (value - f64::from(value as f32)) as f32);
    let weight = added / (before + added);
    let ((share, share_low), (weight, weight_low)) = (pair(before * weight), pair(weight));
    let shape = Shape {
        units,
        cells,
        gradients: left.is_some(),
        elements,
        pairs: moments[1].is_some(),
        variance: moments[2].is_some(),
        rows: sides.rows,
        columns: sides.columns,
    };
    let buffer = |tensor: &Option<CubeTensor>, dtype| match tensor {
        Some(tensor) => tensor.clone().into_buffer_arg(),
        None => empty(1, dtype).into_buffer_arg(),
    };
    let accumulator = |tensor| buffer(tensor, dtype);
    let vector = |length: usize| if length.is_multiple_of(4) { 4 } else { 1 };
    kernel::fold::launch(
        &client,
        CubeCount::Static(cubes[1] as u32, cubes[0] as u32, 1),
        CubeDim::new_2d(units[1] as u32, units[0] as u32),
        if left.is_some() { vector(rows) } else { 1 },
        vector(columns),
        buffer(&left, DType::F32),
        right.into_buffer_arg(),
        buffer(&roots, DType::F32),
        accumulator(&moments[0]),
        accumulator(&moments[1]),
        accumulator(&moments[2]),
        accumulator(&moments[3]),
        sums.clone().into_buffer_arg(),
        samples,
        positions,
        rows,
        columns,
        share,
        share_low,
        weight,
        weight_low,
        1.0,
        shape,
        dtype_to_storage_type(dtype),
    );

    for (place, moment) in places.into_iter().zip(moments) {
        if let (Some(place), Some(moment)) = (place, moment) {
            *place = close(moment).expect(SAME);
        }
    }
    let sums: Tensor<1> = close(sums).expect(SAME);
    let side = |start: usize, cubes: usize, side: usize| {
        let mut part = sums.clone();
        if of_rows > 0 && of_columns > 0 {
            part = part.narrow(0, start, samples * cubes * side);
        }
        let part = part.reshape([samples, cubes, side]);
        match cubes {
            1 => part.reshape([samples, side]),
            _ => part.sum_dim(1).reshape([samples, side]),
        }
    };
    Some(Folded {
        rows: sides.rows.then(|| side(0, cubes[1], rows)),
        columns: sides.columns.then(|| side(of_rows, cubes[0], columns)),
    })
}
