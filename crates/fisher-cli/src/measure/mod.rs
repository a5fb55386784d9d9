//! From samples to findings: flags, tasks as JSON lines, losses and gradients by sample, every analysis
//! of them, and their files.

mod analysis;
mod args;
mod collect;
mod inputs;
mod jobs;
mod jsonl;
mod losses;
mod measured;
mod outcome;
mod replace;
mod results;
mod selection;
mod text;
mod uses;
mod values;

pub use analysis::{Findings, Plan};
pub use args::{Analysis, JoinArgs, MeasureArgs};
pub use collect::{Collection, GRADIENTS, STATISTICS, collect, only_measured};
pub use inputs::{INPUTS, Inputs, model, said};
pub use jsonl::{BadLine, InputError, Part, Reader, TaskData, TaskFile, batches};
pub use losses::TokenLoss;
pub use measured::{Measured, key};
pub use outcome::Result;
pub(crate) use replace::write;
pub(crate) use results::SENTENCES;
pub use results::{Tensors, report};
pub use selection::Selection;
pub use text::Text;
pub use uses::{Change, Cost, MERGED, Merged, Uses, changes, own_statistics, second, uses};
pub use values::{Bytes, Kind, Phases, Scale, Settings, parse_interference};
