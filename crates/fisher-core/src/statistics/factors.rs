//! Parameters that come into statistics as factors of products, or as rows of a table.

use burn::tensor::{DType, Int, Tensor};

use super::writer::{Stream, parameter};
use crate::error::{Error, Result};
use crate::gradient::ContributionUnit;
use crate::grouping::Margins;
use crate::moments::BatchMoments;
use crate::squares::{Lookup, Product, Sums, Way};

impl<C: ContributionUnit> Stream<'_, C> {
    /// Take in a parameter `[first axis, all others]` whose gradients are products,
    /// `g_i = L_iᵀ R_i`, which are never held whole. The way is chosen by shape; `ghost` allows
    /// the one by products of positions.
    ///
    /// # Shapes
    /// - left: `[samples, positions, first axis]`
    /// - right: `[samples, positions, all others]`
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before, [`Error::Shape`] when the factors are not of its shape or lie elsewhere,
    /// [`Error::Device`] when the device does not give values.
    pub fn product(
        &mut self,
        path: &str,
        left: Tensor<3>,
        right: Tensor<3>,
        ghost: bool,
    ) -> Result<Way> {
        let wanted = self.wanted(path).ok_or_else(|| Error::MissingParameter {
            parameter: path.into(),
        })?;
        self.check(path, &left.device())?;
        self.check_sides(path, left.dims(), right.dims())?;
        let [left, right] = [left, right].map(wide);
        let single = [left.dtype(), right.dtype()] == [DType::F32; 2];
        let product = Product {
            left,
            right,
            roots: self.roots(),
            dtype: self.dtype,
            on_host: self.on_host() && single,
        };
        if wanted.scattered {
            self.scatter(path, |grouping, range| product.scattered(grouping, range))?;
        }
        let mut way = product.way(&wanted, ghost);
        if way == Way::Squares {
            self.sums(path, product.squares(&wanted))?;
            return Ok(way);
        }
        if way == Way::Ghost {
            if let Some(sums) = product.ghost(&wanted)? {
                self.sums(path, sums)?;
                return Ok(way);
            }
            way = product.way(&wanted, false);
        }
        let samples = self.samples.len();
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        let elements = statistics.elementwise.as_mut();
        let margins = product.fold(elements, &wanted)?;
        if let Some(welford) = &mut statistics.elementwise {
            welford.advance(samples);
        }
        self.margins(path, &margins)?;
        Ok(way)
    }

    /// Take in a table `[rows, width]` whose row `ids_it` got `δ_it` at position `t` of sample `i`, such
    /// as an embedding's. Needs memory for the rows that were looked up, not for the table or for
    /// pairs of positions.
    ///
    /// # Shapes
    /// - ids: `[samples, positions]`
    /// - delta: `[samples, positions, width]`
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before, [`Error::Shape`] when ids or delta are not of its shape or lie elsewhere, [`Error::Device`] when the device does not give values.
    pub fn lookup(&mut self, path: &str, ids: Tensor<2, Int>, delta: Tensor<3>) -> Result<Way> {
        let wanted = self.wanted(path).ok_or_else(|| Error::MissingParameter {
            parameter: path.into(),
        })?;
        self.check(path, &delta.device())?;
        let shape = self.statistics.shape(path).unwrap_or_default();
        let sides = [shape[0], shape[1..].iter().product()];
        let samples = self.samples.len();
        let [_, positions, width] = delta.dims();
        let fits =
            [ids.dims(), [delta.dims()[0], width]] == [[samples, positions], [samples, sides[1]]];
        if !fits || samples == 0 || positions == 0 {
            return Err(Error::Shape {
                parameter: path.into(),
                expected: format!(
                    "ids [{samples}, positions] and rows [{samples}, positions, {}] of at least one",
                    sides[1]
                ),
                found: format!("{:?} and {:?}", ids.dims(), delta.dims()),
            });
        }
        let lookup = Lookup::new(path, ids, delta, sides, &self.roots(), self.dtype)?;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        if let Some(welford) = &mut statistics.elementwise {
            welford.push_moments(samples, &lookup.moments(welford.keeps_variance()));
        }
        self.scatter(path, |grouping, range| lookup.scattered(grouping, range))?;
        self.margins(path, &lookup.margins(&wanted)?)?;
        Ok(Way::Lookup)
    }

    /// Whether factors of these shapes give gradients of the parameter at `path`.
    fn check_sides(&self, path: &str, left: [usize; 3], right: [usize; 3]) -> Result<()> {
        let shape = self.statistics.shape(path).unwrap_or_default();
        let others = shape.iter().skip(1).product::<usize>();
        let positions = left[1].max(1);
        let expected = [shape.first().copied().unwrap_or_default(), others];
        let expected = expected.map(|side| [self.samples.len(), positions, side]);
        if !self.samples.is_empty() && [left, right] == expected {
            return Ok(());
        }
        Err(Error::Shape {
            parameter: path.into(),
            expected: format!("factors {expected:?} of at least one sample"),
            found: format!("{:?}", [left, right]),
        })
    }

    /// Take in a parameter by sums.
    fn sums(&mut self, path: &str, sums: Sums) -> Result<()> {
        let (dtype, samples) = (self.dtype, self.samples.len());
        let square = sums.scale * sums.scale;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        if let Some(welford) = &mut statistics.elementwise {
            let sum = sums.elements.filter(|_| !welford.keeps_variance());
            let sum = sum.ok_or_else(|| Error::MissingParameter {
                parameter: path.into(),
            })?;
            let moments = BatchMoments {
                mean: sum.cast(dtype).mul_scalar(square / samples as f64),
                rest: None,
                m2: None,
            };
            welford.push_moments(samples, &moments);
        }
        let unscale = |sums: Option<Tensor<2>>| sums.map(|s| s.cast(dtype).mul_scalar(square));
        let margins = Margins {
            rows: unscale(sums.margins.rows),
            columns: unscale(sums.margins.columns),
        };
        self.margins(path, &margins)
    }
}

/// In float32 at least: half precision has too few digits for sums over positions.
fn wide(tensor: Tensor<3>) -> Tensor<3> {
    match tensor.dtype() {
        DType::F32 | DType::F64 => tensor,
        _ => tensor.cast(DType::F32),
    }
}
