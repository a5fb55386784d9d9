//! The accumulators of several tasks, with all that says what they are.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;

use burn::config::Config;
use burn::module::{Module, ParamGroup};
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, list};
use crate::gradient::{
    Contribution, ContributionUnit, GradientBatch, GradientUnit, PerToken, TokenSum,
};
use crate::grouping::{BatchTotals, Grouping, HeadLayout, Reduction, Scheme, Totals};
use crate::kind::FisherKind;
use crate::model::{Catalogue, Parameter, Role, hash_weights};
use crate::moments::{Welford, accumulation_dtype};
use crate::provenance::Provenance;
use crate::sample::{Sample, SampleRecord, Seen, Tokens};

/// What to accumulate.
///
/// Every accumulator keeps a mean and a variance: 16 bytes an element. Elementwise statistics of
/// all parameters therefore take four times the memory of a float32 model for each task; grouped
/// ones take next to nothing.
#[derive(Config, Debug)]
pub struct StatisticsConfig {
    /// Accumulate every element of the parameters selected by `elementwise_only`.
    #[config(default = true)]
    pub elementwise: bool,
    /// The parameters to accumulate by element; all when absent.
    pub elementwise_only: Option<ParamGroup>,
    /// Keep the variance of elements as well as their mean. Without it elements have no error bars
    /// and take half the memory; groups, layers and heads always have theirs.
    #[config(default = true)]
    pub variance: bool,
    /// Accumulate groups.
    #[config(default = true)]
    pub grouped: bool,
    /// Schemes other than the default one; the first match counts.
    #[config(default = "Vec::new()")]
    pub schemes: Vec<(ParamGroup, Scheme)>,
    /// What a group's number stands for.
    #[config(default = "Reduction::Mean")]
    pub reduction: Reduction,
    /// Accumulate in compensated float32 also where the device has float64: for GPUs whose float64
    /// is slow.
    #[config(default = false)]
    pub compensated: bool,
    /// Which Fisher the gradients that will come are of. This draws no labels: the batches bring them
    /// (`Labels::draw` of `fisher-train`), and collection refuses losses of another kind. Gradients
    /// that are pushed by hand are taken at their word.
    #[config(default = "FisherKind::Empirical")]
    pub kind: FisherKind,
    /// The seed of the run, for the record.
    pub seed: Option<u64>,
}

impl StatisticsConfig {
    /// Empty statistics of all trainable parameters of `model`, on its device.
    ///
    /// ```
    /// # use burn::{nn::LinearConfig, tensor::Device};
    /// use fisher_core::{HeadLayout, Statistics, StatisticsConfig};
    /// # fn example(model: burn::nn::Linear) -> fisher_core::Result<()> {
    /// let config = StatisticsConfig::new().with_elementwise(false);
    /// let statistics: Statistics = config.init(&model, &HeadLayout::none())?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing is trainable or a pattern of the configuration matches
    /// nothing, [`Error::HeadLayout`] when attention
    /// projections are not in a layout that is not empty, [`Error::Scheme`] when a scheme does
    /// not fit, [`Error::Device`] when the weights cannot be read.
    pub fn init<C: ContributionUnit, M: Module>(
        &self,
        model: &M,
        heads: &HeadLayout,
    ) -> Result<Statistics<C>> {
        let device = model.devices().first().cloned().unwrap_or_default();
        self.init_for(&Catalogue::of(model)?, heads, hash_weights(model)?, &device)
    }

