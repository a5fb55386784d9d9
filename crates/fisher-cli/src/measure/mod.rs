//! From samples to findings: flags, tasks as JSON lines, losses and gradients by sample, every analysis
//! of them, and their files.

mod adapted;
mod analysis;
mod args;
mod collect;
mod command;
mod forecast;
mod inputs;
mod jobs;
mod losses;
mod measured;
mod merge;
mod outcome;
mod per_token;
mod progress;
mod replace;
mod report;
mod results;
mod selection;
mod tokens;
mod uses;
mod values;

pub use adapted::AdapterArgs;
pub(crate) use analysis::DRAWN;
pub use analysis::{Findings, Plan, ReadWeights};
pub use args::{Analysis, JoinArgs, MeasureArgs};
pub(crate) use collect::losses_of;
pub use collect::{Collection, GRADIENTS, STATISTICS, collect, only_measured};
pub use command::COMMAND;
pub(crate) use command::{replayed, written};
pub(crate) use forecast::Forecast;
pub use inputs::{INPUTS, Inputs, model, said};
pub use losses::TokenLoss;
pub use measured::{Measured, key};
pub use merge::{Change, Cost, MERGED, Merged, changes, check_second, merge};
pub use outcome::Result;
pub use per_token::PerToken;
pub(crate) use replace::{remove_parts, write, write_out};
pub(crate) use report::SENTENCES;
pub use report::report;
pub use results::{REPORT, RESULTS, Saved, Tensors};
pub use selection::Selection;
pub use tokens::{LabelRow, SampleTokens, Share, TOKENS, TokenRow, per_token, tokens_of};
pub use uses::{Uses, uses};
pub use values::{Bytes, Kind, MergeScale, Phases, Precision, Scale, Settings, parse_interference};
