//! A folder that takes another one's place: whatever ends the program, one of the two is there whole.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use fisher_core::container::sync_folder;
use fisher_core::{check_version, format_error, io_error};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// What is done to the disk.
#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    Sync(&'a Path),
}

impl Step<'_> {
    fn take(self) -> io::Result<()> {
        match self {
            Self::Rename(from, to) => std::fs::rename(from, to),
            Self::Remove(folder) => remove(folder),
            Self::Sync(folder) => sync_folder(folder),
        }
    }
}

/// Put the folder `new` at `place`. What was there goes aside first and is removed last, so that
/// [`whole`] finds either all along.
pub(super) fn replace(new: &Path, place: &Path) -> io::Result<()> {
    replace_by(new, place, |step| step.take())
}

fn replace_by(
    new: &Path,
    place: &Path,
    mut take: impl FnMut(Step) -> io::Result<()>,
) -> io::Result<()> {
    let aside = aside(place);
    let parent = place.parent().unwrap_or(Path::new("."));
    if aside.exists() {
        // A program was ended here before.
        take(if place.exists() {
            Step::Remove(&aside)
        } else {
            Step::Rename(&aside, place)
        })?;
    }
    if place.exists() {
        take(Step::Rename(place, &aside))?;
    }
    take(Step::Rename(new, place))?;
    take(Step::Sync(parent))?;
    if aside.exists() {
        take(Step::Remove(&aside))?;
    }
    Ok(())
}

/// Where the folder of this place is now.
pub(super) fn whole(place: &Path) -> PathBuf {
    let aside = aside(place);
    if !place.exists() && aside.exists() {
        aside
    } else {
        place.to_owned()
    }
}

/// Remove what is at this place and what was.
pub(super) fn remove_both(place: &Path) -> io::Result<()> {
    remove(&aside(place)).and_then(|()| remove(place))
}

/// Remove a folder, if it is there.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Write a file, and wait until it is on the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// An error of this file or folder.
pub(super) fn failed(path: &Path, source: io::Error) -> Error {
    io_error(path, source).into()
}

/// An error of what a file holds.
pub(super) fn malformed(path: &Path, reason: impl Display) -> Error {
    format_error(path, reason).into()
}

/// What `json` in the file at `path` says, which is of version `schema`; errors begin with `place`.
pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    place: &str,
    json: &[u8],
    schema: u64,
) -> Result<T> {
    #[derive(Deserialize)]
    struct Version {
        schema: u64,
    }
    let wrong = |e: serde_json::Error| malformed(path, format!("{place}{e}"));
    let version: Version = serde_json::from_slice(json).map_err(wrong)?;
    check_version(path, version.schema, schema..=schema)?;
    serde_json::from_slice(json).map_err(wrong)
}

fn aside(place: &Path) -> PathBuf {
    let mut name = place.file_name().unwrap_or_default().to_owned();
    name.push(".old");
    place.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(name: &str) -> Self {
            let name = format!("fisher-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            remove(&folder).expect("removed");
            std::fs::create_dir_all(&folder).expect("a folder");
            Self(folder)
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn fill(folder: &Path, text: &str) {
        remove(folder).expect("removed");
        std::fs::create_dir(folder).expect("a folder");
        write(&folder.join("file"), text.as_bytes()).expect("a file");
    }

    /// Ends after so many steps: `true` when there were no more.
    fn replace_until(new: &Path, place: &Path, steps: usize) -> bool {
        let mut left = steps;
        let replaced = replace_by(new, place, |step| {
            left = left.checked_sub(1).ok_or(ErrorKind::Interrupted)?;
            step.take()
        });
        replaced.is_ok()
    }

    /// However often the program is ended, and wherever, there is the old folder or the new one.
    #[test]
    fn one_of_two_is_there_at_every_step() {
        let temporary = Temporary::new("replace");
        let (new, place) = (temporary.0.join("new"), temporary.0.join("place"));
        let read = || {
            let text = std::fs::read_to_string(whole(&place).join("file"));
            text.expect("a folder that is whole")
        };
        for first in 0.. {
            let mut ended = false;
            for second in 0.. {
                remove_both(&place).expect("removed");
                fill(&place, "0");
                fill(&new, "1");
                let done = replace_until(&new, &place, first);
                let between = read();
                assert!(["0", "1"].contains(&&*between), "{between}");
                assert!(!done || between == "1");
                fill(&new, "2");
                ended = replace_until(&new, &place, second);
                let found = read();
                assert!(found == between || found == "2", "{found} after {between}");
                if ended {
                    assert_eq!(found, "2");
                    assert!(!aside(&place).exists());
                    ended = done;
                    break;
                }
            }
            if ended {
                assert!(first >= 4, "old aside, new in place, synced, old removed");
                return;
            }
        }
    }
}
