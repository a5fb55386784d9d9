//! The program `fisher`: exit code 0 when all is done, 1 when something kept it from that, 2 when the
//! command line is wrong, 130 when it was interrupted.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use fisher_cli::Cli;
use fisher_cli::interrupt::{INTERRUPTED, Interrupted, listen};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let cli = Cli::read(std::env::args()).unwrap_or_else(|error| error.exit());
    if let Err(error) = listen() {
        tracing::warn!(%error, "Ctrl-C will end the program at once");
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let interrupted = error.downcast_ref::<Interrupted>();
            // Who closed it does not want to hear.
            let _ = match interrupted {
                Some(interrupted) => writeln!(std::io::stderr(), "{interrupted}"),
                None => writeln!(std::io::stderr(), "error: {error}"),
            };
            ExitCode::from(if interrupted.is_some() {
                INTERRUPTED
            } else {
                1
            })
        }
    }
}
