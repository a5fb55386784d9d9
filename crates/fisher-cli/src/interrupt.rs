//! Ctrl-C: the first ends the work when it can be gone on with, the second at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// The exit code of a program that was interrupted.
pub const INTERRUPTED: u8 = 130;

/// Whether the work was asked to end.
static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
/// Whether Ctrl-C ends the program at once.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(true.into()));

/// Why a run ended before it was done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// Have Ctrl-C heard from now on.
///
/// # Errors
/// When the system does not let it.
pub fn listen() -> std::io::Result<()> {
    // Asked in this order: the first Ctrl-C finds what an earlier one has set.
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), AT_ONCE.clone())?;
    flag::register(SIGINT, AT_ONCE.clone())?;
    flag::register(SIGINT, ASKED.clone())?;
    Ok(())
}

/// Work that is to end well: while this is there, a first Ctrl-C only asks for the end.
#[derive(Debug)]
pub(crate) struct Unhurried(());

impl Unhurried {
    pub(crate) fn begin() -> Self {
        AT_ONCE.store(false, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        AT_ONCE.store(true, Ordering::SeqCst);
    }
}

/// Whether the end was asked for.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
