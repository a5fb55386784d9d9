//! The result of the program's steps.

/// The result of a step; an error is told in words.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
