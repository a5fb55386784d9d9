//! How a parameter is cut for the units and cubes of a device.

use cubecl::ir::HardwareProperties;

use crate::host::Sides;

/// Units of a cube along a side, at most.
const UNITS: usize = 16;

/// Along rows and along columns.
pub(super) struct Geometry {
    /// Elements of a unit.
    pub(super) cells: [usize; 2],
    /// Units of a cube.
    pub(super) units: [usize; 2],
    /// Cubes of the parameter.
    pub(super) cubes: [usize; 2],
}

impl Geometry {
    /// Of `elements` along each side; `None` where the device cannot hold so many cubes.
    pub(super) fn new(
        elements: [usize; 2],
        sums: Sides,
        hardware: &HardwareProperties,
    ) -> Option<Self> {
        let cells = cells(elements, hardware);
        let over = |by: [usize; 2]| [0, 1].map(|side| elements[side].div_ceil(by[side]));
        let units = units(over(cells), cells, sums, hardware);
        let cubes = over([units[0] * cells[0], units[1] * cells[1]]);
        let (most_x, most_y, _) = hardware.max_cube_count;
        let fits = cubes[0] <= most_y as usize && cubes[1] <= most_x as usize;
        fits.then_some(Self {
            cells,
            units,
            cubes,
        })
    }
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
