//! Launches of the kernel.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;

use super::door::{close, open};
use super::kernel::{self, Shape};
use crate::host::Sides;

/// Units of a cube along a side, at most.
const UNITS: usize = 16;

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
/// `None`, with nothing done, where the tensors are not float32 on a CubeCL device, or it cannot hold
/// so many cubes.
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
    let client = right.client.clone();
    let device = right.device.clone();
    let hardware = client.properties().hardware.clone();
    let cells = cells([rows, columns], &hardware);
    let wanted = [rows.div_ceil(cells[0]), columns.div_ceil(cells[1])];
    let units = units(wanted, cells, sides, &hardware);
    let cubes = [
        rows.div_ceil(units[0] * cells[0]),
        columns.div_ceil(units[1] * cells[1]),
    ];
    let most = hardware.max_cube_count;
    if cubes[0] as u64 > most.1.into() || cubes[1] as u64 > most.0.into() {
        return None;
    }

    let empty = |length: usize, dtype| {
        let (client, device) = (client.clone(), device.clone());
        empty_device_contiguous_dtype(client, device, [length.max(1)].into(), dtype)
    };
    let of_rows = if sides.rows {
        samples * cubes[1] * rows
    } else {
        0
    };
    let of_columns = if sides.columns {
        samples * cubes[0] * columns
    } else {
        0
    };
    let sums = empty(of_rows + of_columns, DType::F32);
    let (elements, variance, pairs, dtype) = match &accumulators {
        Some(Accumulators { mean, m2, .. }) => {
            let dtype = mean[0].as_ref().map(|mean| mean.dtype());
            (true, m2[0].is_some(), mean[1].is_some(), dtype?)
        }
        None => (false, false, false, DType::F32),
    };
    if !elements_of(dtype, pairs) {
        return None;
    }
    let (before, added) = accumulators
        .as_ref()
        .map_or((0.0, 1.0), |a| (a.before as f64, a.added as f64));
    let weight = added / (before + added);
    // Mean and M2, and where they are to be put back.
    let mut moments: [Option<CubeTensor>; 4] = [None, None, None, None];
    let mut places: [Option<&mut Tensor<1>>; 4] = [None, None, None, None];
    if let Some(Accumulators { mean, m2, .. }) = accumulators {
        places = {
            let ([a, b], [c, d]) = (mean, m2);
            [a, b, c, d]
        };
        for (place, moment) in places.iter_mut().zip(&mut moments) {
            if let Some(place) = place {
                // Nobody else holds it then, and it can be written where it is.
                let one = Tensor::empty([1], &place.device());
                let own = open(std::mem::replace(*place, one))?;
                *moment = Some(if own.can_mut() { own } else { own.copy() });
            }
        }
    }
    let pair = |value: f64| (value as f32, (value - f64::from(value as f32)) as f32);
    let ((share, share_low), (weight, weight_low)) = (pair(before * weight), pair(weight));
    let shape = Shape {
        units,
        cells,
        gradients: left.is_some(),
        elements,
        pairs,
        variance,
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
        shape,
        dtype_to_storage_type(dtype),
    );

    for (place, moment) in places.into_iter().zip(moments) {
        if let (Some(place), Some(moment)) = (place, moment) {
            *place = close(moment)?;
        }
    }
    let sums: Tensor<1> = close(sums)?;
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

/// Whether there are accumulators of this kind.
fn elements_of(dtype: DType, pairs: bool) -> bool {
    matches!((dtype, pairs), (DType::F64, false) | (DType::F32, _))
}

/// Rows and columns of a unit. Processors pay for what is read, which large units read less often;
/// GPUs have registers for small ones.
fn cells(sides: [usize; 2], hardware: &HardwareProperties) -> [usize; 2] {
    let most = if hardware.plane_size_max <= 8 { 8 } else { 4 };
    sides.map(|side| if side == 1 { 1 } else { most })
}

/// Units of a cube along rows and columns: powers of two, no more than there is work and shared memory
/// for.
fn units(
    wanted: [usize; 2],
    cells: [usize; 2],
    sides: Sides,
    hardware: &HardwareProperties,
) -> [usize; 2] {
    let most = (hardware.max_units_per_cube as usize).min(UNITS * UNITS);
    let mut units = wanted.map(|wanted| wanted.next_power_of_two().min(UNITS));
    for (along, across) in [(0, 1), (1, 0)] {
        if wanted[across] == 1 {
            units[along] = wanted[along].next_power_of_two().min(most);
        }
    }
    let shared = |units: [usize; 2]| {
        let of_side = |wanted, cells: usize| {
            if wanted {
                8 * units[0] * units[1] * cells
            } else {
                4
            }
        };
        of_side(sides.rows, cells[0]) + of_side(sides.columns, cells[1])
    };
    while units[0] * units[1] > most || shared(units) > hardware.max_shared_memory_size {
        let longer = usize::from(units[1] >= units[0]);
        units[longer] /= 2;
    }
    units
}
