//! What became of samples.

/// What became of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Its id.
    pub id: String,
    /// Its active tokens.
    pub tokens: u64,
    /// `L_i`; `None` when the sample was skipped.
    pub loss: Option<f64>,
    /// The parameters that its loss did not reach; by traces, that no loss of the batch did.
    pub unreached: Vec<String>,
}
