//! The command line of `fisher`.

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::check::{CheckArgs, check};
use crate::influence::{InfluenceArgs, influence};
use crate::join::join;
use crate::measure::{JoinArgs, MeasureArgs, Result, replayed, written};
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
    Influence(Box<InfluenceArgs>),
}

impl Cli {
    /// Read a command line, the program's name first.
    ///
    /// # Errors
    /// What is wrong with it, or the help that was asked for.
    pub fn read(
        arguments: impl IntoIterator<Item = String>,
    ) -> std::result::Result<Self, clap::Error> {
        let mut command = Self::command();
        let arguments: Vec<String> = arguments.into_iter().collect();
        let fail = |command: &mut clap::Command, reason| command.error(ErrorKind::Io, reason);
        let measure = command.find_subcommand("measure").cloned();
        let arguments = match &measure {
            Some(measure) if arguments.get(1).is_some_and(|name| name == "measure") => {
                let all = replayed(measure, arguments);
                all.map_err(|reason| fail(&mut command, reason))?
            }
            _ => arguments,
        };
        let matches = command.clone().try_get_matches_from(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        if let (Command::Measure(run), Some(measure), Some((_, matches))) =
            (&mut cli.command, &measure, matches.subcommand())
        {
            let written = written(measure, matches);
            run.command = written.map_err(|reason| fail(&mut command, reason))?;
            let placed = run.place();
            placed.map_err(|reason| command.error(ErrorKind::ValueValidation, reason))?;
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
            Command::Influence(arguments) => influence(arguments),
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
