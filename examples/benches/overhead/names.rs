//! What things are called on the command line.

use clap::ValueEnum;

pub(crate) fn name<T: ValueEnum>(value: T) -> String {
    let value = value.to_possible_value();
    value
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
