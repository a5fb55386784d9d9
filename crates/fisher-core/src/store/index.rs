//! The index of a store: what is in its folder, line by line.
//!
//! `index.jsonl` begins with one line about the whole ([`Header`]) and has one line for every chunk
//! that was pushed ([`Entry`]). A chunk's gradients lie in `shard-NNNNN.bin` from `offset`, the
//! parameters in the header's order, each a row-major `[samples, elements]` matrix of little-endian
//! numbers. The gradients are written before their line is: a program that is killed leaves at
//! worst bytes that no line speaks of, or half a line, and both are cut off when the store is opened
//! for writing again. A reader passes over bytes without a line, which are no samples yet; it refuses
//! half a line and lines without their bytes, which a copy that broke off has too.

use std::fs::{File, TryLockError};
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::precision::{Precision, exponents};
use crate::container::WRITER;
use crate::error::{Error, Result, check_version, format_error as format, io_error as io, list};
use crate::kind::FisherKind;
use crate::model::{Orientation, Role};
use crate::sample::SampleRecord;

/// The version of a store's folder that this library writes and reads.
const SCHEMA: u64 = 1;
/// The name of the index in a store's folder.
pub(super) const INDEX: &str = "index.jsonl";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) fisher_store: u64,
    pub(super) writer: String,
    pub(super) model: String,
    #[serde(default)]
    pub(super) kind: FisherKind,
    pub(super) precision: Precision,
    pub(super) parameters: Vec<Stored>,
}

/// A parameter in the header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) path: String,
    pub(super) shape: Vec<usize>,
    pub(super) role: Role,
    pub(super) orientation: Orientation,
}

impl Header {
    pub(super) fn new(
        model: String,
        kind: FisherKind,
        precision: Precision,
        parameters: Vec<Stored>,
    ) -> Self {
        Self {
            fisher_store: SCHEMA,
            writer: WRITER.into(),
            model,
            kind,
            precision,
            parameters,
        }
    }

    /// Bytes of one sample.
    pub(super) fn bytes(&self) -> Option<u64> {
        let mut sum = 0u64;
        for parameter in &self.parameters {
            let elements = parameter
                .shape
                .iter()
                .try_fold(1u64, |n, &d| n.checked_mul(d as u64))?;
            sum = sum.checked_add(elements.checked_mul(self.precision.bytes() as u64)?)?;
        }
        Some(sum)
    }
}

/// A chunk in the index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) task: String,
    pub(super) samples: Vec<SampleRecord>,
    pub(super) shard: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) crc32: u32,
    /// For half precision: of every parameter, of every row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) exponents: Vec<Vec<i16>>,
    /// Where its line ends in the index.
    #[serde(skip)]
    pub(super) line_end: u64,
}

impl Entry {
    /// A chunk that lies at `offset` of `shard`. `crc32` is over the gradients' bytes and then the
    /// exponents, little-endian, that scale them.
    pub(super) fn new(
        task: &str,
        samples: Vec<SampleRecord>,
        (shard, offset): (usize, u64),
        bytes: u64,
        crc32: u32,
        exponents: Vec<Vec<i16>>,
    ) -> Self {
        Self {
            task: task.into(),
            samples,
            shard,
            offset,
            bytes,
            crc32,
            exponents,
            line_end: 0,
        }
    }

    /// Whether the line says what a line of this header can, but for where the chunk lies.
    pub(super) fn fits(&self, header: &Header, sample: u64) -> bool {
        let rows = self.samples.len();
        let exponents_fit = match header.precision {
            Precision::Float32 => self.exponents.is_empty(),
            Precision::Float16 | Precision::BFloat16 => {
                let possible = exponents();
                let row =
                    |of: &Vec<i16>| of.len() == rows && of.iter().all(|e| possible.contains(e));
                self.exponents.len() == header.parameters.len() && self.exponents.iter().all(row)
            }
        };
        exponents_fit
            && rows > 0
            && Some(self.bytes) == sample.checked_mul(rows as u64)
            && self.samples.iter().all(|s| s.tokens > 0)
    }
}

/// What an index holds.
pub(super) struct Index {
    pub(super) header: Header,
    pub(super) entries: Vec<Entry>,
    /// Where the header's line ends.
    pub(super) begun: u64,
    /// Whether it ends in half a line, which does not count.
    pub(super) half: bool,
}

/// `None` where there is not one whole line.
pub(super) fn read_index(path: &Path, mut index: &File) -> Result<Option<Index>> {
    let mut bytes = Vec::new();
    index.read_to_end(&mut bytes).map_err(|e| io(path, e))?;
    let mut lines = bytes.split_inclusive(|&b| b == b'\n');
    let Some(first) = lines.next().filter(|line| line.ends_with(b"\n")) else {
        return Ok(None);
    };
    let version: Version = parse(path, 1, first)?;
    check_version(path, version.fisher_store, SCHEMA..=SCHEMA)?;
    let header = parse(path, 1, first)?;
    let begun = first.len() as u64;
    let mut end = begun;
    let mut entries = Vec::new();
    for (i, line) in lines.enumerate().filter(|(_, line)| line.ends_with(b"\n")) {
        let mut entry: Entry = parse(path, i + 2, line)?;
        end += line.len() as u64;
        entry.line_end = end;
        entries.push(entry);
    }
    Ok(Some(Index {
        header,
        entries,
        begun,
        half: end < bytes.len() as u64,
    }))
}

/// Whether another program has the index locked to write it: what is half now will be whole.
pub(super) fn is_written(index: &File) -> bool {
    matches!(index.try_lock_shared(), Err(TryLockError::WouldBlock))
}

pub(super) fn samples(entries: &[Entry]) -> usize {
    entries.iter().map(|e| e.samples.len()).sum()
}

#[derive(Deserialize)]
struct Version {
    fisher_store: u64,
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, number: usize, line: &'a [u8]) -> Result<T> {
    serde_json::from_slice(line).map_err(|e| format(path, format!("line {number}: {e}")))
}

pub(super) fn json_line(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(|e| format(path, e))?;
    line.push(b'\n');
    Ok(line)
}

pub(super) fn same(folder: &Path, ours: &Header, theirs: &Header) -> Result<()> {
    let parameters = |h: &Header| {
        let describe = |p: &Stored| format!("{} {:?} {:?}", p.path, p.shape, p.orientation);
        list(h.parameters.iter().map(describe))
    };
    let precision = |h: &Header| format!("{:?}", h.precision);
    for (what, ours, theirs) in [
        (
            "model (hash of its weights)",
            ours.model.clone(),
            theirs.model.clone(),
        ),
        (
            "Fisher kind",
            ours.kind.to_string(),
            theirs.kind.to_string(),
        ),
        ("precision", precision(ours), precision(theirs)),
        ("set of parameters", parameters(ours), parameters(theirs)),
    ] {
        if ours != theirs {
            return Err(Error::OtherStore {
                path: folder.into(),
                what,
                ours,
                theirs,
            });
        }
    }
    if ours.parameters == theirs.parameters {
        Ok(())
    } else {
        Err(format(
            &folder.join(INDEX),
            "its parameters have other roles",
        ))
    }
}