    /// Empty statistics of the parameters in `catalogue`, for gradients that come from elsewhere
    /// or for a part of a model. `model` identifies the weights, as [`hash_weights`] does.
    ///
    /// # Errors
    /// As [`StatisticsConfig::init`].
    pub fn init_for<C: ContributionUnit>(
        &self,
        catalogue: &Catalogue,
        heads: &HeadLayout,
        model: String,
        device: &Device,
    ) -> Result<Statistics<C>> {
        let unmentioned = heads.unmentioned(catalogue);
        if !heads.attention().is_empty() && !unmentioned.is_empty() {
            return Err(Error::HeadLayout {
                reason:
                    "the layout leaves out parameters that are named as attention projections, \
                         or lie in one; what belongs to no single head is given to \
                         `HeadLayout::with_headless`"
                        .into(),
                found: list(unmentioned),
            });
        }
        let groups = self.schemes.iter().map(|(group, _)| group);
        for group in groups.chain(&self.elementwise_only) {
            catalogue.filter(group)?; // a pattern that matches nothing is a mistake
        }
        let mut parameters = BTreeMap::new();
        for parameter in catalogue.parameters() {
            let plan = self.plan(parameter, heads)?;
            parameters.insert(parameter.path().to_owned(), plan);
        }
        Ok(Statistics {
            provenance: Provenance {
                kind: self.kind,
                loss: TokenSum::NAME.into(),
                unit: C::NAME.into(),
                reduction: self.reduction,
                model,
                steps: None,
                seeds: self.seed.into_iter().collect(),
            },
            plan: Plan {
                parameters,
                totals: Totals::of(catalogue, heads)?,
                compensated: self.compensated,
            },
            tasks: BTreeMap::new(),
            device: device.clone().without_autodiff(),
            half: false,
            unit: PhantomData,
        })
    }

    fn plan(&self, parameter: &Parameter, heads: &HeadLayout) -> Result<ParameterPlan> {
        let matches = |group: &ParamGroup| parameter.matches(group);
        let scheme = self.schemes.iter().find(|(group, _)| matches(group));
        let scheme = match scheme {
            Some((_, scheme)) => scheme.clone(),
            None => Scheme::default_of(parameter, heads),
        };
        Ok(ParameterPlan {
            shape: parameter.shape().to_vec(),
            role: parameter.role(),
            elementwise: self.elementwise && self.elementwise_only.as_ref().is_none_or(matches),
            variance: self.variance,
            groupings: match self.grouped {
                true => Grouping::of(parameter, &scheme, heads)?,
                false => Vec::new(),
            },
        })
    }
}

/// What is accumulated of every parameter. `G` is what a file has for a grouping, where it is read
/// or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan<G = Grouping> {
    pub(crate) parameters: BTreeMap<String, ParameterPlan<G>>,
    pub(crate) totals: Totals,
    pub(crate) compensated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParameterPlan<G = Grouping> {
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
    pub(crate) elementwise: bool,
    /// Of elements.
    #[serde(default = "yes")]
    pub(crate) variance: bool,
    pub(crate) groupings: Vec<G>,
}

fn yes() -> bool {
    true
}

/// The Fisher statistics of several tasks of one model.
///
/// `C` is the unit of the contributions, [`PerToken`] unless said otherwise. Saved with
/// [`Statistics::save`], loaded with [`Statistics::load`], joined with [`Statistics::merge`].
#[derive(Debug, Clone)]
pub struct Statistics<C: ContributionUnit = PerToken> {
    pub(crate) provenance: Provenance,
    pub(crate) plan: Plan,
    pub(crate) tasks: BTreeMap<String, TaskStatistics>,
    pub(crate) device: Device,
    /// Whether a batch began to come in and did not end: see [`Error::HalfBatch`].
    pub(crate) half: bool,
    pub(crate) unit: PhantomData<C>,
}

impl<C: ContributionUnit> Statistics<C> {
    /// # Errors
    /// [`Error::HalfBatch`]
    pub(crate) fn check_whole(&self) -> Result<()> {
        match self.half {
            true => Err(Error::HalfBatch),
            false => Ok(()),
        }
    }

