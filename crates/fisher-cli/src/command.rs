//! The command line of `fisher`.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::check::{CheckArgs, check};
use crate::join::join;
use crate::measure::{JoinArgs, MeasureArgs, Result};
use crate::plan::{PlanArgs, plan};
use crate::run::measure;

/// Fisher information of Hugging Face checkpoints: what a task depends on, and where two tasks collide.
#[derive(Parser, Debug)]
#[command(name = "fisher", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Check(Box<CheckArgs>),
    #[command(
        about = "Measure a checkpoint: what each task depends on, and where two tasks collide"
    )]
    Measure(Box<MeasureArgs>),
    Join(Box<JoinArgs>),
    Plan(Box<PlanArgs>),
}

impl Cli {
    /// Read a command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or the help that was asked for.
    pub fn read(
        arguments: impl IntoIterator<Item = String>,
    ) -> std::result::Result<Self, clap::Error> {
        let mut cli = Self::try_parse_from(arguments)?;
        if let Command::Measure(measure) = &mut cli.command {
            let placed = measure.place();
            placed.map_err(|e| Self::command().error(ErrorKind::ValueValidation, e))?;
        }
        Ok(cli)
    }

    /// Do what it says.
    ///
    /// # Errors
    /// Whatever kept it from being done, in words.
    pub fn run(&self) -> Result {
        match &self.command {
            Command::Check(arguments) => check(arguments),
            Command::Measure(arguments) => measure(arguments),
            Command::Join(arguments) => join(arguments),
            Command::Plan(arguments) => plan(arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
