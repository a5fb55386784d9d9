//! A batch that comes into statistics parameter by parameter, never whole.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor};

use crate::gradient::{Contribution, ContributionUnit, Gradient, TokenSum};
use crate::group::{Grouping, Reduction};
use crate::host::{self, give, is_host, sum_columns, take};
use crate::product::{Product, Way};
use crate::sample::{Sample, Tokens};
use crate::statistics::{ParameterStatistics, Statistics, TaskStatistics};
use crate::totals::BatchTotals;
use crate::{Error, Result};

/// What statistics want to know of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Every element: gradients by rows, whole, or sums over samples.
    pub elements: bool,
    /// The variance of every element, too.
    pub variance: bool,
    /// Sums of squares over everything but the first axis.
    pub rows: bool,
    /// Sums of squares over the first axis.
    pub columns: bool,
    /// Nothing but the whole gradient will do: groups that are no slices of an axis.
    pub whole: bool,
}

/// Sums of squares over one of the two sides of a parameter `[first axis, all others]`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Margins {
    /// `[samples, first axis]`
    pub(crate) rows: Option<Tensor<2>>,
    /// `[samples, all others]`
    pub(crate) columns: Option<Tensor<2>>,
}

/// Sums of the contributions of a parameter `[first axis, all others]`, divided by `scale²`.
#[derive(Debug, Clone)]
pub struct Sums {
    /// What they are divided by the square of, so that they fit into float32.
    pub scale: f64,
    /// Over all others, `[samples, first axis]`.
    pub rows: Option<Tensor<2>>,
    /// Over the first, `[samples, all others]`.
    pub columns: Option<Tensor<2>>,
    /// Over samples: `Σ_i C_i`, `[elements]`.
    pub elements: Option<Tensor<1>>,
    /// Over samples: `Σ_i C_i²`, `[elements]`, where a variance is kept; divided by `scale⁴`.
    pub squares: Option<Tensor<1>>,
}

/// A batch on its way into [`Statistics`]: see [`Statistics::stream`].
#[derive(Debug)]
pub struct Stream<'a, C: ContributionUnit> {
    statistics: &'a mut Statistics<C>,
    task: String,
    samples: Vec<Sample>,
    tokens: Tokens,
    dtype: DType,
    totals: BatchTotals,
    /// Of every parameter that has come, `[samples, 1]`.
    sums: BTreeMap<String, Tensor<2>>,
}

impl<C: ContributionUnit> Statistics<C> {
    /// Begin to take in a batch of samples of `task` without ever holding its gradients whole:
    /// each parameter comes as a whole ([`Stream::whole`]), as factors of products
    /// ([`Stream::product`]), or as sums ([`Stream::sums`]), and [`Stream::finish`] counts the
    /// samples.
    ///
    /// The numbers are those of [`Statistics::push`]. Unlike there, half a batch stays where an error
    /// comes half way or [`Stream::finish`] is not called, and such statistics are not saved, merged
    /// or filled any more ([`Error::HalfBatch`]): make sure beforehand that gradients are finite.
    ///
    /// # Errors
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch,
    /// [`Error::HalfBatch`] when an earlier batch did not end well. Nothing is changed then.
    pub fn stream(&mut self, task: &str, samples: Vec<Sample>) -> Result<Stream<'_, C>> {
        self.check_whole()?;
        self.check_new(task, &samples)?;
        let (plan, device) = (&self.plan, &self.device);
        self.tasks
            .entry(task.to_owned())
            .or_insert_with(|| TaskStatistics::new(plan, device));
        self.half = true;
        Ok(Stream {
            tokens: Tokens::of(&samples, device),
            dtype: plan.dtype(device),
            totals: BatchTotals::new(&plan.totals),
            sums: BTreeMap::new(),
            task: task.into(),
            samples,
            statistics: self,
        })
    }

    /// What is wanted of the parameter at `path`; `None` when it is not part of the statistics.
    pub fn wanted(&self, path: &str) -> Option<Wanted> {
        let plan = self.plan.parameters.get(path)?;
        let heads = self.plan.totals.groupings(path);
        let groupings = plan.groupings.iter().chain(heads);
        let groupings: Vec<&Grouping> = groupings.filter(|g| !g.is_whole()).collect();
        let on = |side: fn(usize) -> bool| groupings.iter().any(|g| g.axis().is_some_and(side));
        Some(Wanted {
            elements: plan.elementwise,
            variance: plan.variance,
            rows: on(|axis| axis == 0),
            columns: on(|axis| axis > 0),
            whole: plan.shape.len() < 2 || groupings.iter().any(|g| g.axis().is_none()),
        })
    }
}

