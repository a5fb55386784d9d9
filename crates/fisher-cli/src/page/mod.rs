//! `report.html`: one file, no script, nothing to fetch.

mod html;
mod parts;
mod samples;
mod tasks;
mod tokens;

pub use html::{GENERATOR, PAGE, Page};
