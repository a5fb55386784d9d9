//! Bit sets as strings of 0 and 1 in reports: readable in any language.

use fixedbitset::FixedBitSet;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer>(bits: &FixedBitSet, s: S) -> Result<S::Ok, S::Error> {
    let digit = |i| if bits.contains(i) { '1' } else { '0' };
    s.collect_str(&(0..bits.len()).map(digit).collect::<String>())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<FixedBitSet, D::Error> {
    let text = String::deserialize(d)?;
    let mut bits = FixedBitSet::with_capacity(text.len());
    for (i, digit) in text.bytes().enumerate() {
        match digit {
            b'0' => {}
            b'1' => bits.insert(i),
            _ => return Err(serde::de::Error::custom("a mask holds only 0 and 1")),
        }
    }
    Ok(bits)
}
