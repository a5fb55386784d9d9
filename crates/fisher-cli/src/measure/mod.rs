//! From samples to findings: flags, tasks as JSON lines, losses and gradients by sample, every analysis
//! of them, and their files.

mod analysis;
mod args;
mod collect;
mod inputs;
mod jobs;
mod losses;
mod measured;
mod outcome;
mod per_token;
mod replace;
mod results;
mod selection;
mod tokens;
mod uses;
mod values;

pub use analysis::{Findings, Plan};
pub use args::{Analysis, JoinArgs, MeasureArgs};
pub(crate) use collect::losses_of;
pub use collect::{Collection, GRADIENTS, STATISTICS, collect, only_measured};
pub use inputs::{INPUTS, Inputs, model, said};
pub use losses::TokenLoss;
pub use measured::{Measured, key};
pub use outcome::Result;
pub use per_token::PerToken;
pub(crate) use replace::{remove_parts, write};
pub(crate) use replace::{remove_parts, write};
pub(crate) use results::SENTENCES;
pub use results::{REPORT, RESULTS, Tensors, report};
pub use selection::Selection;
pub use tokens::{LabelRow, SampleTokens, Share, TOKENS, TokenRow, per_token, tokens_of};
pub use uses::{Change, Cost, MERGED, Merged, Uses, changes, own_statistics, second, uses};
pub use values::{Bytes, Kind, Phases, Scale, Settings, parse_interference};
