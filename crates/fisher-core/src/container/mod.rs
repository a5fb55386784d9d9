//! Checksummed safetensors files, which are there whole or not at all.

mod atomic;
mod checksum;
mod tensors;

pub use atomic::ensure_writable;

pub(crate) use atomic::{HEADER_LIMIT, write_atomically};
pub(crate) use checksum::{checksum, hex};
pub(crate) use tensors::{data, encode, view};
