//! What a file is that is not what it should be, by its first bytes.

use std::fmt;
use std::io::Read;
use std::path::Path;

/// What files are taken for samples or weights and are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Empty,
    /// What git has in place of a large file until it is fetched.
    LfsPointer,
    /// A page, such as a server sends with an error or for a login.
    Html,
    /// Text with two bytes a character.
    Utf16,
    /// Packed by gzip.
    Gzip,
    /// Packed by Zstandard.
    Zstandard,
    /// Packed by bzip2.
    Bzip2,
    /// Packed by xz.
    Xz,
    /// A zip archive, which PyTorch's own files are too.
    Zip,
    /// A table of Parquet.
    Parquet,
    /// A table of Arrow.
    Arrow,
    /// Weights of llama.cpp.
    Gguf,
}

/// Bytes by which a file is known.
const BYTES: usize = 64;

impl Content {
    /// What begins with these bytes; `None` for what is not known here, as text and safetensors.
    pub fn of(start: &[u8]) -> Option<Self> {
        let marks: [(&[u8], Self); 14] = [
            (b"version https://git-lfs", Self::LfsPointer),
            (b"\xff\xfe", Self::Utf16),
            (b"\xfe\xff", Self::Utf16),
            (b"{\0", Self::Utf16),
            (b"\0{", Self::Utf16),
            (b"\x1f\x8b", Self::Gzip),
            (b"\x28\xb5\x2f\xfd", Self::Zstandard),
            (b"BZh", Self::Bzip2),
            (b"\xfd7zXZ", Self::Xz),
            (b"PK\x03\x04", Self::Zip),
            (b"PAR1", Self::Parquet),
            (b"ARROW1", Self::Arrow),
            (b"\xff\xff\xff\xff", Self::Arrow),
            (b"GGUF", Self::Gguf),
        ];
        if start.is_empty() {
            return Some(Self::Empty);
        }
        let text = start.strip_prefix(BOM).unwrap_or(start).trim_ascii_start();
        let text = text[..text.len().min(BYTES)].to_ascii_lowercase();
        let page: [&[u8]; 3] = [b"<!doctype html", b"<html", b"<?xml"];
        if page.iter().any(|mark| text.starts_with(mark)) {
            return Some(Self::Html);
        }
        let mark = marks.iter().find(|(mark, _)| start.starts_with(mark));
        mark.map(|(_, content)| *content)
    }

    /// What a file is, by its first bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(path: &Path) -> std::io::Result<Option<Self>> {
        let mut start = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(BYTES as u64).read_to_end(&mut start)?;
        Ok(Self::of(&start))
    }

    /// What to do to have the file itself.
    pub(crate) fn advice(self, path: &Path) -> String {
        let file = path.display();
        match self {
            Self::Empty => "is it still being written, or did a download fail?".into(),
            Self::LfsPointer => "fetch the file itself by `git lfs pull` in its folder".into(),
            Self::Html => {
                "the download brought a page, perhaps of an error or a login; download it again"
                    .into()
            }
            Self::Utf16 => {
                format!("turn it into UTF-8 by `iconv -f UTF-16 -t UTF-8 '{file}' > NEW`")
            }
            Self::Gzip => format!("unpack it by `gzip -dc '{file}' > NEW`"),
            Self::Zstandard => format!("unpack it by `zstd -dc '{file}' > NEW`"),
            Self::Bzip2 => format!("unpack it by `bzip2 -dc '{file}' > NEW`"),
            Self::Xz => format!("unpack it by `xz -dc '{file}' > NEW`"),
            Self::Zip => format!("unpack it by `unzip '{file}'`"),
            Self::Parquet => format!(
                "turn it into JSON lines by `python3 -c \"import pandas; pandas.read_parquet('{file}')\
                 .to_json('NEW', orient='records', lines=True)\"`"
            ),
            Self::Arrow => format!(
                "turn it into JSON lines by `python3 -c \"import datasets; \
                 datasets.Dataset.from_file('{file}').to_json('NEW')\"`"
            ),
            Self::Gguf => "weights in this format are not read".into(),
        }
    }
}

/// A UTF-8 byte order mark, which means nothing.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";

impl fmt::Display for Content {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            Self::Empty => "empty",
            Self::LfsPointer => "a git-LFS pointer, not the file it stands for",
            Self::Html => "a web page (HTML)",
            Self::Utf16 => "UTF-16, not UTF-8",
            Self::Gzip => "packed by gzip",
            Self::Zstandard => "packed by Zstandard",
            Self::Bzip2 => "packed by bzip2",
            Self::Xz => "packed by xz",
            Self::Zip => "a zip archive",
            Self::Parquet => "a Parquet table",
            Self::Arrow => "an Arrow table",
            Self::Gguf => "GGUF",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_named() {
        for (bytes, content) in [
            (&b""[..], Some(Content::Empty)),
            (b"{\"text\": 1}", None),
            (b"\xef\xbb\xbf{\"text\": 1}", None),
            (b"\n <!DOCTYPE HTML><p>", Some(Content::Html)),
            (b"\xef\xbb\xbf<html>", Some(Content::Html)),
            (b"\x1f\x8b\x08", Some(Content::Gzip)),
            // A safetensors file begins with the length of its header.
            (b"\x10\x02\0\0\0\0\0\0{\"", None),
        ] {
            assert_eq!(Content::of(bytes), content, "{bytes:?}");
        }
    }
}
