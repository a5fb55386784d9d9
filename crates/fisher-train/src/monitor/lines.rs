//! A file of lines that is only added to.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use fisher_core::container::sync_folder;

/// What lines are written to.
pub(crate) trait Medium: Write + Seek {
    fn set_len(&mut self, length: u64) -> io::Result<()>;
}

impl Medium for File {
    fn set_len(&mut self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }
}

/// Lines, each of which is there whole or not at all.
#[derive(Debug)]
pub(crate) struct Lines<F = File> {
    file: F,
    /// Where the next line goes.
    length: u64,
}

impl Lines {
    /// A file that was not there before.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        Ok(Self { file, length: 0 })
    }

    /// `lines` in place of the file at `path`, which stays as it is where they cannot be written.
    pub(super) fn replace(path: &Path, lines: &[String]) -> io::Result<Self> {
        let beside = path.with_extension("partial");
        let written = || -> io::Result<Self> {
            let mut new = Self {
                file: File::create(&beside)?,
                length: 0,
            };
            new.append_synced(lines)?;
            std::fs::rename(&beside, path)?;
            path.parent().map_or(Ok(()), sync_folder)?;
            Ok(new)
        };
        written().inspect_err(|_| {
            if let Err(error) = std::fs::remove_file(&beside) {
                tracing::warn!(%error, path = %beside.display(), "half a file is left");
            }
        })
    }

    /// Add lines, all of them or none, and wait until they are on the disk.
    pub(super) fn append_synced(&mut self, lines: &[String]) -> io::Result<()> {
        self.add(lines, |file| file.sync_all())
    }
}

impl<F: Medium> Lines<F> {
    /// Add lines, all of them or none.
    pub(super) fn append(&mut self, lines: &[String]) -> io::Result<()> {
        self.add(lines, |_| Ok(()))
    }

    /// They go where the last ones ended: a file that was cut back leaves its cursor behind, and
    /// zeros would fill the gap.
    fn add(
        &mut self,
        lines: &[String],
        sync: impl FnOnce(&mut F) -> io::Result<()>,
    ) -> io::Result<()> {
        let text: String = lines.iter().flat_map(|line| [&**line, "\n"]).collect();
        self.file.seek(SeekFrom::Start(self.length))?;
        let written = self.file.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| sync(&mut self.file)) {
            // The disk may be full. Half a line goes, if it can; readers pass over it.
            if let Err(error) = self.file.set_len(self.length) {
                tracing::warn!(%error, "a line stays half written");
            }
            return Err(error);
        }
        self.length += text.len() as u64;
        Ok(())
    }

    /// Bytes of all lines.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        file: io::Cursor<Vec<u8>>,
        room: usize,
        /// Whether a file can be cut.
        cuts: bool,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let free = self.room.saturating_sub(self.file.position() as usize);
            if free == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(&bytes[..bytes.len().min(free)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }

    impl Medium for Disk {
        fn set_len(&mut self, length: u64) -> io::Result<()> {
            if !self.cuts {
                return Err(io::ErrorKind::Unsupported.into());
            }
            self.file.get_mut().resize(length as usize, 0);
            Ok(())
        }
    }

    #[test]
    fn a_line_that_did_not_fit_leaves_no_hole() {
        for cuts in [true, false] {
            let disk = Disk {
                file: io::Cursor::default(),
                room: 12,
                cuts,
            };
            let mut lines = Lines {
                file: disk,
                length: 0,
            };
            lines.append(&["first".into()]).expect("there is room");
            let error = lines.append(&["a long second".into()]);
            let error = error.expect_err("a full disk");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            lines.file.room = 100;
            lines
                .append(&["third, which is longer".into()])
                .expect("room");
            let text = String::from_utf8(lines.file.file.into_inner()).expect("text");
            assert_eq!(text, "first\nthird, which is longer\n");
        }
    }
}
