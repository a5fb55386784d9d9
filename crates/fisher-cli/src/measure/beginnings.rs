//! How the samples begin that a report names.

use std::collections::BTreeMap;
use std::path::Path;

use super::losses::TokenLoss;
use super::measured::Measured;
use super::outcome::Result;
use crate::samples::{TaskData, Text};
use fisher_core::statistics::Statistics;

/// Of each task, by id: what a sample begins with.
pub type Beginnings = BTreeMap<String, BTreeMap<String, String>>;

/// Tokens that are taken for a beginning, and the letters that are kept of it.
const TOKENS: usize = 24;
const LETTERS: usize = 72;

/// How the samples with the lowest and the highest loss of each task begin: as text by the tokenizer of the folder
/// `model`, or as token numbers where it has none.
///
/// # Errors
/// As [`TokenLoss::of`].
pub fn beginnings(
    model: &Path,
    data: &[TaskData],
    tasks: &[Measured],
    statistics: &Statistics,
) -> Result<Beginnings> {
    let text = Text::read(model).ok();
    let mut found = Beginnings::new();
    for (data, task) in data.iter().zip(tasks) {
        let named = TokenLoss::of(task, statistics)?.range.map(|(_, id)| id);
        let samples = data.samples.iter().filter(|s| named.contains(&s.id));
        let begins = samples.map(|s| (s.id.clone(), beginning(&s.tokens, text.as_ref())));
        found.insert(task.name.clone(), begins.collect());
    }
    Ok(found)
}

fn beginning(tokens: &[i64], text: Option<&Text>) -> String {
    let first = &tokens[..tokens.len().min(TOKENS)];
    let words = match text {
        Some(text) => text.pieces(first).concat(),
        None => {
            let numbers: Vec<String> = first.iter().map(i64::to_string).collect();
            format!("tokens {}", numbers.join(" "))
        }
    };
    let short: String = words.chars().take(LETTERS).collect();
    match short.len() < words.len() || first.len() < tokens.len() {
        true => format!("{short} …"),
        false => short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_short_and_says_that_there_is_more() {
        assert_eq!(beginning(&[3, 5], None), "tokens 3 5");
        let long = beginning(&[100; 100], None);
        assert!(
            long.starts_with("tokens 100 100") && long.ends_with(" …"),
            "{long}"
        );
        assert!(long.chars().count() <= LETTERS + 2, "{long}");
    }
}
