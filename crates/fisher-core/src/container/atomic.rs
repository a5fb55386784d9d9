//! Files that are there whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tempfile::NamedTempFile;

use super::source::Source;
use crate::error::{Error, Result, format_error, io_error};

/// The longest header that readers of safetensors take.
pub(crate) const HEADER_LIMIT: usize = 100_000_000;
/// What is on its way to the disk is named so, with letters and digits in between.
const PREFIX: &str = ".fisher-";
const SUFFIX: &str = ".tmp";

/// Make sure, before long work begins, that its result can be written to `path`: the folder is made
/// where it is not there, and a file is begun in it and taken away again.
///
/// ```no_run
/// fisher_core::container::ensure_writable("runs/first/statistics.safetensors")?;
/// # Ok::<(), fisher_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`] when that fails, or `path` is a folder.
pub fn ensure_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let io = |e| io_error(path, e);
    if path.is_dir() {
        return Err(io(ErrorKind::IsADirectory.into()));
    }
    if path.file_name().is_none() {
        return Err(io(ErrorKind::InvalidFilename.into()));
    }
    let folder = folder_of(path);
    std::fs::create_dir_all(folder).map_err(io)?;
    begin(folder).map(drop).map_err(io)
}

/// Write a safetensors file of `tensors`, one after the other, with `metadata`: beside the target, which
/// it takes the place of once it is on the disk. What killed programs left there goes first.
///
/// Of the tensors there is never more than one in memory.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written, [`Error::Header`] when there are too many names for
/// one file, [`Error::Format`] when a tensor has other bytes than its shape asks for, and what kept the
/// bytes of a tensor from being had.
pub fn write_atomically<E: From<Error>>(
    path: &Path,
    tensors: &BTreeMap<String, Source<'_, E>>,
    metadata: HashMap<String, String>,
) -> Result<(), E> {
    let layout = layout(path, &kinds(tensors), metadata)?;
    let folder = folder_of(path);
    let io = |e| io_error(path, e);
    remove_stale(folder);
    let temporary = begin(folder).map_err(io)?;
    let mut file = BufWriter::with_capacity(1 << 20, temporary.as_file());
    file.write_all(&layout.header).map_err(io)?;
    for name in &layout.order {
        let tensor = &tensors[name];
        let bytes = tensor.bytes()?;
        if bytes.len() != tensor.size() {
            let (found, expected) = (bytes.len(), tensor.size());
            let reason = format!("`{name}` has {found} bytes, expected {expected}");
            return Err(format_error(path, reason).into());
        }
        file.write_all(&bytes).map_err(io)?;
    }
    file.flush().map_err(io)?;
    drop(file);
    Ok(put_in_place(temporary, path)?)
}

/// What was written whole, under its own name.
pub(super) fn put_in_place(temporary: NamedTempFile, path: &Path) -> Result<()> {
    let io = |e| io_error(path, e);
    temporary.as_file().sync_all().map_err(io)?;
    temporary.persist(path).map_err(|e| io(e.error))?;
    // A rename is durable once its folder is.
    sync_folder(folder_of(path)).map_err(io)
}

/// Bytes of the file that [`write_atomically`] would write.
///
/// # Errors
/// [`Error::Header`], as there.
pub fn size<E>(
    tensors: &BTreeMap<String, Source<'_, E>>,
    metadata: HashMap<String, String>,
) -> Result<u64> {
    Ok(layout(Path::new(""), &kinds(tensors), metadata)?.length())
}

/// Types and shapes.
fn kinds<'a, E>(tensors: &'a BTreeMap<String, Source<'_, E>>) -> BTreeMap<&'a str, Kind> {
    let kind = |tensor: &Source<E>| (tensor.dtype(), tensor.shape().to_vec());
    let kinds = tensors.iter();
    kinds
        .map(|(name, tensor)| (&**name, kind(tensor)))
        .collect()
}

