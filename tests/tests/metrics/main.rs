//! What follows from numbers: importance, pruning, conflicts, interference, reports.

mod conflicts;
mod hostile;
mod importance;
mod interference;
mod pruning;
mod reports;