    /// Take in a batch of samples of `task`, which begins to exist with its first batch.
    ///
    /// The gradients are squared per sample, reduced to groups and accumulated. Nothing is
    /// changed when an error is returned.
    ///
    /// # Errors
    /// [`Error::MissingParameter`], [`Error::UnknownParameter`], [`Error::ParameterTwice`] and
    /// [`Error::Shape`] when the gradients are not those of the statistics' parameters,
    /// [`Error::SampleTwice`] when a sample has been seen before or is twice in the batch,
    /// [`Error::NonFinite`] when a squared gradient is NaN or infinite, [`Error::Device`] when that
    /// cannot be read.
    pub fn push(&mut self, task: &str, batch: GradientBatch) -> Result<()> {
        self.check_whole()?;
        self.check(&batch)?;
        self.check_new(task, &batch.samples)?;
        if batch.samples.is_empty() {
            return Ok(());
        }
        let GradientBatch {
            samples, gradients, ..
        } = batch;
        let tokens = Tokens::of(&samples, &self.device);
        let dtype = self.plan.dtype(&self.device);
        let contributions: Vec<(String, Contribution<C>, Tensor<2>)> = gradients
            .into_iter()
            .map(|(path, gradient)| {
                let contribution = gradient.contribution_in::<C>(&tokens, dtype);
                let sums = contribution.tensor().clone().sum_dim(1);
                (path, contribution, sums)
            })
            .collect();
        check_finite(&samples, &contributions)?;

        let reduction = self.provenance.reduction;
        let (plan, device) = (&self.plan, &self.device);
        let task = self
            .tasks
            .entry(task.to_owned())
            .or_insert_with(|| TaskStatistics::new(plan, device));
        let mut totals = BatchTotals::new(&plan.totals);
        for (path, contribution, sums) in contributions {
            totals.add(&plan.totals, &path, &contribution, sums);
            let Some(statistics) = task.parameters.get_mut(&path) else {
                continue; // `check` has seen that the paths are the plan's
            };
            for (grouping, welford) in &mut statistics.groups {
                let reduced = grouping.reduce(&contribution, reduction);
                welford.push_batch(reduced.tensor().clone());
            }
            if let Some(welford) = &mut statistics.elementwise {
                welford.push_batch(contribution.tensor().clone());
            }
        }
        let (layers, heads) = totals.finish();
        for (welford, sums) in [(&mut task.layers, layers), (&mut task.heads, heads)] {
            if let Some(sums) = sums {
                welford.push_batch(sums);
            }
        }
        for sample in &samples {
            task.samples.push(sample.into());
        }
        Ok(())
    }

    /// Record that a sample of `task` was left out because of its gradient in `parameter`.
    ///
    /// # Errors
    /// [`Error::SampleTwice`] when the sample has been seen before.
    pub fn skip(
        &mut self,
        task: &str,
        sample: &Sample,
        parameter: impl Into<String>,
    ) -> Result<()> {
        self.check_new(task, [sample])?;
        let (plan, device) = (&self.plan, &self.device);
        let task = self.tasks.entry(task.to_owned());
        let task = task.or_insert_with(|| TaskStatistics::new(plan, device));
        task.samples.push(SampleRecord {
            skipped: Some(parameter.into()),
            ..sample.into()
        });
        Ok(())
    }

