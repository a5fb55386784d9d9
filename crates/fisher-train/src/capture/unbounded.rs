//! Numbers up to ∞ in formats that have none, such as JSON: there it is nothing.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    value.is_finite().then_some(*value).serialize(to)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let value = Option::<f64>::deserialize(from)?;
    Ok(value.unwrap_or(f64::INFINITY))
}
