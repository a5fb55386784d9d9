//! The program `fisher`: exit code 0 when all is done, 1 when something kept it from that, 2 when the
//! command line is wrong.

use std::io::Write;
use std::process::ExitCode;

use fisher_cli::Cli;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
    let cli = Cli::read(std::env::args()).unwrap_or_else(|error| error.exit());
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Who closed it does not want to hear.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
