//! What can go wrong while gradients are collected.

/// The result of this crate's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate. Every variant names what it is about and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the statistics.
    #[error(transparent)]
    Core(#[from] fisher_core::Error),

    /// An error of an analysis.
    #[error(transparent)]
    Metrics(#[from] fisher_metrics::Error),

    /// A parameter of the model has no elementwise Fisher.
    #[error(
        "the statistics hold no elementwise Fisher of `{parameter}`; collect with `elementwise` \
         for all parameters that are to be used"
    )]
    NoFisher {
        /// Path of the parameter.
        parameter: String,
    },

    /// Statistics on another device than the model whose gradients they are to take.
    #[error(
        "the model is on {model} and the statistics on {statistics}; make them with \
         `StatisticsConfig::init` of this very model, or bring them there with \
         `Statistics::to_device`"
    )]
    OtherDevice {
        /// The model's device.
        model: String,
        /// That of the statistics.
        statistics: String,
    },

    /// Nothing to merge, or weights that make no average.
    #[error(
        "a merge needs at least one model, and finite weights that are not negative and not all 0"
    )]
    NothingToMerge,

    /// One parameter in the first of several models, two in another.
    #[error(
        "`{second}` is tied to `{first}` in the first model and has weights of its own in that of task \
         `{task}`: tie it there, or untie it in the first"
    )]
    Untied {
        /// Path of the parameter in the first model.
        first: String,
        /// The other path it is used at there.
        second: String,
        /// The task of the other model.
        task: String,
    },

    /// A task that is protected already.
    #[error(
        "task `{task}` is protected already; protecting it twice would count its samples twice. Begin \
         a new `Ewc`, or collect what was learned since under another name"
    )]
    Protected {
        /// The task.
        task: String,
    },

    /// A task held to weights of its own would be moved into the running penalty.
    #[error(
        "task `{task}` is held to the weights it was protected at; `protect_online` would hold it to other \
         ones and let it fade. Protect every task online, or none"
    )]
    ProtectedApart {
        /// The task.
        task: String,
    },

    /// Two parameters that train have one id, so that Burn keeps one gradient for both.
    #[error(
        "`{first}` and `{second}` share a parameter id but not their weights, and optimizers know \
         parameters by id: freeze the copy with `no_grad`, or give it ids of its own with `new_ids`"
    )]
    SharedId {
        /// Path of the one.
        first: String,
        /// Path of the other.
        second: String,
    },

    /// The data set failed to give a batch.
    #[error("the data loader failed: {reason}")]
    Data {
        /// The data set's error.
        reason: String,
    },

    /// The loss of a sample does not depend on any parameter that requires gradients.
    #[error(
        "the loss of sample `{sample}` does not depend on any trainable parameter; is the model \
         on an autodiff device, and is the loss computed without `detach`, `inner` or `valid`?"
    )]
    NoGraph {
        /// The sample's id.
        sample: String,
    },

    /// The same id twice in one task.
    #[error(
        "sample `{sample}` is already in task `{task}`; counting it twice would shrink the error \
         bars. Ids must differ within a task: number the samples of the data set, not of the batch"
    )]
    DuplicateSample {
        /// The task.
        task: String,
        /// The sample's id.
        sample: String,
    },

    /// A batch of one sample does not have one loss.
    #[error(
        "the model gives {found} losses for sample `{sample}` alone; `SampleBatch::sample` must \
         keep one sample and `SampleLoss::sample_losses` give one loss for each"
    )]
    Losses {
        /// The sample's id.
        sample: String,
        /// How many losses there were.
        found: usize,
    },

    /// A batch does not have one loss for each sample.
    #[error(
        "the model gives {found} losses for a batch of {samples} samples; \
         `SampleLoss::sample_losses` must give one for each id of the batch"
    )]
    BatchLosses {
        /// Samples of the batch.
        samples: usize,
        /// How many losses there were.
        found: usize,
    },

    /// A label that is no class of the model.
    #[error(
        "sample `{sample}` has the label {label}, and the model has {classes} classes, from 0: mark \
         labels that do not count by -100 (`IGNORE`), or name them by `Labels::with_pad_tokens`"
    )]
    Label {
        /// The sample's id.
        sample: String,
        /// Its label.
        label: i64,
        /// How many classes there are.
        classes: usize,
    },

    /// Losses of another Fisher than the one collected.
    #[error(
        "the losses are of the {found} Fisher and the {expected} one is collected: `with_kind` of the configuration of \
         statistics and store says which one they are of, and `CollectorConfig::with_fisher` how it is collected. As they \
         are, batches give the empirical Fisher, or the Monte-Carlo one where their labels were drawn by `Labels::draw` \
         (or `SampleLosses::of_drawn_targets`)"
    )]
    LossKind {
        /// Kind of statistics and store, or of the batches before.
        expected: fisher_core::kind::FisherKind,
        /// Kind of the losses.
        found: fisher_core::kind::FisherKind,
    },

    /// Losses that do not say what the model predicts.
    #[error(
        "labels cannot be drawn: what the model predicts does not follow from its losses. Make them by \
         `SampleLosses::cross_entropy`, `next_token`, `classification`, `bernoulli` or `gaussian`, and do not `map` \
         them; or draw targets yourself, say so by `of_drawn_targets`, and collect them as they are"
    )]
    NoPredictions,

    /// A batch whose labels cannot be replaced.
    #[error(
        "labels cannot be replaced: the batch passes {found} of them through `SampleMapper::tensor` as `Labels` or \
         `Targets`, and one is needed. Keep its labels as such (`Labels::<NextToken>::from(tensor)`), of the same form \
         as the loss takes them"
    )]
    Labels {
        /// How many there are.
        found: usize,
    },

    /// A Fisher that cannot be collected this way.
    #[error("the {kind} Fisher: {reason}")]
    Fisher {
        /// Which.
        kind: fisher_core::kind::FisherKind,
        /// What does not fit, and what to do.
        reason: String,
    },

    /// Nothing to collect from.
    #[error("there were no batches; give at least one")]
    NoBatches,

    /// A batch that cannot show whether samples mix.
    #[error("give a batch of at least two samples: one cannot show whether the model mixes them")]
    OneSample,

    /// A batch cannot be traced.
    #[error(
        "the model cannot be traced: {reason}. A forward pass that reads values (`into_data`, `into_scalar`), \
         or that calls `inner` or `backward`, has to go by the loop: `Engine::Auto`"
    )]
    Untraced {
        /// What stood in the way.
        reason: String,
    },

    /// Samples of a batch see each other.
    #[error(
        "the loss of a sample depends on the others in its batch: a sum over all samples goes into {operation}; \
         negatives from the batch, batch statistics, or a division by the size of the batch? Where it is a sum of each \
         sample's own, by segments, `Engine::Loop` is right"
    )]
    Mixed {
        /// The first operation that takes a sum over the samples together with samples.
        operation: String,
    },

    /// The gradients of some parameters do not follow from a trace.
    #[error(
        "a trace does not give the gradients of these parameters: {parameters}; use `Engine::Auto`"
    )]
    LeftToTheLoop {
        /// Paths of the parameters, and why.
        parameters: String,
    },

    /// A sample has another number of active tokens in its batch than alone.
    #[error(
        "sample `{sample}` has {together} active tokens in its batch and {alone} by itself: \
         `sample_losses` must count the same ones in a batch and in what `SampleBatch::sample` gives"
    )]
    TokensDisagree {
        /// The sample's id.
        sample: String,
        /// `T_i` in the batch.
        together: u64,
        /// `T_i` of the sample alone.
        alone: u64,
    },

    /// A sample has another loss in its batch than alone.
    #[error(
        "sample `{sample}` loses {together:e} in its batch and {alone:e} by itself: does \
         `SampleBatch::sample` give that very sample, does the model mix samples (negatives from the \
         batch, batch statistics, padding without a mask), or is the loss divided by the size of the batch?"
    )]
    LossesDisagree {
        /// The sample's id.
        sample: String,
        /// `L_i` in the batch.
        together: f64,
        /// `L_i` of the sample alone.
        alone: f64,
    },

    /// A trace and the loop give different gradients.
    #[error(
        "the gradient of `{parameter}` for sample `{sample}` differs by {distance:e} between a trace of its batch \
         and the loop, which gives it a norm of {norm:e}: does `SampleBatch::sample` give that very sample, does \
         the model mix samples, or draw anything at random? `Engine::Loop` does without traces"
    )]
    Disagree {
        /// Path of the parameter.
        parameter: String,
        /// The sample's id.
        sample: String,
        /// Norm of the difference.
        distance: f64,
        /// Norm of the gradient by the loop.
        norm: f64,
    },

    /// The statistics belong to a model with other weights.
    #[error(
        "the statistics belong to another model: its weights hash to {expected}, this model's to \
         {found}; begin new statistics for it"
    )]
    OtherModel {
        /// Hash in the statistics.
        expected: String,
        /// Hash of the model given.
        found: String,
    },

    /// A merged parameter was not found.
    #[error(
        "`{parameter}` was not solved: after {iterations} iterations {residual:e} of the right side is left; raise `epsilon` \
         or `iterations`"
    )]
    Unsolved {
        /// The parameter.
        parameter: String,
        /// Iterations.
        iterations: usize,
        /// What is left, relative to the right side.
        residual: f64,
    },

    /// Statistics and store are not of the same Fisher.
    #[error(
        "the statistics are of the {statistics} Fisher and the store of the {store} one; give both \
         configurations the same `kind`"
    )]
    OtherKind {
        /// Kind of the statistics.
        statistics: fisher_core::kind::FisherKind,
        /// Kind of the store.
        store: fisher_core::kind::FisherKind,
    },

    /// The data does not begin with the samples that a checkpoint holds.
    #[error(
        "cannot resume task `{task}`: sample {position} was `{expected}` when the checkpoint was \
         written and is `{found}` now; give the same data in the same order, or begin anew \
         without the checkpoint"
    )]
    OtherData {
        /// The task.
        task: String,
        /// Position in the data, from 0.
        position: usize,
        /// Id in the checkpoint.
        expected: String,
        /// Id in the data, or `the end of the data`.
        found: String,
    },

    /// Another collection's checkpoint is where one is to be written.
    #[error(
        "{} is the checkpoint of another collection and would be replaced: these statistics lack \
         what it holds ({missing}). Go on from it with `Collector::resume`, or give every \
         collection a path of its own", path.display()
    )]
    OtherCheckpoint {
        /// The file.
        path: std::path::PathBuf,
        /// The first thing that would be lost.
        missing: String,
    },

    /// Gates that have not seen what the statistics have, or the other way round.
    #[error(
        "the statistics have {statistics} samples of task `{task}` and the gates {gates}; fill both from the \
         beginning, or the gates in a pass of their own (`Capture::accumulate`)"
    )]
    GatesBehind {
        /// The task.
        task: String,
        /// Samples in the statistics.
        statistics: usize,
        /// Samples in the gates.
        gates: usize,
    },

    /// A part of a model that cannot be put at its mean.
    #[error(
        "mean ablation of `{parameter}` is out of reach: {reason}; use another kind of ablation for it"
    )]
    NoMean {
        /// Path of the parameter.
        parameter: String,
        /// Why.
        reason: String,
    },

    /// A loss that is NaN or infinite, with or without a part of the model.
    #[error(
        "the loss of sample `{sample}` is NaN or infinite, in the whole model or without {gate}"
    )]
    AblatedLoss {
        /// What was taken out.
        gate: String,
        /// The sample.
        sample: String,
    },

    /// A loss that is NaN or infinite, before or after a step.
    #[error(
        "the loss of sample `{sample}` is NaN or infinite before or after the step; take a smaller one, or leave \
         the sample out"
    )]
    MovedLoss {
        /// The sample.
        sample: String,
    },

    /// A checkpoint that would never be written.
    #[error("a checkpoint every 0 samples is never written; give a number above 0")]
    CheckpointEvery,

    /// A hook that cannot work as it is set.
    #[error("Fisher hook: {reason}")]
    Hook {
        /// What does not fit, and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn no_fisher(path: &str) -> Self {
        Self::NoFisher {
            parameter: path.into(),
        }
    }
}
