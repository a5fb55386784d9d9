//! What captures find, as metrics of Burn's training.

use std::fmt;
use std::sync::Arc;

use burn::tensor::TensorReadError;
use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry, format_float,
};

use super::history::{Reading, TaskReading};
use super::hook::FisherHook;

/// A number that a capture finds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantity {
    /// The Fisher of all parameters together, of this task.
    Trace(String),
    /// The share of the largest layer in the trace of this task.
    TopLayer(String),
    /// The share of the largest head in the trace of this task.
    TopHead(String),
    /// Signal over noise of a sample's gradient, `|G|² / tr Σ`, in this task: the inverse of the noise scale, which unlike that
    /// one is always a number. Needs `noise` in the configuration.
    Signal(String),
    /// The same over all tasks' samples. Needs `noise` in the configuration.
    PooledSignal,
    /// The mean cosine of samples of different tasks. Needs `compare` in the configuration.
    MeanCosine,
    /// The share of such pairs with a negative cosine. Needs `compare` in the configuration.
    ConflictRate,
}

impl Quantity {
    /// Its value in a reading; `None` where it is undefined or was not asked for.
    pub fn of(&self, reading: &Reading) -> Option<f64> {
        let task = |name: &String| reading.tasks.get(name);
        let top = |name: &String, of: fn(&TaskReading) -> Option<f64>| task(name).and_then(of);
        match self {
            Self::Trace(name) => task(name)?.trace,
            Self::TopLayer(name) => top(name, |task| task.top(&task.layers)),
            Self::TopHead(name) => top(name, |task| task.top(&task.heads)),
            Self::Signal(name) => Some(task(name)?.noise?.signal?.value),
            Self::PooledSignal => Some(reading.noise?.signal?.value),
            Self::MeanCosine => Some(reading.across?.mean_cosine),
            Self::ConflictRate => Some(reading.across?.conflict_rate),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trace(task) => write!(f, "Fisher trace of {task}"),
            Self::TopLayer(task) => write!(f, "Top layer's share of {task}"),
            Self::TopHead(task) => write!(f, "Top head's share of {task}"),
            Self::Signal(task) => write!(f, "Signal over noise of {task}"),
            Self::PooledSignal => write!(f, "Signal over noise"),
            Self::MeanCosine => write!(f, "Cosine across tasks"),
            Self::ConflictRate => write!(f, "Conflict rate"),
        }
    }
}

/// A [`Quantity`] as a numeric metric: a value at each capture, none between.
///
/// Made by [`FisherHook::metric`]. Adapts to any output of a model. Over an epoch it reads as its
/// last value.
#[derive(Clone)]
pub struct FisherMetric {
    quantity: Quantity,
    name: MetricName,
    source: Arc<dyn Source>,
    /// Readings that were looked at.
    seen: usize,
    /// Batches that were processed, those before a checkpoint included.
    batches: Option<u64>,
    /// The value of this very batch.
    current: Option<f64>,
    last: Option<f64>,
}

/// A hook without its type.
trait Source: Send + Sync {
    fn new_readings(&self, seen: usize) -> Vec<Reading>;
    fn resumed_at(&self) -> u64;
    fn workers(&self) -> u64;
}

impl<B: Send> Source for FisherHook<B> {
    fn new_readings(&self, seen: usize) -> Vec<Reading> {
        let state = self.state();
        state
            .history
            .readings()
            .get(seen..)
            .unwrap_or_default()
            .to_vec()
    }

    fn resumed_at(&self) -> u64 {
        self.state().resumed_at
    }

    fn workers(&self) -> u64 {
        self.shared.config.workers as u64
    }
}

impl<B> FisherHook<B> {
    /// What captures found, as a metric for Burn's training: it plots in the dashboard and lands in
    /// the logs. Of the training split (`metric_train_numeric`).
    pub fn metric(&self, quantity: Quantity) -> FisherMetric
    where
        B: Send + 'static,
    {
        FisherMetric::new(self.clone(), quantity)
    }
}

impl FisherMetric {
    fn new<B: Send + 'static>(hook: FisherHook<B>, quantity: Quantity) -> Self {
        Self {
            name: Arc::new(quantity.to_string()),
            quantity,
            source: Arc::new(hook),
            seen: 0,
            batches: None,
            current: None,
            last: None,
        }
    }

    fn entry(&self, value: Option<f64>) -> SerializedEntry {
        let show = |value: Option<f64>| match value {
            Some(value) if value < 0.0 => format!("-{}", format_float(-value, 3)),
            Some(value) => format_float(value, 3),
            None => SerializedEntry::NOT_AVAILABLE.into(),
        };
        let serialized = match value {
            Some(value) => NumericEntry::Value(value).serialize(),
            None => SerializedEntry::NOT_AVAILABLE.into(),
        };
        let formatted = format!("last capture {}", show(self.last));
        SerializedEntry::new(formatted, serialized)
    }
}

impl Metric for FisherMetric {
    type Input = ();

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: false,
        }
        .into()
    }

    fn update(
        &mut self,
        _item: &(),
        _metadata: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        // Events are processed after the fact: a later capture may be there already.
        let first = || self.source.resumed_at();
        let batches = self.batches.unwrap_or_else(first);
        let step = batches / self.source.workers();
        self.batches = Some(batches + 1);
        self.current = None;
        for reading in self.source.new_readings(self.seen) {
            if reading.step > step {
                break;
            }
            self.seen += 1;
            self.current = self.quantity.of(&reading);
        }
        self.last = self.current.or(self.last);
        Ok(self.entry(self.current))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry(self.last))
    }

    fn clear(&mut self) {
        self.current = None;
    }
}

impl Numeric for FisherMetric {
    fn value(&self) -> Option<NumericEntry> {
        self.current.map(NumericEntry::Value)
    }

    fn running_value(&self) -> Option<NumericEntry> {
        self.last.map(NumericEntry::Value)
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Final(self.last.unwrap_or(f64::NAN))
    }
}
