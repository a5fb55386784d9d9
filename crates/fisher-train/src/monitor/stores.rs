//! The gradients of single captures on disk: a store in `step-N` for each.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fisher_core::Error as CoreError;
use fisher_core::store::GradientStore;

use super::folder::{self, failed};
use crate::error::{Error, Result};

/// The folder to fill, without what a capture that was cut off left in it.
///
/// # Errors
/// [`CoreError::StoreLocked`] when another program fills it.
pub(super) fn clear(folder: &Path) -> Result<PathBuf> {
    let partial = folder.join("step.partial");
    let index = partial.join("index.jsonl");
    match File::open(&index) {
        Ok(index) => index.try_lock().map_err(|e| {
            Error::Core(CoreError::StoreLocked {
                path: partial.clone(),
                reason: e.to_string(),
            })
        })?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&index, error)),
    }
    folder::remove(&partial).map_err(|e| failed(&partial, e))?;
    Ok(partial)
}

/// Put a store that is filled in place of the one that an earlier run left for this step, and open
/// it to read from it: nobody is locked out.
pub(super) fn place(store: GradientStore, folder: &Path, step: u64) -> Result<GradientStore> {
    store.sync()?;
    let (heads, device) = (store.heads().clone(), store.device().clone());
    drop(store);
    let place = folder.join(format!("step-{step}"));
    let replaced = folder::replace(&folder.join("step.partial"), &place);
    replaced.map_err(|e| failed(&place, e))?;
    let store = GradientStore::open(&place)?;
    Ok(store.with_heads(heads).with_device(&device))
}