impl<C: ContributionUnit> Stream<'_, C> {
    /// `√(C_i / g_i²)` for every sample.
    pub fn roots(&self) -> Vec<f64> {
        self.samples.iter().map(|s| C::root(s.tokens())).collect()
    }

    /// The type that contributions are accumulated in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the statistics.
    pub fn device(&self) -> &Device {
        &self.statistics.device
    }

    /// What is wanted of the parameter at `path`: see [`Statistics::wanted`].
    pub fn wanted(&self, path: &str) -> Option<Wanted> {
        self.statistics.wanted(path)
    }

    /// Take in a parameter of zeros, that the loss does not depend on.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it.
    pub fn zeros(&mut self, path: &str) -> Result<()> {
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let (samples, device) = (self.samples.len(), self.statistics.device.clone());
        let shape = self.statistics.shape(path).ok_or_else(missing)?;
        let rows = shape.first().copied().unwrap_or(1);
        let others = shape.iter().skip(1).product::<usize>();
        if self.wanted(path).is_some_and(|wanted| wanted.whole) {
            let zeros = Tensor::<2>::zeros([samples, rows * others], (&device, self.dtype));
            return self.whole(path, Gradient::token_sum(zeros));
        }
        let side = |length| Tensor::<2>::zeros([samples, length], (&device, self.dtype));
        let elements = Tensor::<1>::zeros([rows * others], (&device, self.dtype));
        let sums = Sums {
            scale: 1.0,
            rows: Some(side(rows)),
            columns: Some(side(others)),
            elements: Some(elements.clone()),
            squares: Some(elements),
        };
        self.sums(path, sums)
    }

    /// Take in all of a parameter, `[samples, elements]`.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, [`Error::ParameterTwice`] when
    /// it has come before, [`Error::Shape`] when the gradient is of another size or lies elsewhere.
    pub fn whole(&mut self, path: &str, gradient: Gradient<TokenSum>) -> Result<()> {
        self.check(path, &gradient.tensor().device())?;
        let shape = self.statistics.shape(path).unwrap_or_default();
        let expected = [self.samples.len(), shape.iter().product()];
        let found = gradient.tensor().dims();
        if expected != found {
            return Err(Error::Shape {
                parameter: path.into(),
                expected: format!("[samples, elements] = {expected:?}"),
                found: format!("{found:?}"),
            });
        }
        let (contribution, sums) = self.contributions(gradient)?;
        let (plan, reduction) = (&self.statistics.plan, self.statistics.provenance.reduction);
        self.totals
            .add(&plan.totals, path, &contribution, sums.clone());
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        for (grouping, welford) in &mut statistics.groups {
            let reduced = grouping.reduce(&contribution, reduction);
            welford.push_batch(reduced.tensor().clone());
        }
        if let Some(welford) = &mut statistics.elementwise {
            welford.push_batch(contribution.tensor().clone());
        }
        self.sums.insert(path.into(), sums);
        Ok(())
    }

    /// Contributions and their sums over elements, `[samples, 1]`.
    fn contributions(&self, gradient: Gradient<TokenSum>) -> Result<(Contribution<C>, Tensor<2>)> {
        let tensor = gradient.tensor();
        let (device, shape) = (tensor.device(), tensor.dims());
        if !self.on_host() || tensor.dtype() != DType::F32 {
            let contribution = gradient.contribution_in::<C>(&self.tokens, self.dtype);
            let sums = contribution.tensor().clone().sum_dim(1);
            return Ok((contribution, sums));
        }
        let gradients: Vec<f32> = take(gradient.into_tensor())?;
        let (squares, sums) = host::contributions(&gradients, &self.roots());
        Ok((
            Contribution::of(give(squares, shape, &device)),
            give(sums, [shape[0], 1], &device),
        ))
    }

    /// Whether accumulators are float64 in the host's memory.
    fn on_host(&self) -> bool {
        self.dtype == DType::F64 && is_host(&self.statistics.device)
    }

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
        let single = [left.dtype(), right.dtype()] == [DType::F32; 2];
        let product = Product {
            left,
            right,
            roots: self.roots(),
            dtype: self.dtype,
            on_host: self.on_host() && single,
        };
        let mut way = product.way(&wanted, ghost);
        match way {
            Way::Whole => {
                self.whole(path, Gradient::token_sum(product.whole()))?;
                return Ok(way);
            }
            Way::Squares => {
                self.sums(path, product.squares(&wanted))?;
                return Ok(way);
            }
            Way::Ghost => {
                if let Some(sums) = product.ghost(&wanted)? {
                    self.sums(path, sums)?;
                    return Ok(way);
                }
                way = product.way(&wanted, false);
            }
            Way::Tiles | Way::Kernel | Way::Lookup => {}
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

    /// Whether gradients of the parameter at `path`, on `device`, can come now.
    fn check(&self, path: &str, device: &Device) -> Result<()> {
        if self.statistics.shape(path).is_none() {
            return Err(Error::MissingParameter {
                parameter: path.into(),
            });
        }
        if self.sums.contains_key(path) {
            return Err(Error::ParameterTwice {
                parameter: path.into(),
            });
        }
        self.statistics.check_device(path, device)
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

    /// Take in a parameter by sums: over rows or columns as far as is wanted, at least one of the
    /// two, and over samples when elements are wanted.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when the statistics do not have it, or a sum that is wanted is
    /// not there; [`Error::ParameterTwice`] when it has come before, [`Error::Shape`] when the sums lie
    /// elsewhere.
    pub fn sums(&mut self, path: &str, sums: Sums) -> Result<()> {
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let sides = [&sums.rows, &sums.columns].into_iter().flatten();
        let elements = [&sums.elements, &sums.squares].into_iter().flatten();
        for device in sides
            .map(Tensor::device)
            .chain(elements.map(Tensor::device))
        {
            self.check(path, &device)?;
        }
        let (dtype, samples) = (self.dtype, self.samples.len());
        let square = sums.scale * sums.scale;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        if let Some(welford) = &mut statistics.elementwise {
            let sum = sums.elements.ok_or_else(missing)?;
            let squares = sums
                .squares
                .map(|s| s.cast(dtype).mul_scalar(square * square));
            if welford.keeps_variance() && squares.is_none() {
                return Err(missing());
            }
            welford.push_sums(samples, sum.cast(dtype).mul_scalar(square), squares);
        }
        let unscale = |sums: Option<Tensor<2>>| sums.map(|s| s.cast(dtype).mul_scalar(square));
        let margins = Margins {
            rows: unscale(sums.rows),
            columns: unscale(sums.columns),
        };
        self.margins(path, &margins)
    }

    /// Contributions, summed over one side.
    fn margins(&mut self, path: &str, margins: &Margins) -> Result<()> {
        let missing = || Error::MissingParameter {
            parameter: path.into(),
        };
        let any = margins.rows.as_ref().or(margins.columns.as_ref());
        let sums = sum_columns(any.ok_or_else(missing)?.clone())?;
        let (plan, reduction) = (&self.statistics.plan, self.statistics.provenance.reduction);
        let totals = &mut self.totals;
        totals
            .add_margins(&plan.totals, path, margins, sums.clone())
            .ok_or_else(missing)?;
        let statistics = parameter(&mut self.statistics.tasks, &self.task, path)?;
        for (grouping, welford) in &mut statistics.groups {
            let reduced = grouping.reduce_margins(margins, reduction);
            welford.push_batch(reduced.ok_or_else(missing)?);
        }
        self.sums.insert(path.into(), sums);
        Ok(())
    }

    /// `Σ C_i` over all elements of a parameter that has come, for every sample.
    ///
    /// # Errors
    /// [`Error::Device`] when the device does not give them.
    pub fn traces(&self) -> Result<BTreeMap<String, Vec<f64>>> {
        if self.sums.is_empty() {
            return Ok(BTreeMap::new());
        }
        let names = self.sums.keys();
        let sums = Tensor::cat(self.sums.values().cloned().collect(), 1).try_into_data();
        let sums = sums.map_err(|e| Error::Device {
            reason: e.to_string(),
        })?;
        let values: Vec<f64> = sums.iter::<f64>().collect();
        let column = |at: usize| values.iter().skip(at).step_by(self.sums.len());
        let column = |(at, name): (usize, &String)| (name.clone(), column(at).copied().collect());
        Ok(names.enumerate().map(column).collect())
    }

    /// Count the samples.
    ///
    /// # Errors
    /// [`Error::MissingParameter`] when one has not come, [`Error::NonFinite`] when a square was
    /// NaN or infinite.
    pub fn finish(self) -> Result<()> {
        let mut paths = self.statistics.plan.parameters.keys();
        if let Some(path) = paths.find(|path| !self.sums.contains_key(*path)) {
            return Err(Error::MissingParameter {
                parameter: path.clone(),
            });
        }
        for (parameter, traces) in self.traces()? {
            if let Some(at) = traces.iter().position(|trace| !trace.is_finite()) {
                return Err(Error::NonFinite {
                    sample: self.samples[at].id().into(),
                    parameter,
                });
            }
        }
        let (layers, heads) = self.totals.finish();
        let Some(task) = self.statistics.tasks.get_mut(&self.task) else {
            return Ok(()); // `stream` has put it there
        };
        for (welford, sums) in [(&mut task.layers, layers), (&mut task.heads, heads)] {
            if let Some(sums) = sums {
                welford.push_batch(sums);
            }
        }
        for sample in &self.samples {
            task.samples.push(sample.into());
        }
        self.statistics.half = false;
        Ok(())
    }
}

fn parameter<'a>(
    tasks: &'a mut BTreeMap<String, TaskStatistics>,
    task: &str,
    path: &str,
) -> Result<&'a mut ParameterStatistics> {
    let parameters = tasks.get_mut(task).map(|task| &mut task.parameters);
    let found = parameters.and_then(|parameters| parameters.get_mut(path));
    found.ok_or_else(|| Error::MissingParameter {
        parameter: path.into(),
    })
}

impl Margins {
    /// As if they were contributions.
    pub(crate) fn sum(&self, grouping: &Grouping) -> Option<Tensor<2>> {
        grouping.reduce_margins(self, Reduction::Sum)
    }
}
