//! The head counts of an attention layer.

use burn::config::Config;

use crate::error::Result;

/// The head counts of an attention layer.
///
/// Head widths are read off the matrices and are not assumed to be hidden size / heads; give
/// them to have them checked.
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Query heads, `H`.
    pub heads: usize,
    /// Key/value heads, `H_kv`, a divisor of `H`; `H` when absent.
    pub kv_heads: Option<usize>,
    /// Width of a query or key head.
    pub d_k: Option<usize>,
    /// Width of a value head.
    pub d_v: Option<usize>,
    /// Whether the biases of Q, K and V are grouped by head too. The bias of O belongs to no head.
    #[config(default = false)]
    pub biases: bool,
}

impl AttentionConfig {
    pub(super) fn kv(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let kv = self.kv();
        if self.heads == 0 || kv == 0 || !self.heads.is_multiple_of(kv) {
            return Err(format!(
                "{kv} key/value heads do not divide {} heads",
                self.heads
            ));
        }
        Ok(())
    }
}
