//! Moving averages of whole statistics, over the course of training.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::accumulators::Statistics;
use super::task::TaskStatistics;
use crate::container::{Contents, WRITER, data, encode, write};
use crate::error::{Error, Result, format_error, list};
use crate::gradient::{ContributionUnit, PerToken};
use crate::moments::{Ema, accumulation_dtype};

/// The version of the file format that this library writes and reads.
const SCHEMA: u64 = 1;
const METADATA: &str = "fisher_averages";

/// An exponential moving average ([`Ema`]) of every mean of [`Statistics`]: elements, groups,
/// layers and heads, as far as the statistics have them.
///
/// Each [`Averages::push`] counts as one value, whatever its number of samples.
#[derive(Debug, Clone)]
pub struct Averages<C: ContributionUnit = PerToken> {
    beta: f64,
    /// Task to the name of a mean, as in the file of statistics, to its average.
    tasks: BTreeMap<String, BTreeMap<String, Ema>>,
    unit: PhantomData<C>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    schema: u64,
    writer: String,
    unit: String,
    beta: f64,
    /// Task to the number of values.
    steps: BTreeMap<String, u64>,
    sha256: String,
}

impl<C: ContributionUnit> Averages<C> {
    /// Averages that have seen nothing.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `0 ≤ β < 1`.
    pub fn new(beta: f64) -> Result<Self> {
        Ema::new(beta, 0, &Device::default())?;
        Ok(Self {
            beta,
            tasks: BTreeMap::new(),
            unit: PhantomData,
        })
    }

    /// Take in the means of `task` as one value.
    ///
    /// # Errors
    /// [`Error::UnknownTask`]; [`Error::Incompatible`] when the statistics have other accumulators
    /// than those before, or lie on another device. Nothing is changed then.
    pub fn push(&mut self, statistics: &Statistics<C>, task: &str) -> Result<()> {
        let means = statistics.task(task)?.means(statistics.device());
        let ours = self.tasks.values().flat_map(BTreeMap::values).next();
        let ours = ours.map(|average| average.biased().device());
        if let Some(ours) = ours.filter(|ours| ours != statistics.device()) {
            return Err(Error::Incompatible {
                what: "the device".into(),
                ours: format!("{ours:?}"),
                theirs: format!("{:?}", statistics.device()),
            });
        }
        let averages = self.tasks.entry(task.to_owned()).or_default();
        let fits = |(name, mean): (&String, &Tensor<1>)| {
            let average = averages.get(name).map(|average| average.biased().dims());
            average == Some(mean.dims())
        };
        let known = averages.len() == means.len() && means.iter().all(fits);
        if !(averages.is_empty() || known) {
            return Err(Error::Incompatible {
                what: "the averages' accumulators".into(),
                ours: list(averages.keys()),
                theirs: list(means.keys()),
            });
        }
        for (name, mean) in means {
            match averages.get_mut(&name) {
                Some(average) => average.push(mean),
                None => {
                    let mut average = Ema::from_parts(self.beta, 0, mean.zeros_like())?;
                    average.push(mean);
                    averages.insert(name, average);
                }
            }
        }
        Ok(())
    }

    /// β.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// Names of the tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The number of values of `task`.
    pub fn steps(&self, task: &str) -> u64 {
        let averages = self.tasks.get(task).and_then(|all| all.values().next());
        averages.map_or(0, Ema::steps)
    }

    /// The average of every element of the parameter at `path`, flattened.
    pub fn elementwise(&self, task: &str, path: &str) -> Option<Tensor<1>> {
        self.get(task, &format!("mean/{path}"))
    }

    /// The average of the groups of `label` in the parameter at `path`.
    pub fn group(&self, task: &str, path: &str, label: &str) -> Option<Tensor<1>> {
        self.get(task, &format!("group_mean/{label}/{path}"))
    }

    /// The averages of whole layers: see [`Totals`](crate::grouping::Totals).
    pub fn layers(&self, task: &str) -> Option<Tensor<1>> {
        self.get(task, "total_mean/layer")
    }

    /// The averages of whole heads.
    pub fn heads(&self, task: &str) -> Option<Tensor<1>> {
        self.get(task, "total_mean/head")
    }

