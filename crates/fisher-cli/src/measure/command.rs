//! The command of a run as a file, `run.toml`, and back.

use std::path::Path;

use clap::{ArgAction, ArgMatches, Command};
use toml::{Table, Value};

/// The file, in a run's folder.
pub const COMMAND: &str = "run.toml";

/// What is of the moment and not of the run.
const LEFT_OUT: [&str; 4] = ["config", "resume", "force", "help"];

/// The flags of a command as TOML, those that stand for themselves included.
///
/// # Errors
/// When a value is no UTF-8.
pub(crate) fn written(command: &Command, matches: &ArgMatches) -> Result<String, String> {
    let mut table = Table::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        let Some(name) = argument.get_long().filter(|name| !LEFT_OUT.contains(name)) else {
            continue;
        };
        if let ArgAction::SetTrue = argument.get_action() {
            table.insert(name.into(), matches.get_flag(id).into());
            continue;
        }
        let Some(values) = matches.get_raw(id) else {
            continue;
        };
        let values = values.map(|value| {
            let text = value.to_str();
            text.map(scalar)
                .ok_or_else(|| format!("--{name} is no UTF-8"))
        });
        let mut values = values.collect::<Result<Vec<Value>, String>>()?;
        let value = match argument.get_action() {
            ArgAction::Append => Value::Array(values),
            _ => values.pop().unwrap_or_else(|| "".into()),
        };
        table.insert(name.into(), value);
    }
    Ok(format!(
        "# fisher {}\n# Again: fisher measure --config {COMMAND} --out ANOTHER; flags beside it override those here.\n{table}",
        env!("CARGO_PKG_VERSION")
    ))
}

/// A number where the text is one as TOML writes it.
fn scalar(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => number.into(),
        _ => text.into(),
    }
}

/// A command line with the flags of the file that its `--config` names; what it has itself goes before
/// those.
///
/// # Errors
/// When the file cannot be read, or has what is no flag of `command`.
pub(crate) fn replayed(command: &Command, arguments: Vec<String>) -> Result<Vec<String>, String> {
    let given = |name: &str| {
        let flag = format!("--{name}");
        let with_value = format!("{flag}=");
        let mut arguments = arguments.iter().enumerate();
        arguments.find_map(|(at, argument)| match argument.strip_prefix(&*with_value) {
            Some(value) => Some((at, Some(value.to_owned()))),
            None => (*argument == flag).then_some((at, None)),
        })
    };
    let Some((at, value)) = given("config") else {
        return Ok(arguments);
    };
    let Some(path) = value.or_else(|| arguments.get(at + 1).cloned()) else {
        return Ok(arguments); // clap says what is missing
    };
    let fail = |e: &dyn std::fmt::Display| format!("cannot read {path}: {e}");
    let text = std::fs::read_to_string(Path::new(&path)).map_err(|e| fail(&e))?;
    let table: Table = text.parse().map_err(|e| fail(&e))?;
    let mut all = arguments.clone();
    for (name, value) in table {
        let mut flags = command.get_arguments();
        let flag = flags.find(|flag| flag.get_long() == Some(&*name));
        if flag.is_none() || LEFT_OUT.contains(&&*name) {
            return Err(fail(&format!("`{name}` is no flag that can stand there")));
        }
        if given(&name).is_some() {
            continue;
        }
        match value {
            Value::Boolean(true) => all.push(format!("--{name}")),
            Value::Boolean(false) => {}
            Value::Array(values) => {
                for value in values {
                    let text = text_of(&value).ok_or_else(|| fail(&format!("`{name}`")))?;
                    all.push(format!("--{name}={text}"));
                }
            }
            value => {
                let text = text_of(&value).ok_or_else(|| fail(&format!("`{name}`")))?;
                all.push(format!("--{name}={text}"));
            }
        }
    }
    Ok(all)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        _ => None,
    }
}
