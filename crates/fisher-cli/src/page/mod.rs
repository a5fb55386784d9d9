//! `report.html`: one file, no script, nothing to fetch.

mod conflicts;
mod glance;
mod health;
mod html;
mod importance;
mod interference;
mod merging;
mod overlap;
mod parts;
mod settings;
mod tasks;
mod tokens;

pub use html::{GENERATOR, PAGE, Page};