    fn get(&self, task: &str, name: &str) -> Option<Tensor<1>> {
        self.tasks.get(task)?.get(name)?.value()
    }

    /// Write the averages to `path`, atomically: a `.safetensors` file with `m`, before the division
    /// by `1−βᵗ`, as `{task}/mean/{parameter}`, `{task}/group_mean/{label}/{parameter}`,
    /// `{task}/total_mean/layer|head`; metadata `fisher_averages` holds `schema`, `unit`, `beta`
    /// and `steps`, the `t` of each task.
    ///
    /// # Errors
    /// As [`Statistics::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let mut tensors = BTreeMap::new();
        for (task, averages) in &self.tasks {
            for (name, average) in averages {
                let data = average.biased().clone().try_into_data();
                let data = data.map_err(Error::device)?;
                tensors.insert(format!("{}/{name}", encode(task)), data.into());
            }
        }
        let metadata = Metadata {
            schema: SCHEMA,
            writer: WRITER.into(),
            unit: C::NAME.into(),
            beta: self.beta,
            steps: self.tasks().map(|t| (t.into(), self.steps(t))).collect(),
            sha256: String::new(),
        };
        write(path, METADATA, &tensors, metadata, |m| &mut m.sha256)
    }

    /// Read averages from `path` to `device`, as they were; in float32 where they were float64 and
    /// `device` has none.
    ///
    /// # Errors
    /// As [`Statistics::load`].
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let format = |reason: String| format_error(path, reason);
        let file = Contents::open(path, METADATA)?;
        file.check_version(SCHEMA..=SCHEMA)?;
        let metadata: Metadata = file.metadata()?;
        if metadata.unit != C::NAME {
            return Err(Error::Incompatible {
                what: "the contribution unit".into(),
                ours: C::NAME.into(),
                theirs: metadata.unit,
            });
        }
        let views = file.tensors(&metadata.sha256)?;
        let device = device.clone().without_autodiff();
        let mut averages = Self::new(metadata.beta)?;
        let mut found = 0;
        for (task, &steps) in &metadata.steps {
            let prefix = format!("{}/", encode(task));
            let all = averages.tasks.entry(task.clone()).or_default();
            for (name, view) in &views {
                let Some(rest) = name.strip_prefix(&prefix) else {
                    continue;
                };
                let data = data(name, view).map_err(format)?;
                let dtype = match data.dtype() {
                    DType::F64 => accumulation_dtype(&device),
                    other => other,
                };
                let biased = Tensor::from_data(data.convert_dtype(dtype), (&device, dtype));
                let average = Ema::from_parts(metadata.beta, steps, biased)?;
                all.insert(rest.to_owned(), average);
            }
            if all.is_empty() && steps > 0 {
                return Err(format(format!("task `{task}` has no averages")));
            }
            found += all.len();
        }
        if found < views.len() {
            return Err(format(
                "it has tensors of tasks that it does not name".into(),
            ));
        }
        Ok(averages)
    }
}

impl TaskStatistics {
    /// All means, by their names in the file; none before the first sample.
    fn means(&self, device: &Device) -> BTreeMap<String, Tensor<1>> {
        let totals = [("layer", self.layers()), ("head", self.heads())];
        let totals = totals.into_iter().filter_map(|(name, moments)| {
            let mean = moments.mean.filter(|mean| !mean.is_empty())?;
            let dtype = accumulation_dtype(device);
            let mean = Tensor::from_data(mean.as_slice(), (device, dtype));
            Some((format!("total_mean/{name}"), mean))
        });
        let parameters = self.parameters.iter().flat_map(|(path, parameter)| {
            let elements = parameter.elementwise.iter();
            let elements = elements.map(move |welford| (format!("mean/{path}"), welford));
            let groups = parameter.groups.iter();
            elements.chain(groups.map(move |(grouping, welford)| {
                (format!("group_mean/{}/{path}", grouping.label()), welford)
            }))
        });
        let filled = parameters.filter(|(_, welford)| welford.elements() > 0);
        let means = filled.filter_map(|(name, welford)| Some((name, welford.mean()?)));
        totals.chain(means).collect()
    }
}
