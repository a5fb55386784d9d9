//! Lines on standard output.

use std::io::{ErrorKind, Write};

/// Write a line to standard output, as `println!` does. Who closed it does not want to hear more: the
/// run goes on, and does not stop over a line after hours of work.
pub(crate) fn line(text: std::fmt::Arguments) {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            tracing::warn!(%error, "cannot write to standard output");
        }
        _ => {}
    }
}

/// [`line`] with a format.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::say::line(format_args!($($part)*))
    };
}
pub(crate) use say;
