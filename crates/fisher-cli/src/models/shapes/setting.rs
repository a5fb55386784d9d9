//! What `config.json` may say about one thing.

use super::super::error::Result;
use super::super::fields::Fields;

/// What always holds in a family; or what a field says, and holds where it is missing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Setting<T> {
    Is(T),
    Field(&'static str, T),
}

impl<T> Setting<T> {
    /// What holds, given a way to read a field with a default.
    pub(super) fn read(self, field: impl FnOnce(&str, T) -> Result<T>) -> Result<T> {
        match self {
            Self::Is(value) => Ok(value),
            Self::Field(name, default) => field(name, default),
        }
    }
}

/// A number by the names that its field had over time, of which the first that is there counts, and
/// what it is where there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number(pub(super) &'static [&'static str], pub(super) Option<usize>);

impl Number {
    /// The name that is there.
    pub(super) fn name(self, fields: &Fields) -> &'static str {
        let there = |name: &&&str| fields.get(name).is_some();
        self.0.iter().find(there).unwrap_or(&self.0[0])
    }

    pub(super) fn read(self, fields: &Fields) -> Result<usize> {
        fields.number(self.name(fields), self.1)
    }
}
