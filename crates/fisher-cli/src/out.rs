//! The folder of a run: one run's at a time, and nothing of others written over.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::measure::{
    COMMAND, GRADIENTS, INPUTS, Inputs, MERGED, REPORT, RESULTS, Result, STATISTICS, remove_parts,
};
use crate::page::{GENERATOR, PAGE};
use crate::say::say;

/// Locked for as long as a run goes on. The system lets go of it when the program ends, however that is,
/// so the file itself may stay.
const LOCK: &str = ".fisher.lock";

/// A run's folder, which no other run takes while this is held.
#[derive(Debug)]
pub(crate) struct Out {
    path: PathBuf,
    lock: File,
}

impl Out {
    /// Take a folder for a run: an empty one, or one to go on with if `resume`. It is made where it is not
    /// there, and what a killed run left half written goes.
    ///
    /// # Errors
    /// When another run has it, a file there is not of this program and would be written over, it holds a
    /// run that is not to go on, or it cannot be written to.
    pub(crate) fn claim(path: &Path, resume: bool) -> Result<Self> {
        let fail = |e: std::io::Error| format!("cannot make {}: {e}", path.display());
        std::fs::create_dir_all(path).map_err(fail)?;
        let out = Self {
            path: path.into(),
            lock: lock(path)?,
        };
        for folder in [path, &path.join(MERGED)] {
            if folder.is_dir() {
                let removed = remove_parts(folder);
                removed.map_err(|e| format!("cannot tidy up {}: {e}", folder.display()))?;
            }
        }
        if let Some(file) = out.foreign()? {
            return Err(format!(
                "{} is not of this program, and would be written over: give another --out",
                file.display()
            )
            .into());
        }
        let held = out.holds_run();
        if !resume && held {
            return Err(format!(
                "{} holds a run already: go on with it by --resume, or give another folder",
                path.display()
            )
            .into());
        }
        if resume && !held {
            say!(
                "{} holds nothing to go on with: this begins anew.",
                path.display()
            );
        }
        let others = if held { Vec::new() } else { out.others()? };
        if let Some(first) = others.first() {
            let more = match others.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            say!(
                "{} is not empty ({first}{more}): what is there stays, and the results come beside it.",
                path.display()
            );
        }
        Ok(out)
    }

    /// Whether there is anything of a run.
    pub(crate) fn holds_run(&self) -> bool {
        let mut files = [STATISTICS, GRADIENTS, REPORT].iter();
        files.any(|file| self.path.join(file).exists())
    }

    /// What is there beside what a run writes before anything is counted, by name.
    fn others(&self) -> Result<Vec<String>> {
        let fail = |e: std::io::Error| format!("cannot read {}: {e}", self.path.display());
        let mut others = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            let name = name.to_string_lossy().into_owned();
            if ![LOCK, INPUTS, COMMAND].contains(&&*name) {
                others.push(name);
            }
        }
        others.sort_unstable();
        Ok(others)
    }

    /// The first file that would be written over and is not this program's.
    fn foreign(&self) -> Result<Option<PathBuf>> {
        let told = [(REPORT, MADE), (PAGE, GENERATOR)];
        for (file, mark) in told {
            let file = self.path.join(file);
            if file.exists() && !contains(&file, mark)? {
                return Ok(Some(file));
            }
        }
        // Every run writes its inputs before anything else.
        if Inputs::read(&self.path).is_ok() {
            return Ok(None);
        }
        let unsigned = [INPUTS, RESULTS, MERGED].map(|file| self.path.join(file));
        Ok(unsigned.into_iter().find(|file| file.exists()))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // Only what the next run would say depends on the first. The second is not left to the file's end: a
        // process that another thread begins at this moment has it too.
        let _ = self.lock.set_len(0);
        let _ = self.lock.unlock();
    }
}

/// What report.json says of its program.
const MADE: &str = "\"program\":\"fisher ";

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let fail = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Where a locked file cannot be read, it is not known who has it.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process",
                holder => holder,
            };
            return Err(format!(
                "{} is in use by {holder}: wait for its end, or give another --out",
                folder.display()
            )
            .into());
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!(folder = %folder.display(), %error, "no lock: see that no other run writes there");
        }
    }
    let command: Vec<String> = std::env::args_os()
        .take(2)
        .map(|part| {
            Path::new(&part)
                .file_name()
                .unwrap_or(&part)
                .to_string_lossy()
                .into()
        })
        .collect();
    file.set_len(0).map_err(fail)?;
    let holder = format!("process {} (`{}`)\n", std::process::id(), command.join(" "));
    file.write_all(holder.as_bytes()).map_err(fail)?;
    Ok(file)
}

/// Whether a text is in a file, which may be large.
fn contains(path: &Path, text: &str) -> Result<bool> {
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let file = File::open(path).map_err(fail)?;
    let mut window = Vec::new();
    loop {
        let mut piece = (&file).take(1 << 20);
        let more = piece.read_to_end(&mut window).map_err(fail)?;
        if window
            .windows(text.len())
            .any(|part| part == text.as_bytes())
        {
            return Ok(true);
        }
        if more == 0 {
            return Ok(false);
        }
        // It may stand across the border.
        window.drain(..window.len().saturating_sub(text.len()));
    }
}
