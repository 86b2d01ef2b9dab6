//! Single files out of Debian packages, without installing them: named by apt's signed index, checked against the
//! checksum that stands there, kept in the build directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::{setup, workspace};

/// A package, or the one among its dependencies that matches a pattern.
pub struct Package<'a> {
    /// The name.
    pub name: &'a str,
    /// The dependency's name with `*` for what changes from version to version.
    pub depends: Option<&'a str>,
}

/// What apt's index says of a package.
struct Indexed {
    name: String,
    version: String,
    sha256: String,
    depends: String,
}

impl Package<'_> {
    /// A file of the package by its path, in which `*` stands for what changes from version to version.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        Ok(self.files(&[path])?.remove(0))
    }

    /// Several files, all of the same version of the package.
    pub fn files(&self, paths: &[&str]) -> Result<Vec<PathBuf>> {
        let folder = workspace::folder(&format!("guests/{}", self.name))?;
        let kept = |path: &&str| {
            let base = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path).replace('*', "");
            folder.join(base.trim_matches('-'))
        };
        let kept: Vec<PathBuf> = paths.iter().map(kept).collect();
        if !kept.iter().all(|kept| kept.is_file()) {
            // An index that is missing or out of date is the usual reason for a failure.
            self.fetch(paths, &folder, &kept)
                .or_else(|_| setup::update_index().and_then(|()| self.fetch(paths, &folder, &kept)))
                .with_context(|| format!("cannot get {} from Debian's package {}", paths.join(", "), self.name))?;
        }
        Ok(kept)
    }

    fn fetch(&self, paths: &[&str], folder: &Path, kept: &[PathBuf]) -> Result<()> {
        let mut package = indexed(self.name)?;
        if let Some(pattern) = self.depends {
            let name = package
                .depends
                .split([',', '|'])
                .filter_map(|dependency| dependency.split_whitespace().next())
                .find(|name| matches(pattern, name))
                .ok_or_else(|| anyhow!("{} depends on nothing like {pattern}", self.name))?
                .to_string();
            package = indexed(&name)?;
        }
        let Indexed { name, version, sha256, .. } = package;
        eprintln!("downloading Debian's package {name} {version}");
        let scratch = folder.join("download");
        let _ = fs::remove_dir_all(&scratch);
        fs::create_dir_all(&scratch)?;
        let mut download = Command::new("apt-get");
        // apt downloads as a user of its own, who could not write here.
        download.args(["-qq", "-o", "APT::Sandbox::User=root", "download", &format!("{name}={version}")]);
        output(download.current_dir(&scratch))?;
        let file = fs::read_dir(&scratch)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| anyhow!("apt-get downloaded nothing"))?;
        let found: String = Sha256::digest(workspace::read(&file)?).iter().map(|byte| format!("{byte:02x}")).collect();
        if found != sha256 {
            bail!("{name} has the checksum {found}, but apt's index says {sha256}");
        }
        let content = scratch.join("content");
        output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&content))?;
        let unpacked: Vec<PathBuf> = paths.iter().map(|path| find(&content, path)).collect::<Result<_>>()?;
        // Renames, so that an interrupted run leaves nothing that looks whole.
        for (unpacked, kept) in unpacked.iter().zip(kept) {
            fs::rename(unpacked, kept)?;
        }
        workspace::write(&folder.join("origin"), format!("{name} {version} sha256 {sha256}\n").as_bytes())?;
        let _ = fs::remove_dir_all(&scratch);
        Ok(())
    }
}

/// The candidate version of a package in apt's index.
fn indexed(name: &str) -> Result<Indexed> {
    let text = output(Command::new("apt-cache").args(["show", "--no-all-versions", name]))
        .context("apt's index does not have it; `apt-get update` fetches the index")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(String::from)
            .ok_or_else(|| anyhow!("apt's index has no {name} for it"))
    };
    Ok(Indexed {
        name: field("Package")?,
        version: field("Version")?,
        sha256: field("SHA256")?,
        depends: field("Depends").unwrap_or_default(),
    })
}

/// Whether `name` is `pattern` with something in the place of its `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
        None => pattern == name,
    }
}

/// The file at `pattern` below `folder`; each of its parts may have a `*`.
fn find(folder: &Path, pattern: &str) -> Result<PathBuf> {
    // Packages are moving from /bin to /usr/bin.
    [folder.to_path_buf(), folder.join("usr")]
        .iter()
        .find_map(|folder| {
            pattern.split('/').try_fold(folder.clone(), |folder, part| {
                fs::read_dir(folder)
                    .ok()?
                    .flatten()
                    .find(|entry| entry.file_name().to_str().is_some_and(|name| matches(part, name)))
                    .map(|entry| entry.path())
            })
        })
        .ok_or_else(|| anyhow!("the package has no {pattern}"))
}

/// The standard output of a command that has to succeed.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot start `{program}`: this needs Debian's package tools"))?;
    if !output.status.success() {
        bail!("`{program}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_versions() {
        let pattern = "linux-image-*-cloud-amd64";
        assert!(matches(pattern, "linux-image-6.1.0-56-cloud-amd64"));
        assert!(!matches(pattern, "linux-image-cloud-amd64"), "the pattern's two ends may not overlap");
        assert!(!matches(pattern, "linux-image-6.1.0-56-amd64"));
        assert!(matches("busybox", "busybox") && !matches("busybox", "busybox-static"));
    }

    #[test]
    fn files_are_found_below_folders_with_versions() {
        let folder = workspace::folder("package-test").expect("can be made");
        let modules = folder.join("usr/lib/modules/6.1.0-9/kernel");
        fs::create_dir_all(&modules).expect("can be made");
        fs::write(modules.join("kvm.ko"), b"").expect("can be written");
        assert_eq!(find(&folder, "lib/modules/*/kernel/kvm.ko").ok(), Some(modules.join("kvm.ko")));
        assert!(find(&folder, "lib/modules/*/kernel/kvm-none.ko").is_err());
    }
}
