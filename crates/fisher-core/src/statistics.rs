//! The accumulators of several tasks, with all that says what they are.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;

use burn::config::Config;
use burn::module::{Module, ParamGroup};
use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::catalogue::{Catalogue, Parameter, Role};
use crate::error::list;
use crate::gradient::{Contribution, ContributionUnit, Gradient, GradientUnit, PerToken, TokenSum};
use crate::group::{Grouping, Reduction, Scheme};
use crate::heads::HeadLayout;
use crate::provenance::{FisherKind, Provenance, hash_weights};
use crate::sample::{Sample, Tokens};
use crate::totals::{BatchTotals, Totals};
use crate::welford::{Welford, accumulation_dtype};
use crate::{Error, Result};

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
    /// Which Fisher the gradients that will come are of.
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
                reason: "the layout leaves out parameters that are named as attention projections"
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

/// What is accumulated of every parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) parameters: BTreeMap<String, ParameterPlan>,
    pub(crate) totals: Totals,
    pub(crate) compensated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParameterPlan {
    pub(crate) shape: Vec<usize>,
    pub(crate) role: Role,
    pub(crate) elementwise: bool,
    /// Of elements.
    #[serde(default = "yes")]
    pub(crate) variance: bool,
    pub(crate) groupings: Vec<Grouping>,
}

fn yes() -> bool {
    true
}

/// Per-sample token-sum gradients of a batch, for all parameters of the statistics.
#[derive(Debug, Clone)]
pub struct GradientBatch {
    samples: Vec<Sample>,
    gradients: BTreeMap<String, Gradient<TokenSum>>,
}

impl GradientBatch {
    /// A batch without gradients yet.
    pub fn new(samples: Vec<Sample>) -> Self {
        Self {
            samples,
            gradients: BTreeMap::new(),
        }
    }

    /// Add the gradients of the parameter at `path`, one row a sample.
    pub fn insert(&mut self, path: impl Into<String>, gradient: Gradient<TokenSum>) {
        self.gradients.insert(path.into(), gradient);
    }

    /// Keep only the gradients whose path `keep` accepts.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.gradients.retain(|path, _| keep(path));
    }

    /// The samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The gradients of the parameter at `path`.
    pub fn get(&self, path: &str) -> Option<&Gradient<TokenSum>> {
        self.gradients.get(path)
    }

    /// All gradients, by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Gradient<TokenSum>)> {
        self.gradients.iter().map(|(path, g)| (&**path, g))
    }
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
    /// [`Error::MissingParameter`], [`Error::UnknownParameter`] and [`Error::Shape`] when the
    /// gradients are not those of the statistics' parameters, [`Error::NonFinite`] when a squared
    /// gradient is NaN or infinite, [`Error::Device`] when that cannot be read.
    pub fn push(&mut self, task: &str, batch: GradientBatch) -> Result<()> {
        self.check_whole()?;
        self.check(&batch)?;
        if batch.samples.is_empty() {
            return Ok(());
        }
        let GradientBatch { samples, gradients } = batch;
        let tokens = Tokens::of(&samples, &self.device);
        let dtype = match self.plan.compensated {
            true => DType::F32,
            false => accumulation_dtype(&self.device),
        };
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
        task.samples
            .extend(samples.into_iter().map(|s| SampleRecord {
                id: s.id().into(),
                tokens: s.tokens(),
                skipped: None,
                step: None,
            }));
        Ok(())
    }

    /// Record that a sample of `task` was left out because of its gradient in `parameter`.
    pub fn skip(&mut self, task: &str, sample: &Sample, parameter: impl Into<String>) {
        let (plan, device) = (&self.plan, &self.device);
        self.tasks
            .entry(task.to_owned())
            .or_insert_with(|| TaskStatistics::new(plan, device))
            .samples
            .push(SampleRecord {
                id: sample.id().into(),
                tokens: sample.tokens(),
                skipped: Some(parameter.into()),
                step: None,
            });
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
                    self.tasks.insert(name, theirs);
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
            // Those that come are fewer than those that are there.
            let coming: HashSet<_> = theirs.samples.iter().map(|s| (s.step, &*s.id)).collect();
            let steps: HashSet<_> = coming.iter().map(|(step, _)| *step).collect();
            let mut samples = ours.samples.iter().filter(|s| steps.contains(&s.step));
            if let Some(twice) = samples.find(|s| coming.contains(&(s.step, &*s.id))) {
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

    fn check(&self, batch: &GradientBatch) -> Result<()> {
        for (path, gradient) in &batch.gradients {
            let Some(plan) = self.plan.parameters.get(path) else {
                return Err(Error::UnknownParameter {
                    parameter: path.clone(),
                    known: list(self.plan.parameters.keys()),
                });
            };
            let device = gradient.tensor().device();
            if device.is_autodiff() || device != self.device {
                return Err(Error::Shape {
                    parameter: path.clone(),
                    expected: format!("a gradient on {:?}, without autodiff", self.device),
                    found: format!("one on {device:?}"),
                });
            }
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

impl Plan {
    /// Whether it fits together: for what comes from a file.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, parameter) in &self.parameters {
            let elements = parameter
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d));
            let fits = |grouping: &Grouping| grouping.shape() == parameter.shape;
            if elements.is_none() || !parameter.groupings.iter().all(fits) {
                return Err(format!("the groups of `{path}` do not fit its shape"));
            }
        }
        let shape = |path: &str| self.parameters.get(path).map(|p| &*p.shape);
        self.totals.check(shape)
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

/// A sample that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The sample's id.
    pub id: String,
    /// Its active tokens.
    pub tokens: u64,
    /// The parameter because of which it was left out, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The step of training at whose weights it was seen, where weights moved meanwhile: see
    /// [`Statistics::during_training`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
}

/// The accumulators of one task.
#[derive(Debug, Clone)]
pub struct TaskStatistics {
    pub(crate) samples: Vec<SampleRecord>,
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
            samples: Vec::new(),
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
        &self.samples
    }

    /// The number of samples in the statistics, `n`.
    pub fn count(&self) -> usize {
        self.counted().count()
    }

    /// Whether the samples are ones that collection could have seen: for what comes from a file.
    pub(crate) fn check_samples(&self) -> Result<u64, String> {
        let tokens = self
            .samples
            .iter()
            .try_fold(0u64, |sum, s| sum.checked_add(s.tokens));
        match tokens {
            Some(_) if self.samples.iter().all(|s| s.tokens > 0) => Ok(self.count() as u64),
            _ => Err("a sample has no tokens, or all have too many".into()),
        }
    }

    /// The number of active tokens in the statistics.
    pub fn tokens(&self) -> u64 {
        self.counted().map(|s| s.tokens).sum()
    }

    fn counted(&self) -> impl Iterator<Item = &SampleRecord> {
        self.samples.iter().filter(|s| s.skipped.is_none())
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
