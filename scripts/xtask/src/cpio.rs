//! Archives in cpio's `newc` format, as the Linux kernel (Documentation/driver-api/early-userspace/buffer-format) and
//! the root task read them.

/// A regular file, with its permission bits.
const FILE: u32 = 0o100000;
const FOLDER: u32 = 0o040000;
const LINK: u32 = 0o120000;
const CHARACTER_DEVICE: u32 = 0o020000;

const HEADER: usize = 110;

/// An archive being written.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Appends a file whose data starts at the next 4-byte boundary.
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) {
        self.entry(name, 0, FILE | permissions, (0, 0), data);
    }

    /// Appends a file whose data starts at a multiple of 4096 from the archive's start, so that it can be mapped.
    /// The name is followed by as many NULs as that takes; readers cut it at the first.
    pub fn page_aligned_file(&mut self, name: &str, data: &[u8]) {
        let unpadded = self.bytes.len() + HEADER + name.len() + 1;
        let padding = unpadded.next_multiple_of(4096) - unpadded;
        self.entry(name, padding, FILE | 0o444, (0, 0), data);
    }

    /// Appends a folder.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, 0, FOLDER | 0o755, (0, 0), &[]);
    }

    /// Appends a symbolic link.
    pub fn link(&mut self, name: &str, destination: &str) {
        self.entry(name, 0, LINK | 0o777, (0, 0), destination.as_bytes());
    }

    /// Appends a character device.
    pub fn character_device(&mut self, name: &str, permissions: u32, major: u32, minor: u32) {
        self.entry(name, 0, CHARACTER_DEVICE | permissions, (major, minor), &[]);
    }

    /// The archive with its trailer, padded to a multiple of 4096.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, (0, 0), &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(4096), 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, name_padding: usize, mode: u32, device: (u32, u32), data: &[u8]) {
        let name_length = name.len() + 1 + name_padding;
        // inode, mode, uid, gid, links, mtime, size, device of the file (major, minor), device named by the file
        // (major, minor), length of the name with its NULs, checksum: unused.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(data.len()).expect("checked when the bundle's files are read"),
            0,
            0,
            device.0,
            device.1,
            name_length as u32,
            0,
        ];
        self.entries += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(self.bytes.len() + 1 + name_padding, 0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn position(archive: &[u8], needle: &[u8]) -> usize {
        archive.windows(needle.len()).position(|window| window == needle).expect("is in the archive")
    }

    #[test]
    fn mapped_files_start_on_pages() {
        let mut archive = Archive::default();
        archive.file("small", 0o644, b"x");
        archive.page_aligned_file("programs/vmm", b"first file");
        archive.page_aligned_file("guests/linux/kernel", b"second file");
        let archive = archive.finish();
        assert_eq!(position(&archive, b"first file") % 4096, 0);
        assert_eq!(position(&archive, b"second file") % 4096, 0);
        assert_eq!(archive.len() % 4096, 0);
    }

    /// GNU cpio as the judge of the format.
    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/busybox", 0o755, &[7; 4097]);
        archive.link("bin/sh", "busybox");
        archive.file("last", 0o644, b"");
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--quiet", "--verbose", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return; // `cargo xtask setup` has not run: there is no cpio to ask.
        };
        cpio.stdin.take().expect("piped").write_all(&archive.finish()).expect("cpio reads all of it");
        let output = cpio.wait_with_output().expect("cpio ends");
        let listing = String::from_utf8(output.stdout).expect("the names are text");
        let columns: Vec<(String, String, String)> = listing
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                (words[0].into(), words[4].into(), words[8..].join(" "))
            })
            .collect();
        let entry = |mode: &str, size: &str, name: &str| (mode.into(), size.into(), name.into());
        assert_eq!(
            columns,
            [
                entry("drwxr-xr-x", "0", "bin"),
                entry("-rwxr-xr-x", "4097", "bin/busybox"),
                entry("lrwxrwxrwx", "7", "bin/sh -> busybox"),
                entry("-rw-r--r--", "0", "last"),
            ]
        );
    }
}
