//! Checksummed safetensors files, which are there whole or not at all.

mod atomic;
mod checksum;
mod filled;
mod partial;
mod source;
mod tensors;
mod whole;

#[doc(hidden)]
pub use atomic::sync_folder;
pub use atomic::{ensure_writable, size, write_atomically};
pub use source::Source;

pub(crate) use atomic::HEADER_LIMIT;
pub(crate) use checksum::hex;
pub(crate) use filled::Filled;
pub(crate) use partial::Partial;
pub(crate) use source::dtype_of;
pub(crate) use tensors::{data, encode, floats, indices};
pub(crate) use whole::{Contents, WRITER, write};