    /// # Errors
    /// [`Error::SampleTwice`] when one of `samples` has been seen before, or comes twice.
    pub(crate) fn check_new<'a>(
        &self,
        task: &str,
        samples: impl IntoIterator<Item = &'a Sample>,
    ) -> Result<()> {
        match self.tasks.get(task) {
            Some(of_task) => of_task.samples.check(task, samples),
            None => Seen::default().check(task, samples),
        }
    }

    /// Join with the statistics of other samples: the result is that of one pass over all.
    ///
    /// # Errors
    /// Those of [`Statistics::mergeable`]. Nothing is changed then.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        self.mergeable(&other)?;
        for (name, theirs) in other.tasks {
            match self.tasks.get_mut(&name) {
                Some(ours) => ours.merge(theirs),
                None => {
                    let dtype = self.plan.dtype(&self.device);
                    self.tasks.insert(name, theirs.on(&self.device, dtype));
                }
            }
        }
        self.provenance.absorb(other.provenance);
        Ok(())
    }

    /// Whether [`Statistics::merge`] takes `other`.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the difference, when model, unit, kind, parameters or
    /// groups differ, or the statistics lie on different devices;
    /// [`Error::DuplicateSample`] when a sample is in both; [`Error::HalfBatch`].
    pub fn mergeable(&self, other: &Self) -> Result<()> {
        self.check_whole()?;
        other.check_whole()?;
        self.compatible(other)?;
        for (name, theirs) in &other.tasks {
            let Some(ours) = self.tasks.get(name) else {
                continue;
            };
            if let Some(twice) = ours.samples.shared(&theirs.samples) {
                return Err(Error::DuplicateSample {
                    task: name.clone(),
                    sample: twice.id.clone(),
                });
            }
        }
        Ok(())
    }

    /// Whether `other` is of the same model, unit, kind, parameters and groups.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the first difference.
    pub fn compatible(&self, other: &Self) -> Result<()> {
        self.provenance.compatible(&other.provenance)?;
        let differs = |what: String, ours: String, theirs: String| {
            Err(Error::Incompatible { what, ours, theirs })
        };
        if self.device != other.device {
            let (ours, theirs) = (format!("{:?}", self.device), format!("{:?}", other.device));
            return differs("the device".into(), ours, theirs);
        }
        let (ours, theirs) = (&self.plan.parameters, &other.plan.parameters);
        let paths: HashSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let mut paths: Vec<&String> = paths.into_iter().collect();
        paths.sort();
        for path in paths {
            let (a, b) = (ours.get(path), theirs.get(path));
            if a != b {
                let describe = |plan: Option<&ParameterPlan>| {
                    plan.map_or("absent".into(), ParameterPlan::describe)
                };
                return differs(format!("parameter `{path}`"), describe(a), describe(b));
            }
        }
        if self.plan.totals != other.plan.totals {
            let describe = |t: &Totals| format!("{} heads", t.heads().len());
            let (ours, theirs) = (describe(&self.plan.totals), describe(&other.plan.totals));
            return differs("the head layout".into(), ours, theirs);
        }
        Ok(())
    }

    /// Whether `other` was begun with the same configuration, seed and precision included: then
    /// one can go on where the other stopped.
    ///
    /// # Errors
    /// [`Error::Incompatible`], naming the first difference.
    pub fn same_configuration(&self, other: &Self) -> Result<()> {
        self.compatible(other)?;
        let describe = |s: &Self| {
            let precision = match s.plan.compensated {
                true => "compensated float32",
                false => "the device's float64",
            };
            format!("seeds {:?}, {precision}", s.provenance.seeds)
        };
        let (ours, theirs) = (describe(self), describe(other));
        match ours == theirs {
            true => Ok(()),
            false => Err(Error::Incompatible {
                what: "the configuration".into(),
                ours,
                theirs,
            }),
        }
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The statistics of one task.
    ///
    /// # Errors
    /// [`Error::UnknownTask`].
    pub fn task(&self, name: &str) -> Result<&TaskStatistics> {
        self.tasks.get(name).ok_or_else(|| Error::UnknownTask {
            task: name.into(),
            known: list(self.tasks()),
        })
    }

    /// Paths of the parameters.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.plan.parameters.keys().map(String::as_str)
    }

    /// The shape of the parameter at `path`.
    pub fn shape(&self, path: &str) -> Option<&[usize]> {
        self.plan.parameters.get(path).map(|p| &*p.shape)
    }

    /// What the parameter at `path` is for.
    pub fn role(&self, path: &str) -> Option<Role> {
        self.plan.parameters.get(path).map(|p| p.role)
    }

    /// Which layers and heads the totals are of.
    pub fn totals(&self) -> &Totals {
        &self.plan.totals
    }

    /// Where the statistics come from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// The device the accumulators lie on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// # Errors
    /// [`Error::Shape`] unless gradients on `device` can be accumulated where these statistics lie.
    pub(crate) fn check_device(&self, path: &str, device: &Device) -> Result<()> {
        if !device.is_autodiff() && *device == self.device {
            return Ok(());
        }
        Err(Error::Shape {
            parameter: path.into(),
            expected: format!("a gradient on {:?}, without autodiff", self.device),
            found: format!("one on {device:?}"),
        })
    }

    fn check(&self, batch: &GradientBatch) -> Result<()> {
        batch.check_once()?;
        for (path, gradient) in &batch.gradients {
            let Some(plan) = self.plan.parameters.get(path) else {
                return Err(Error::UnknownParameter {
                    parameter: path.clone(),
                    known: list(self.plan.parameters.keys()),
                });
            };
            self.check_device(path, &gradient.tensor().device())?;
            let expected = [batch.samples.len(), plan.shape.iter().product()];
            let found = gradient.tensor().dims();
            if expected != found {
                return Err(Error::Shape {
                    parameter: path.clone(),
                    expected: format!("[samples, elements] = {expected:?}"),
                    found: format!("{found:?}"),
                });
            }
        }
        let mut paths = self.plan.parameters.keys();
        match paths.find(|path| !batch.gradients.contains_key(*path)) {
            Some(path) => Err(Error::MissingParameter {
                parameter: path.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl<G> Plan<G> {
    /// The same with every grouping turned into something else; `turn` is told its parameter's path
    /// and shape.
    pub(crate) fn try_map<H>(
        self,
        mut turn: impl FnMut(&str, &[usize], G) -> Result<H, String>,
    ) -> Result<Plan<H>, String> {
        let mut turned = |(path, plan): (String, ParameterPlan<G>)| {
            let groupings = plan.groupings.into_iter();
            let groupings = groupings.map(|grouping| turn(&path, &plan.shape, grouping));
            let plan = ParameterPlan {
                groupings: groupings.collect::<Result<_, _>>()?,
                shape: plan.shape,
                role: plan.role,
                elementwise: plan.elementwise,
                variance: plan.variance,
            };
            Ok::<_, String>((path, plan))
        };
        let parameters = self.parameters.into_iter();
        Ok(Plan {
            parameters: parameters.map(&mut turned).collect::<Result<_, _>>()?,
            totals: self.totals,
            compensated: self.compensated,
        })
    }
}

impl Plan {
    /// The type that accumulators keep on `device`; pairs where it is float32.
    pub(crate) fn dtype(&self, device: &Device) -> DType {
        if self.compensated {
            DType::F32
        } else {
            accumulation_dtype(device)
        }
    }

    /// Whether it fits together: for what comes from a file.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, parameter) in &self.parameters {
            let labels: HashSet<&str> = parameter.groupings.iter().map(Grouping::label).collect();
            if labels.len() < parameter.groupings.len() {
                return Err(format!("`{path}` is grouped twice in one way"));
            }
            let elements = parameter
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d));
            let fits = |grouping: &Grouping| grouping.shape() == parameter.shape;
            if elements.is_none() || !parameter.groupings.iter().all(fits) {
                return Err(format!("the groups of `{path}` do not fit its shape"));
            }
        }
        let shapes = self.parameters.iter();
        let shapes = shapes.map(|(path, parameter)| (&**path, &*parameter.shape));
        self.totals.check(&shapes.collect())
    }
}

