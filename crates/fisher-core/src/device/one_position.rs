//! Sums of squares over the sides of products that have one position a sample.

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::door::{close, open};

/// Units of a cube, which has one sample.
const UNITS: u32 = 64;

/// `(root_i v_i |o_i|)²` of every sample: sums over the others' side of what products of `values` and
/// `others` contribute. `[samples, side]`; `None` as [`fold`](super::fold()).
///
/// # Shapes
/// - values: `[samples, side]`
/// - others: `[samples, across]`
/// - roots: `[samples]`
pub(crate) fn one_position(
    values: &Tensor<2>,
    others: &Tensor<2>,
    roots: &Tensor<1>,
) -> Option<Tensor<2>> {
    let opened = |tensor: CubeTensor| (tensor.dtype == DType::F32).then(|| into_contiguous(tensor));
    let ([samples, side], [_, across]) = (values.dims(), others.dims());
    let values = opened(open(values.clone())?)?;
    let others = opened(open(others.clone())?)?;
    let roots = opened(open(roots.clone())?)?;
    let (client, device) = (values.client.clone(), values.device.clone());
    if samples * side * across == 0
        || samples * side.max(across) > u32::MAX as usize
        || samples > client.properties().hardware.max_cube_count.0 as usize
    {
        return None;
    }
    let shape = [samples, side].into();
    let sums = empty_device_contiguous_dtype(client.clone(), device, shape, DType::F32);
    kernel::launch(
        &client,
        CubeCount::Static(samples as u32, 1, 1),
        CubeDim::new_1d(UNITS),
        values.into_buffer_arg(),
        others.into_buffer_arg(),
        roots.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        side,
        across,
    );
    close(sums)
}

#[cube(launch)]
#[allow(clippy::too_many_arguments)]
fn kernel(
    values: &[f32],
    others: &[f32],
    roots: &[f32],
    sums: &mut [f32],
    side: usize,
    across: usize,
) {
    let units = comptime!(UNITS as usize);
    let (sample, unit) = (CUBE_POS_X as usize, UNIT_POS_X as usize);
    let mut maxima = Shared::<[f32]>::new_slice(units);
    let mut totals = Shared::<[f32]>::new_slice(units);

    let mut largest = f32::new(0.0);
    let mut at = unit;
    while at < across {
        largest = max(largest, f32::abs(others[sample * across + at]));
        at += units;
    }
    maxima[unit] = largest;
    sync_cube();
    for other in 0..units {
        largest = max(largest, maxima[other]);
    }
    // Divided before they are squared: no square is out of range whose product with the other is not.
    let scale = select(largest > 0.0, largest, 1.0f32);
    let mut total = f32::new(0.0);
    let mut at = unit;
    while at < across {
        let value = others[sample * across + at] / scale;
        total = fma(value, value, total);
        at += units;
    }
    totals[unit] = total;
    sync_cube();
    let mut total = f32::new(0.0);
    for other in 0..units {
        total += totals[other];
    }
    let norm = f32::sqrt(total) * scale * roots[sample];
    let mut at = unit;
    while at < side {
        let value = values[sample * side + at] * norm;
        sums[sample * side + at] = value * value;
        at += units;
    }
}
