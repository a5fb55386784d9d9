//! Files that are put in place whole, or not at all.

use std::fs::File;
use std::path::Path;

use super::outcome::Result;

/// Write a text in place of an old one: see [`replace`].
pub(crate) fn write(out: &Path, file: &str, text: &str) -> Result {
    let path = out.join(file);
    let written = replace(&path, |beside| Ok(std::fs::write(beside, text)?));
    written.map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// Have a file written beside the old one and put in its place once it is on the disk, so that
/// there is never half of it.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result) -> Result {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    write(Path::new(&beside))?;
    File::options().write(true).open(&beside)?.sync_all()?;
    Ok(std::fs::rename(&beside, path)?)
}
