//! Checksummed safetensors files, which are there whole or not at all.

mod atomic;
mod checksum;
mod filled;
mod partial;
mod tensors;
mod whole;

pub use atomic::ensure_writable;
#[doc(hidden)]
pub use atomic::sync_folder;

pub(crate) use atomic::HEADER_LIMIT;
pub(crate) use checksum::hex;
pub(crate) use filled::Filled;
pub(crate) use partial::Partial;
pub(crate) use tensors::{data, encode, indices, view};
pub(crate) use whole::{Contents, WRITER, write};
