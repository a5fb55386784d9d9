//! The folder of a store: files of gradients, beside the index that names what is in them.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::index::{Entry, Header, INDEX, Index, is_written, json_line, read_index, same, samples};
use super::positioned::{read_at, write_at};
use crate::container::sync_folder;
use crate::error::{Error, Result, format_error as format, io_error as io};

/// The files of a store.
#[derive(Debug)]
pub(super) struct Shards {
    folder: PathBuf,
    /// Absent where the store is only read.
    index: Option<File>,
    /// Where the next line goes.
    index_end: u64,
    /// Why nothing can be written any more.
    broken: Option<String>,
    files: Vec<File>,
    /// Bytes in the last file.
    end: u64,
    /// Bytes in all files.
    pub(super) bytes: u64,
    limit: u64,
}

impl Shards {
    /// Open `folder` for writing, with what is in it; begin it where there is nothing.
    ///
    /// The index is only ever read and written through the file that is locked: another would be
    /// kept out on Windows.
    pub(super) fn write(folder: &Path, header: &Header, limit: u64) -> Result<(Self, Vec<Entry>)> {
        std::fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
        let path = folder.join(INDEX);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let index = options.open(&path).map_err(|e| io(&path, e))?;
        index.try_lock().map_err(|e| Error::StoreLocked {
            path: folder.into(),
            reason: e.to_string(),
        })?;
        let (entries, begun, half) = match read_index(&path, &index)? {
            Some(found) => {
                same(folder, header, &found.header)?;
                (found.entries, found.begun, found.half)
            }
            None => {
                let line = json_line(&path, header)?;
                index.set_len(0).map_err(|e| io(&path, e))?;
                write_at(&index, &line, 0).map_err(|e| io(&path, e))?;
                (Vec::new(), line.len() as u64, false)
            }
        };
        let mut shards = Self::closed(folder);
        shards.limit = limit;
        let named = samples(&entries);
        let mut entries = shards.attach(entries, header, true)?;
        shards.give_up_unwritten(&mut entries)?;
        let lost = named - samples(&entries);
        if lost > 0 || half {
            tracing::warn!(
                ?folder,
                samples = lost,
                half_a_line = half,
                "gave up samples whose gradients are not whole: they have to come again"
            );
        }
        // What a killed program left behind the last whole chunk goes.
        shards.index_end = entries.last().map_or(begun, |e| e.line_end);
        index.set_len(shards.index_end).map_err(|e| io(&path, e))?;
        if let Some(last) = shards.files.last() {
            last.set_len(shards.end).map_err(|e| io(folder, e))?;
        }
        let next = shards.shard(shards.files.len());
        match std::fs::remove_file(&next) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&next, e)),
            _ => {}
        }
        shards.index = Some(index);
        Ok((shards, entries))
    }

    /// Open a store for reading.
    pub(super) fn read(folder: &Path) -> Result<(Self, Header, Vec<Entry>)> {
        let (index, found) = Self::open_index(folder)?;
        if found.half && !is_written(&index) {
            return Err(Error::Truncated {
                path: folder.into(),
                reason: "its index ends within a line".into(),
            });
        }
        let mut shards = Self::closed(folder);
        let entries = shards.attach(found.entries, &found.header, false)?;
        Ok((shards, found.header, entries))
    }

    /// The header of the store in `folder`.
    pub(super) fn header(folder: &Path) -> Result<Header> {
        Ok(Self::open_index(folder)?.1.header)
    }

    fn open_index(folder: &Path) -> Result<(File, Index)> {
        let path = folder.join(INDEX);
        let index = File::open(&path).map_err(|e| io(&path, e))?;
        let found = read_index(&path, &index)?.ok_or_else(|| format(&path, "it is empty"))?;
        Ok((index, found))
    }

    fn closed(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            index: None,
            index_end: 0,
            broken: None,
            files: Vec::new(),
            end: 0,
            bytes: 0,
            limit: 0,
        }
    }

    /// Open the files of `entries` and check that every chunk lies where its line says. Chunks at
    /// the end whose bytes did not reach the disk are given up by who writes, and an error for who
    /// reads.
    fn attach(
        &mut self,
        mut entries: Vec<Entry>,
        header: &Header,
        write: bool,
    ) -> Result<Vec<Entry>> {
        let index = self.folder.join(INDEX);
        let last = entries.iter().map(|e| e.shard).max();
        let count = last.map_or(Some(0), |last| last.checked_add(1));
        let count = count.filter(|&count| count <= entries.len());
        let count = count.ok_or_else(|| format(&index, "it names shards that hold nothing"))?;
        let mut lengths = Vec::new();
        for shard in 0..count {
            let path = self.shard(shard);
            let mut options = OpenOptions::new();
            let options = options.read(true).write(write);
            let file = options.open(&path).map_err(|e| io(&path, e))?;
            lengths.push(file.metadata().map_err(|e| io(&path, e))?.len());
            self.files.push(file);
        }
        let sample = header
            .bytes()
            .ok_or_else(|| format(&index, "its parameters are too large"))?;
        let mut ends = vec![0; count];
        let mut whole = entries.len();
        for (i, entry) in entries.iter().enumerate() {
            let end = entry.offset.checked_add(entry.bytes);
            let follows = end.is_some() && entry.offset == ends[entry.shard];
            let fits = follows && entry.fits(header, sample);
            if !fits {
                return Err(format(&index, format!("line {} contradicts it", i + 2)));
            }
            ends[entry.shard] = entry.offset + entry.bytes;
            if ends[entry.shard] > lengths[entry.shard] {
                whole = i;
                break;
            }
        }
        if entries[whole..].iter().any(|e| e.shard + 1 < count) {
            let path = self.shard(entries[whole].shard);
            return Err(format(&path, "it is shorter than the index says"));
        }
        if whole < entries.len() && !write {
            let (lost, all) = (samples(&entries[whole..]), samples(&entries));
            let shard = self.shard(entries[whole].shard);
            return Err(Error::Truncated {
                path: self.folder.clone(),
                reason: format!(
                    "{} ends before {lost} of the {all} samples that its index names",
                    shard.display()
                ),
            });
        }
        entries.truncate(whole);
        self.measure(&entries);
        Ok(entries)
    }

    fn measure(&mut self, entries: &[Entry]) {
        let last = |e: &&Entry| e.shard + 1 == self.files.len();
        self.end = entries.iter().rfind(last).map_or(0, |e| e.offset + e.bytes);
        self.bytes = entries.iter().map(|e| e.bytes).sum();
    }

    /// Give up chunks at the end of the last shard that are as long as their lines say and yet not
    /// what was written: after a power cut a file can have its length and not its content. One that
    /// is followed by a good one was damaged otherwise, and is an error.
    fn give_up_unwritten(&mut self, entries: &mut Vec<Entry>) -> Result<()> {
        let last = self.files.len().saturating_sub(1);
        let first = entries.iter().position(|e| e.shard == last);
        let mut damaged = None;
        for at in first.unwrap_or(entries.len())..entries.len() {
            match (self.verify(&entries[at]), damaged.is_some()) {
                (Ok(()), false) => {}
                (Err(error @ Error::Checksum { .. }), false) => damaged = Some((at, error)),
                (Err(Error::Checksum { .. }), true) => {}
                (Ok(()), true) => break,
                (Err(error), _) => return Err(error),
            }
            if at + 1 == entries.len()
                && let Some((at, _)) = damaged.take()
            {
                entries.truncate(at);
                self.measure(entries);
                return Ok(());
            }
        }
        damaged.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// # Errors
    /// [`Error::StoreLocked`] when nothing may be appended.
    pub(super) fn check_writable(&self) -> Result<()> {
        let reason = match (&self.index, &self.broken) {
            (Some(_), None) => return Ok(()),
            (_, Some(reason)) => reason.clone(),
            (None, None) => "it was opened for reading".into(),
        };
        Err(Error::StoreLocked {
            path: self.folder.clone(),
            reason,
        })
    }

    /// The shard and the offset in it where a chunk of `bytes` goes. Whatever was written there
    /// before is not spoken of by any line.
    pub(super) fn place(&mut self, bytes: u64) -> Result<(usize, u64)> {
        self.check_writable()?;
        let end = self.end.saturating_add(bytes);
        if self.files.is_empty() || (self.end > 0 && end > self.limit) {
            let path = self.shard(self.files.len());
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create_new(true);
            self.files
                .push(options.open(&path).map_err(|e| io(&path, e))?);
            self.end = 0;
        }
        Ok((self.files.len() - 1, self.end))
    }

    /// Write bytes of a chunk that is to follow what was appended.
    pub(super) fn write_at(&self, shard: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        write_at(&self.files[shard], bytes, offset).map_err(|e| io(&self.shard(shard), e))
    }

    /// Append the line of a chunk whose bytes were written.
    pub(super) fn append(&mut self, entry: Entry) -> Result<Entry> {
        self.check_writable()?;
        self.append_line(&entry)?;
        self.end = entry.offset + entry.bytes;
        self.bytes += entry.bytes;
        Ok(entry)
    }

    /// All of a line or nothing: half of one would swallow the next.
    fn append_line(&mut self, entry: &Entry) -> Result<()> {
        let path = self.folder.join(INDEX);
        let line = json_line(&path, entry)?;
        let Some(index) = &self.index else {
            return self.check_writable();
        };
        let Err(error) = write_at(index, &line, self.index_end) else {
            self.index_end += line.len() as u64;
            return Ok(());
        };
        if index.set_len(self.index_end).is_err() {
            self.broken = Some(format!(
                "a line of its index could not be written ({error}) nor taken back; open it again"
            ));
        }
        Err(io(&path, error))
    }

    /// Wait until all that was appended is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        let files = self.files.iter().chain(&self.index);
        for file in files {
            file.sync_data().map_err(|e| io(&self.folder, e))?;
        }
        // The names of new files, too.
        sync_folder(&self.folder).map_err(|e| io(&self.folder, e))
    }

    pub(super) fn read_at(&self, shard: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        read_at(&self.files[shard], bytes, offset).map_err(|e| io(&self.shard(shard), e))
    }

    /// Read a chunk and compare it with what was written.
    pub(super) fn verify(&self, entry: &Entry) -> Result<()> {
        self.read_checked(entry, |_| Ok(()))
    }

    /// Give a chunk, 8 MB at a time, and compare it with what was written.
    pub(super) fn read_checked(
        &self,
        entry: &Entry,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        const PIECE: u64 = 1 << 23;
        let mut hasher = crc32fast::Hasher::new();
        let mut bytes = vec![0; entry.bytes.min(PIECE) as usize];
        let mut at = 0;
        while at < entry.bytes {
            let length = (entry.bytes - at).min(PIECE);
            let piece = &mut bytes[..length as usize];
            self.read_at(entry.shard, entry.offset + at, piece)?;
            hasher.update(piece);
            take(piece)?;
            at += length;
        }
        for exponent in entry.exponents.iter().flatten() {
            hasher.update(&exponent.to_le_bytes());
        }
        let found = hasher.finalize();
        if found == entry.crc32 {
            return Ok(());
        }
        Err(Error::Checksum {
            path: self.shard(entry.shard),
            expected: format!("{:08x}", entry.crc32),
            found: format!("{found:08x}"),
        })
    }

    fn shard(&self, number: usize) -> PathBuf {
        self.folder.join(format!("shard-{number:05}.bin"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::FisherKind;
    use crate::sample::SampleRecord;
    use crate::store::Precision;

    fn header() -> Header {
        Header::new(
            "m".into(),
            FisherKind::Empirical,
            Precision::Float32,
            vec![],
        )
    }

    fn entry(id: &str) -> Entry {
        let record = SampleRecord {
            id: id.into(),
            tokens: 1,
            skipped: None,
            step: None,
            cluster: None,
        };
        Entry::new("t", vec![record], (0, 0), 0, 0, Vec::new())
    }

    /// A disk that is full for a while: what was pushed before and after stays whole.
    #[test]
    fn a_line_that_cannot_be_written_is_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut shards, _) = Shards::write(folder.path(), &header(), 100).expect("a store");
        shards.place(0).expect("a shard");
        shards.append(entry("1")).expect("written");
        let index = folder.path().join(INDEX);
        let before = std::fs::read(&index).expect("lines");
        // Half a line is on the disk already when the writing fails.
        let whole = shards.index.take().expect("an index");
        write_at(&whole, b"{\"task\":\"t\",", shards.index_end).expect("half");
        shards.index = Some(File::open(&index).expect("read only"));
        assert!(matches!(shards.append(entry("2")), Err(Error::Io { .. })));
        // It could not be taken back either: nothing more is written, also when it would work.
        shards.index = Some(whole);
        let error = shards.append(entry("2")).expect_err("broken");
        assert!(error.to_string().contains("open it again"), "{error}");
        drop(shards);
        let (mut shards, entries) = Shards::write(folder.path(), &header(), 100).expect("whole");
        assert_eq!(entries.len(), 1);
        assert_eq!(std::fs::read(&index).expect("lines"), before);
        shards.append(entry("2")).expect("written");
        drop(shards);
        let (_, _, entries) = Shards::read(folder.path()).expect("a store");
        assert_eq!(entries.len(), 2);
    }
}
