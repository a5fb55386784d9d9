//! Files that are put in place whole, or not at all.

use std::fs::File;
use std::path::Path;

use super::outcome::Result;

/// A file on its way to the disk is in a folder that is named so, with the file's name in between.
const BEGINS: &str = ".fisher-";
const ENDS: &str = ".part";

/// Write a text in place of an old one: see [`replace`].
pub(crate) fn write(out: &Path, file: impl AsRef<Path>, text: &str) -> Result {
    replace(&out.join(file), |beside| Ok(std::fs::write(beside, text)?))
}

/// Write a text to the file that `--out` names: see [`replace`].
pub(crate) fn write_out(path: &Path, text: &str) -> Result {
    let name = path.file_name().ok_or("--out is no file")?;
    write(path.parent().unwrap_or(Path::new("")), name, text)
}

/// Have a file written beside the old one and put in its place once it is on the disk, so that
/// there is never half of it. It gets the permissions that any new file gets. An error names the file.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> Result) -> Result {
    let name = path.file_name().unwrap_or_default();
    // Whoever writes may begin files of his own beside his, and be killed over them.
    let folder = path.with_file_name(format!("{BEGINS}{}{ENDS}", name.to_string_lossy()));
    let beside = folder.join(name);
    let put = || -> Result {
        std::fs::create_dir_all(&folder)?;
        // Made here, since not who writes it but the user's umask decides who may read it.
        let usual = File::create(&beside)?.metadata()?.permissions();
        write(&beside)?;
        let file = File::options().write(true).open(&beside)?;
        file.set_permissions(usual)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        Ok(std::fs::remove_dir_all(&folder)?)
    };
    put().map_err(|error| {
        // Half a file is of no use, and may be what fills the disk. What cannot be removed now, the next
        // run removes.
        let _ = std::fs::remove_dir_all(&folder);
        format!("cannot write {}: {error}", path.display()).into()
    })
}

/// Remove what [`replace`] began in a folder and was killed over.
pub(crate) fn remove_parts(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(BEGINS) && name.ends_with(ENDS) && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