impl ParameterPlan {
    fn describe(&self) -> String {
        let groups = self.groupings.iter();
        let groups: Vec<String> = groups
            .map(|g| format!("{} {}", g.groups(), g.label()))
            .collect();
        format!(
            "shape {:?}, elementwise {}, variance {}, groups [{}]",
            self.shape,
            self.elementwise,
            self.variance,
            groups.join(", ")
        )
    }
}

/// The sums are read in one transfer; one that is not finite names its sample and parameter.
fn check_finite<C: ContributionUnit>(
    samples: &[Sample],
    contributions: &[(String, Contribution<C>, Tensor<2>)],
) -> Result<()> {
    let sums = contributions.iter().map(|(_, _, sums)| sums.clone());
    let sums = Tensor::cat(sums.collect(), 1).try_into_data();
    let sums = sums.map_err(|e| Error::Device {
        reason: e.to_string(),
    })?;
    let infinite = sums.iter::<f64>().position(|sum| !sum.is_finite());
    match infinite {
        Some(at) => Err(Error::NonFinite {
            sample: samples[at / contributions.len()].id().into(),
            parameter: contributions[at % contributions.len()].0.clone(),
        }),
        None => Ok(()),
    }
}

/// The accumulators of one task.
#[derive(Debug, Clone)]
pub struct TaskStatistics {
    pub(crate) samples: Seen,
    pub(crate) parameters: BTreeMap<String, ParameterStatistics>,
    pub(crate) layers: Welford,
    pub(crate) heads: Welford,
}

impl TaskStatistics {
    pub(crate) fn new(plan: &Plan, device: &Device) -> Self {
        Self::with(plan, |elements| match plan.compensated {
            true => Welford::compensated(elements, device),
            false => Welford::new(elements, device),
        })
    }

