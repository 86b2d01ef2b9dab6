//! A small tree of files for a Linux: as an archive for an initial RAM file system, or as a file system on a disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::workspace;

/// Makes ext4 file systems; the package e2fsprogs brings it, outside of most users' paths.
pub const MKE2FS: &str = "/sbin/mke2fs";

enum Entry {
    Folder,
    File(u32, Vec<u8>),
    Link(String),
    Device(u32, (u32, u32)),
}

/// Files and folders, each folder before what is in it.
#[derive(Default)]
pub struct Tree(Vec<(String, Entry)>);

impl Tree {
    /// Adds a folder.
    pub fn folder(&mut self, path: &str) {
        self.0.push((path.into(), Entry::Folder));
    }

    /// Adds a file with its permission bits.
    pub fn file(&mut self, path: &str, permissions: u32, data: Vec<u8>) {
        self.0.push((path.into(), Entry::File(permissions, data)));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, destination: &str) {
        self.0.push((path.into(), Entry::Link(destination.into())));
    }

    /// Adds a character device, which is not put on disks: there Linux has devices of its own.
    pub fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.0.push((path.into(), Entry::Device(permissions, (major, minor))));
    }

    /// All of it as an archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for (path, entry) in &self.0 {
            match entry {
                Entry::Folder => archive.folder(path),
                Entry::File(permissions, data) => archive.file(path, *permissions, data),
                Entry::Link(destination) => archive.link(path, destination),
                Entry::Device(permissions, (major, minor)) => {
                    archive.character_device(path, *permissions, *major, *minor);
                }
            }
        }
        archive.finish()
    }

    /// An ext4 file system of `mebibytes` with all of it, into `file`. Files belong to whoever makes it.
    pub fn disk(&self, file: &Path, mebibytes: u32) -> Result<()> {
        let folder = file.with_extension("content");
        let _ = fs::remove_dir_all(&folder);
        self.write(&folder).with_context(|| format!("cannot write {}", workspace::shown(&folder)))?;
        let _ = fs::remove_file(file);
        let output = Command::new(MKE2FS)
            .args(["-q", "-F", "-t", "ext4", "-L", "root", "-E", "root_owner=0:0,lazy_itable_init=0", "-d"])
            .args([folder.as_path(), file])
            .arg(format!("{mebibytes}M"))
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {MKE2FS}"))?;
        let _ = fs::remove_dir_all(&folder);
        if !output.status.success() {
            bail!("{MKE2FS} cannot make a disk: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn write(&self, to: &Path) -> Result<()> {
        fs::create_dir_all(to)?;
        for (path, entry) in &self.0 {
            let place = to.join(path);
            match entry {
                Entry::Folder => fs::create_dir(place)?,
                Entry::File(permissions, data) => {
                    fs::write(&place, data)?;
                    fs::set_permissions(&place, fs::Permissions::from_mode(*permissions))?;
                }
                Entry::Link(destination) => symlink(destination, place)?,
                Entry::Device(..) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tools of ext4 as the judges.
    #[test]
    fn a_disk_has_what_is_in_the_tree() {
        if !Path::new(MKE2FS).exists() {
            return; // `cargo xtask setup` has not run.
        }
        let mut tree = Tree::default();
        tree.folder("bin");
        tree.file("bin/program", 0o755, vec![7; 5000]);
        tree.link("bin/sh", "program");
        tree.character_device("console", 0o600, 5, 1);
        let file = workspace::folder("test").expect("can be made").join("tree.img");
        tree.disk(&file, 8).expect("can be made");
        assert_eq!(fs::metadata(&file).expect("is there").len(), 8 << 20);
        let ask = |request: &str| {
            let output = Command::new("/sbin/debugfs").args(["-R", request]).arg(&file).output().expect("starts");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let (program, link) = (ask("stat /bin/program"), ask("stat /bin/sh"));
        assert!(program.contains("Mode:  0755") && program.contains("Size: 5000"), "{program}");
        assert!(link.contains("Fast link dest: \"program\""), "{link}");
        assert!(!ask("ls /").contains("console"));
    }
}