/// Type and shape of a tensor.
pub(super) type Kind = (Dtype, Vec<usize>);

/// Wait until the names in a folder are on the disk. Not every platform can open one.
#[doc(hidden)]
pub fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) {
        let here = folder.as_os_str().is_empty();
        File::open(if here { Path::new(".") } else { folder })?.sync_all()?;
    }
    Ok(())
}

/// Where the parts of a safetensors file lie.
pub(super) struct Layout {
    /// The file's first bytes.
    pub(super) header: Vec<u8>,
    /// The tensors, as they follow.
    order: Vec<String>,
    /// Where each begins, from the end of the header.
    starts: HashMap<String, u64>,
    end: u64,
}

impl Layout {
    /// Bytes of the file.
    pub(super) fn length(&self) -> u64 {
        self.header.len() as u64 + self.end
    }

    /// Where a tensor begins in the file.
    pub(super) fn start(&self, tensor: &str) -> Option<u64> {
        let start = self.starts.get(tensor)?;
        Some(self.header.len() as u64 + start)
    }
}

/// Tensors follow by falling alignment, then by name.
pub(super) fn layout<S: AsRef<str> + Ord>(
    path: &Path,
    tensors: &BTreeMap<S, Kind>,
    header: HashMap<String, String>,
) -> Result<Layout> {
    let mut order: Vec<(&str, &Kind)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_ref(), tensor))
        .collect();
    order.sort_by_key(|(name, (dtype, _))| (std::cmp::Reverse(*dtype), *name));
    let mut end = 0;
    let mut starts = HashMap::new();
    let mut places = Vec::new();
    for (name, (dtype, shape)) in &order {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        starts.insert((*name).to_owned(), start as u64);
        let info = TensorInfo {
            dtype: *dtype,
            shape: shape.clone(),
            data_offsets: (start, end),
        };
        places.push(((*name).to_owned(), info));
    }
    // Without tensors and text serde would close the map before its only entry.
    let header = Some(header).filter(|header| !header.is_empty());
    let metadata = Metadata::new(header, places).map_err(|e| format_error(path, e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| format_error(path, e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > HEADER_LIMIT {
        return Err(Error::Header {
            path: path.into(),
            bytes: json.len(),
            limit: HEADER_LIMIT,
        });
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(Layout {
        header: bytes,
        order: order.into_iter().map(|(name, _)| name.into()).collect(),
        starts,
        end: end as u64,
    })
}

/// A new file in `folder`, locked for as long as it is open: by that [`remove_stale`] tells that
/// somebody writes to it.
pub(super) fn begin(folder: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // Readable as any file of the user's is (the umask applies), not only by its owner.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let temporary = builder.tempfile_in(folder)?;
        match temporary.as_file().try_lock() {
            Ok(()) if temporary.path().exists() => return Ok(temporary),
            // Another program took it for a stale one before it was locked.
            Ok(()) | Err(TryLockError::WouldBlock) => {}
            // A file system without locks: there nobody can take one for stale either.
            Err(TryLockError::Error(_)) => return Ok(temporary),
        }
    }
}

/// Remove the files that programs began in `folder` and were killed over. Whether that works does not
/// matter to what is written.
pub(super) fn remove_stale(folder: &Path) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::debug!(?folder, %error, "cannot look for stale files");
            return;
        }
    };
    for entry in entries.flatten().filter(|e| is_ours(&e.file_name())) {
        let path = entry.path();
        let mut options = OpenOptions::new();
        let Ok(file) = options.read(true).write(true).open(&path) else {
            continue; // gone by now, or of another user
        };
        if file.try_lock().is_err() {
            continue; // somebody writes to it
        }
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::info!(?path, "removed what a killed program left"),
            Err(error) => tracing::warn!(?path, %error, "cannot remove a stale file"),
        }
    }
}

