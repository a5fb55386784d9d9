//! `report.html`: one file, no script, nothing to fetch.

mod html;
mod parts;
mod samples;

pub use html::{GENERATOR, PAGE, Page};