    /// The accumulators that `plan` asks for, each made by `welford` for its number of elements.
    pub(crate) fn with(plan: &Plan, welford: impl Fn(usize) -> Welford) -> Self {
        let parameter = |plan: &ParameterPlan| ParameterStatistics {
            elementwise: plan.elementwise.then(|| {
                let welford = welford(plan.shape.iter().product());
                match plan.variance {
                    true => welford,
                    false => welford.without_variance(),
                }
            }),
            groups: plan
                .groupings
                .iter()
                .map(|g| (g.clone(), welford(g.groups())))
                .collect(),
        };
        Self {
            samples: Seen::default(),
            parameters: plan
                .parameters
                .iter()
                .map(|(path, plan)| (path.clone(), parameter(plan)))
                .collect(),
            layers: welford(plan.totals.layers().len()),
            heads: welford(plan.totals.heads().len()),
        }
    }

    fn merge(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.layers.merge(&other.layers);
        self.heads.merge(&other.heads);
        for (ours, theirs) in self.parameters.values_mut().zip(other.parameters.values()) {
            if let (Some(ours), Some(theirs)) = (&mut ours.elementwise, &theirs.elementwise) {
                ours.merge(theirs);
            }
            for ((_, ours), (_, theirs)) in ours.groups.iter_mut().zip(&theirs.groups) {
                ours.merge(theirs);
            }
        }
    }

    /// The samples seen, in order, those that were skipped included.
    pub fn samples(&self) -> &[SampleRecord] {
        self.samples.records()
    }

    /// The number of samples in the statistics, `n`.
    pub fn count(&self) -> usize {
        self.counted().count()
    }

    /// Whether the samples are ones that collection could have seen: for what comes from a file.
    pub(crate) fn check_samples(&self) -> Result<u64, String> {
        let samples = self.samples();
        let tokens = samples
            .iter()
            .try_fold(0u64, |sum, s| sum.checked_add(s.tokens));
        match tokens {
            Some(_) if samples.iter().all(|s| s.tokens > 0) => Ok(self.count() as u64),
            _ => Err("a sample has no tokens, or all have too many".into()),
        }
    }

    /// The number of active tokens in the statistics.
    pub fn tokens(&self) -> u64 {
        let tokens = self.counted().map(|s| s.tokens);
        tokens.fold(0, u64::saturating_add)
    }

    fn counted(&self) -> impl Iterator<Item = &SampleRecord> {
        self.samples().iter().filter(|s| s.skipped.is_none())
    }

    /// The accumulators of the parameter at `path`.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn parameter(&self, path: &str) -> Result<&ParameterStatistics> {
        self.parameters
            .get(path)
            .ok_or_else(|| Error::UnknownParameter {
                parameter: path.into(),
                known: list(self.parameters.keys()),
            })
    }

    /// All parameters, by path.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &ParameterStatistics)> {
        self.parameters.iter().map(|(path, p)| (&**path, p))
    }

    /// Traces of whole layers: see [`Totals`].
    pub fn layers(&self) -> &Welford {
        &self.layers
    }

    /// Traces of whole heads: see [`Totals`].
    pub fn heads(&self) -> &Welford {
        &self.heads
    }
}

/// The accumulators of one parameter.
#[derive(Debug, Clone)]
pub struct ParameterStatistics {
    pub(crate) elementwise: Option<Welford>,
    pub(crate) groups: Vec<(Grouping, Welford)>,
}

impl ParameterStatistics {
    /// Every element by itself, flattened, if that was asked for.
    pub fn elementwise(&self) -> Option<&Welford> {
        self.elementwise.as_ref()
    }

    /// The groupings and their accumulators: none, one, or for heads one per block.
    pub fn groups(&self) -> &[(Grouping, Welford)] {
        &self.groups
    }

    /// The groups of one label, such as `head.Q` or `channel`.
    pub fn group(&self, label: &str) -> Option<&Welford> {
        self.groups
            .iter()
            .find_map(|(grouping, welford)| (grouping.label() == label).then_some(welford))
    }
}
