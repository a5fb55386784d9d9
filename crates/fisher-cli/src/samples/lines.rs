//! The lines of a file of JSON lines, and what a file is that is none.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::error::InputError;
use super::task::TaskFile;
use crate::content::{BOM, Content};

/// Read the lines of a file with their numbers, from 1.
///
/// # Errors
/// [`InputError::Io`] when it cannot be read, [`InputError::NotLines`] when it is something else.
pub(super) fn lines(
    path: &Path,
) -> Result<impl Iterator<Item = std::io::Result<(usize, Vec<u8>)>>, InputError> {
    let io = |source| InputError::Io {
        path: path.into(),
        source,
    };
    let not = |what: String, advice: String| InputError::NotLines {
        path: path.into(),
        what,
        advice,
    };
    if path.is_dir() {
        let advice = "give a file of JSON lines, one sample a line";
        return Err(not("a folder".into(), advice.into()));
    }
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let start = reader.fill_buf().map_err(io)?;
    if let Some(content) = Content::of(start) {
        return Err(not(content.to_string(), content.advice(path)));
    }
    if let Some((what, advice)) = spread(start) {
        let file = path.display();
        return Err(not(
            what.into(),
            advice.replace("FILE", &format!("'{file}'")),
        ));
    }
    if start.starts_with(BOM) {
        reader.consume(BOM.len());
    }
    let lines = reader.split(b'\n').zip(1..);
    Ok(lines.map(|(line, number)| Ok((number, line?))))
}

/// Whether the file of a task is there and of lines, as far as its beginning says. A pipe is not read: what came out of it
/// would be missing later.
///
/// # Errors
/// Those of [`lines`].
pub(crate) fn there(task: &TaskFile) -> Result<(), InputError> {
    let about = std::fs::metadata(&task.path).map_err(|source| InputError::Io {
        path: task.path.clone(),
        source,
    })?;
    if about.is_file() || about.is_dir() {
        drop(lines(&task.path)?);
    }
    Ok(())
}

/// JSON that does not stand on one line each, and what to do.
fn spread(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let start = start.strip_prefix(BOM).unwrap_or(start).trim_ascii_start();
    let inside = |open: u8| {
        let rest = start.strip_prefix(&[open])?;
        let blank = rest.iter().take_while(|b| b.is_ascii_whitespace());
        let breaks = blank.clone().any(|b| *b == b'\n');
        Some((breaks, rest.get(blank.count()).copied()))
    };
    match (inside(b'['), inside(b'{')) {
        (Some((breaks, next)), _) if breaks || next == Some(b'{') => Some((
            "one JSON list, not a line a sample",
            "turn it into lines by `jq -c '.[]' FILE > NEW`",
        )),
        (_, Some((true, Some(b'"')))) => Some((
            "JSON with objects over several lines, not a line a sample",
            "turn it into lines by `jq -c . FILE > NEW`",
        )),
        _ => None,
    }
}

/// What more to say of a line that is no JSON.
pub(super) fn hint(line: &[u8]) -> &'static str {
    let line = line.trim_ascii();
    if line.starts_with(b"{") || line.starts_with(b"[") || std::str::from_utf8(line).is_err() {
        ""
    } else if line.iter().any(|b| matches!(b, b',' | b'\t' | b';')) {
        ": it looks like a table (CSV); turn it into JSON lines by `python3 -c \"import pandas; \
         pandas.read_csv('FILE').to_json('NEW', orient='records', lines=True)\"`"
    } else {
        ": each line is an object, such as {\"text\": \"..\"}"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_over_several_lines_is_told_from_lines() {
        for (text, found) in [
            ("[{\"a\": 1}, {\"a\": 2}]", "one JSON list"),
            ("[\n  {\n", "one JSON list"),
            ("[\r\n", "one JSON list"),
            ("{\n  \"a\": 1", "objects over several lines"),
            ("{\"a\": 1}\n{\"a\": 2}", ""),
            ("{ \"a\": 1}\n", ""),
            ("{\n", ""),
            ("[1, 2]\n", ""),
            ("", ""),
        ] {
            let what = spread(text.as_bytes()).map_or("", |(what, _)| what);
            assert!(
                what.contains(found) && what.is_empty() == found.is_empty(),
                "{text}: {what}"
            );
        }
    }
}
