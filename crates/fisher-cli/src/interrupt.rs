//! Ctrl-C: the first ends the work when it can be gone on with, the second at once.

#[cfg(unix)]
use std::io::{IsTerminal, Read, Write};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::SIGINT;
use signal_hook::flag;
#[cfg(unix)]
use signal_hook::low_level::pipe;

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

/// Have Ctrl-C heard from now on. What it leads to is told at once on standard error.
///
/// # Errors
/// When the system does not let it.
#[cfg(unix)]
pub fn listen() -> std::io::Result<()> {
    // A handler of a signal may set flags and write to a pipe, and not much more: words are a thread's, which hears of it
    // by the pipe. While the thread speaks it cannot listen, and standard error may be one that nobody reads: Ctrl-C then
    // ends the program without a word.
    let speaking = Arc::new(AtomicBool::new(false));
    let (mut heard, wake) = UnixStream::pair()?;
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), speaking.clone())?;
    flag::register(SIGINT, ASKED.clone())?;
    pipe::register(SIGINT, wake)?;
    let listener = move || {
        let mut one = [0];
        while heard.read_exact(&mut one).is_ok() {
            speaking.store(true, Ordering::SeqCst);
            if AT_ONCE.swap(true, Ordering::SeqCst) {
                tell("Interrupted.");
                signal_hook::low_level::exit(INTERRUPTED.into());
            }
            tell("Stopping after this batch; Ctrl-C again stops at once.");
            speaking.store(false, Ordering::SeqCst);
        }
    };
    let thread = std::thread::Builder::new().name("interrupt".into());
    thread.spawn(listener).map(|_| ())
}

/// A line on standard error, below what a bar of progress has drawn there.
#[cfg(unix)]
fn tell(line: &str) {
    let mut stderr = std::io::stderr();
    let start = if stderr.is_terminal() { "\n" } else { "" };
    // Who closed it does not want to hear.
    let _ = writeln!(stderr, "{start}{line}");
}

/// Have Ctrl-C heard from now on.
///
/// # Errors
/// When the system does not let it.
#[cfg(not(unix))]
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
