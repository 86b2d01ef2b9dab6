//! The boot archive: a cpio file in `newc` format behind the root task's own ELF image.
//!
//! The format: a header of 110 bytes in hexadecimal text, the name, the data, each padded to 4. The packer may add
//! zeros to a name so that the data begins at a page; the name ends at its first zero. Format: cpio(5), "New ASCII".

use core::fmt;

const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";

/// Why an archive cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// Nothing follows the root image.
    Missing,
    /// No entry begins at this offset of the archive.
    NotCpio(usize),
    /// The archive ends inside the entry at this offset, or before its trailer.
    Truncated(usize),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "no archive behind the root image"),
            Self::NotCpio(at) => write!(f, "the archive is not cpio (newc) at offset {at}"),
            Self::Truncated(at) => write!(f, "the archive is truncated: it ends in the entry at offset {at}"),
        }
    }
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Its path.
    pub name: &'a str,
    /// Its content.
    pub data: &'a [u8],
}

/// A whole, checked archive.
#[derive(Clone, Copy)]
pub struct Archive<'a>(&'a [u8]);

impl<'a> Archive<'a> {
    /// Checks that `bytes` is a whole archive; what follows the trailer does not matter.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        if bytes.is_empty() {
            return Err(ArchiveError::Missing);
        }
        let mut at = 0;
        while let Some((_, next)) = entry(bytes, at)? {
            at = next;
        }
        Ok(Self(bytes))
    }

    /// The files in order.
    pub fn files(&self) -> impl Iterator<Item = File<'a>> {
        let bytes = self.0;
        let mut at = 0;
        core::iter::from_fn(move || {
            let (file, next) = entry(bytes, at).ok().flatten()?;
            at = next;
            Some(file)
        })
    }

    /// The file at this path.
    pub fn find(&self, name: &str) -> Option<File<'a>> {
        self.files().find(|file| file.name == name)
    }
}

/// The entry at offset `at` and the offset of the next; `None` for the trailer.
fn entry(bytes: &[u8], at: usize) -> Result<Option<(File<'_>, usize)>, ArchiveError> {
    let truncated = ArchiveError::Truncated(at);
    let header = bytes.get(at..at.saturating_add(HEADER)).ok_or(truncated)?;
    if &header[..6] != MAGIC {
        return Err(ArchiveError::NotCpio(at));
    }
    let field = |index: usize| {
        let text = core::str::from_utf8(&header[6 + index * 8..14 + index * 8]).ok()?;
        usize::from_str_radix(text, 16).ok()
    };
    let size = field(6).ok_or(ArchiveError::NotCpio(at))?;
    let name_size = field(11).ok_or(ArchiveError::NotCpio(at))?;
    let name_at = at + HEADER;
    let data_at = (name_at + name_size).next_multiple_of(4);
    let end = data_at + size;
    let name = bytes.get(name_at..name_at + name_size).ok_or(truncated)?;
    let data = bytes.get(data_at..end).ok_or(truncated)?;
    let length = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let name = core::str::from_utf8(&name[..length]).map_err(|_| ArchiveError::NotCpio(at))?;
    if name == TRAILER {
        return Ok(None);
    }
    Ok(Some((File { name, data }, end.next_multiple_of(4))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn append(archive: &mut Vec<u8>, name: &str, data: &[u8]) {
        let name = format!("{name}\0");
        let fields = [1, 0o100644, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len(), 0];
        let text: String = fields.iter().map(|f| format!("{f:08x}")).collect();
        archive.extend(format!("070701{text}{name}").bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut archive = Vec::new();
        append(&mut archive, "plan", b"abc");
        append(&mut archive, "programs/vmm\0\0\0\0\0\0", b"defgh");
        append(&mut archive, TRAILER, b"");
        archive
    }

    #[test]
    fn files_are_found_by_name() {
        let mut bytes = sample();
        bytes.extend([0; 500]);
        let archive = Archive::new(&bytes).unwrap();
        assert_eq!(archive.files().count(), 2);
        assert_eq!(archive.find("plan").unwrap().data, b"abc");
        assert_eq!(archive.find("programs/vmm").unwrap().data, b"defgh");
        assert!(archive.find("programs").is_none());
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = sample();
        assert_eq!(Archive::new(&[]).err(), Some(ArchiveError::Missing));
        for length in 1..bytes.len() - 4 {
            let error = Archive::new(&bytes[..length]).err();
            assert!(matches!(error, Some(ArchiveError::Truncated(_))), "{length}: {error:?}");
        }
        assert_eq!(Archive::new(&[b'x'; 200]).err(), Some(ArchiveError::NotCpio(0)));
        assert_eq!(ArchiveError::Missing.to_string(), "no archive behind the root image");
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..400), size: u32) {
            if bytes.len() > HEADER {
                bytes[..HEADER].copy_from_slice(&sample()[..HEADER]);
                bytes[54..62].copy_from_slice(format!("{size:08x}").as_bytes());
            }
            if let Ok(archive) = Archive::new(&bytes) {
                prop_assert!(archive.files().count() < 10);
            }
        }
    }
}