fn is_ours(name: &OsStr) -> bool {
    let name = name.to_str().unwrap_or_default();
    let middle = name
        .strip_prefix(PREFIX)
        .and_then(|n| n.strip_suffix(SUFFIX));
    middle.is_some_and(|m| m.len() == 6 && m.bytes().all(|b| b.is_ascii_alphanumeric()))
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use safetensors::tensor::TensorView;

    fn write(path: &Path) -> Result<()> {
        let bytes = || Ok(Cow::Borrowed(&[1, 2, 3][..]));
        let tensor = Source::new(Dtype::U8, [3], bytes);
        write_atomically(path, &[("x".into(), tensor)].into(), HashMap::new())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name();
        let mut names: Vec<String> = entries
            .map(|e| name(e).into_string().expect("a name"))
            .collect();
        names.sort();
        names
    }

    /// What nobody holds goes; what is being written, or is not ours, stays.
    #[test]
    fn only_stale_files_of_ours_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let living = begin(folder.path()).expect("a file");
        let (_, stale) = begin(folder.path())
            .expect("a file")
            .keep()
            .expect("it stays");
        let foreign = [".fisher-notes.tmp", ".fisher-aB3dE6", ".tmpaB3dE6", "x.tmp"];
        for name in foreign {
            std::fs::write(at(name), b"").expect("written");
        }
        write(&at("file")).expect("a file");
        assert!(!stale.exists());
        assert!(living.path().exists());
        assert!(foreign.iter().all(|name| at(name).exists()));
        living.close().expect("removed");
        let mut expected = [&foreign[..], &["file"]].concat();
        expected.sort_unstable();
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn what_is_written_is_safetensors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let parts: [(&str, Dtype, &[u8]); 3] = [
            ("b", Dtype::U8, &[7, 8, 9]),
            ("a", Dtype::U8, &[1]),
            ("c", Dtype::F64, &[0; 16]),
        ];
        let view = |(name, dtype, bytes): &(&'static str, Dtype, &'static [u8])| {
            let shape = vec![bytes.len() * 8 / dtype.bitsize()];
            (
                *name,
                TensorView::new(*dtype, shape, bytes).expect("a view"),
            )
        };
        let header = HashMap::from([("about".to_owned(), "{\"x\":1}".to_owned())]);
        let source = |(name, dtype, bytes): &(&'static str, Dtype, &'static [u8])| {
            let bytes = *bytes;
            let shape = vec![bytes.len() * 8 / dtype.bitsize()];
            let source: Source = Source::new(*dtype, shape, move || Ok(Cow::Borrowed(bytes)));
            ((*name).to_owned(), source)
        };
        let sources = parts.iter().map(source).collect();
        write_atomically(&path, &sources, header.clone()).expect("a file");
        let bytes = std::fs::read(&path).expect("a file");
        assert_eq!(
            bytes.len() as u64,
            size(&sources, header.clone()).expect("a size")
        );
        let theirs = safetensors::serialize(parts.iter().map(view), Some(header));
        assert_eq!(bytes, theirs.expect("safetensors"));
    }

    /// What is told beforehand of a tensor is what it is, or there is no file.
    #[test]
    fn tensors_are_as_long_as_they_say() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let short: Source = Source::float64([3], || Ok(vec![1.0, 2.0]));
        let error = write_atomically(&path, &[("x".into(), short)].into(), HashMap::new());
        let error = error.expect_err("too short").to_string();
        assert!(error.contains("16 bytes, expected 24"), "{error}");
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn folders_are_made_before_the_work() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/file");
        ensure_writable(&path).expect("writable");
        assert!(names(path.parent().expect("a folder")).is_empty());
        write(&path).expect("a file");
        // A file stands where a folder should be, and a folder where a file should be.
        for wrong in [
            path.join("c"),
            folder.path().join("a"),
            "..".into(),
            "".into(),
        ] {
            let error = ensure_writable(&wrong).expect_err("no file can be there");
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
    }
}
