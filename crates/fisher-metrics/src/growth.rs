//! Parameters that have grown since their Fisher was taken.

use std::ops::Range;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What to do with a parameter that has grown since its Fisher was taken, such as the head of a
/// classifier that learns new classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Growth {
    /// Another shape is an error.
    #[default]
    Refuse,
    /// The old rows and columns, which must be the first of each axis, keep their Fisher. What came
    /// after them is free: F = 0 there.
    Free,
}

impl Growth {
    /// Whether the Fisher of a parameter that was of shape `old` serves it at shape `new`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shapes differ; where growth is free, when they differ in rank or an
    /// axis is shorter than it was.
    pub fn check(self, key: &str, old: &[usize], new: &[usize]) -> Result<()> {
        let grown = || old.len() == new.len() && old.iter().zip(new).all(|(old, new)| old <= new);
        if old == new || (self == Self::Free && grown()) {
            return Ok(());
        }
        Err(Error::shape(key, old, new))
    }

    /// F of a parameter at the shape it has now: 0 where it is new.
    ///
    /// # Panics
    /// When [`Growth::check`] refuses the shapes.
    pub fn pad<const D: usize>(self, fisher: Tensor<D>, shape: [usize; D]) -> Tensor<D> {
        let old = fisher.dims();
        let check = self.check("F", &old, &shape);
        assert!(check.is_ok(), "F of shape {old:?} for {shape:?}");
        if old == shape {
            return fisher;
        }
        let zeros = Tensor::zeros(shape, (&fisher.device(), fisher.dtype()));
        zeros.slice_assign(old_part(old), fisher)
    }
}

/// The old elements of a parameter that was of shape `old`.
pub fn old_part<const D: usize>(old: [usize; D]) -> [Range<usize>; D] {
    old.map(|length| 0..length)
}

/// Where the elements of a parameter of shape `old` lie in it at shape `new`, both flattened.
///
/// # Panics
/// When the ranks differ.
pub fn old_elements(old: &[usize], new: &[usize]) -> Vec<usize> {
    assert_eq!(old.len(), new.len(), "axes");
    let mut places = vec![0];
    for (&old, &new) in old.iter().zip(new) {
        let before = places.into_iter();
        places = before
            .flat_map(|place| (0..old).map(move |at| place * new + at))
            .collect();
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_old_part_keeps_its_fisher_and_the_new_is_free() {
        let device = Device::flex();
        let old = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        let new = Growth::Free.pad(old, [3, 4]);
        let new: Vec<f32> = new.into_data().iter().collect();
        let expected = [1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(new, expected);
        assert_eq!(old_elements(&[2, 2], &[3, 4]), [0, 1, 4, 5]);
        assert_eq!(old_elements(&[2, 1, 2], &[2, 3, 2]), [0, 1, 6, 7]);
        assert_eq!(old_elements(&[], &[]), [0]);
        assert!(Growth::Free.check("w", &[2, 3], &[3, 2]).is_err());
        assert!(Growth::Free.check("w", &[6], &[2, 3]).is_err());
        assert!(Growth::Refuse.check("w", &[2], &[3]).is_err());
        assert!(Growth::Refuse.check("w", &[2], &[2]).is_ok());
    }
}
