//! Guest files from the recipes in `guests/`: kernels, user spaces and disks from Debian's packages and programs of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use plan::GuestKind;
use serde::Deserialize;

use crate::package::Package;
use crate::programs::Programs;
use crate::source::Source;
use crate::tree::Tree;
use crate::workspace;

/// What a recipe makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecipeKind {
    /// A guest kernel.
    Kernel,
    /// An initial RAM file system.
    Initramfs,
    /// A disk with a file system.
    Disk,
}

impl fmt::Display for RecipeKind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initrd",
            Self::Disk => "disk",
        })
    }
}

/// A file of `guests/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Recipe {
    /// A guest kernel.
    #[serde(rename = "kernel")]
    Kernel(Kernel),
    /// An initial RAM file system.
    #[serde(rename = "initramfs")]
    Initramfs(Initramfs),
    /// A disk with a file system.
    #[serde(rename = "disk")]
    Disk(Disk),
}

/// Where a kernel comes from.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Kernel {
    /// A program of this workspace.
    Program {
        /// Its package's name.
        program: String,
    },
    /// A file of a Debian package.
    Package {
        /// The package's name.
        package: String,
        /// The dependency of it, with `*` for the version, that has the file.
        depends: Option<String>,
        /// The file, with `*` for the version.
        file: String,
        /// Modules that make it a host of virtual machines, each after those that it needs.
        #[serde(default)]
        modules: Vec<String>,
        /// Modules for the devices of virtual machines, in the same way.
        #[serde(default)]
        drivers: Vec<String>,
    },
}

/// What a small Linux user space is made of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Initramfs {
    package: String,
    busybox: String,
    #[serde(default)]
    programs: Vec<String>,
    /// The recipe of the kernel whose drivers it has.
    drivers_of: Option<String>,
    /// Path in the archive, and file beside the recipe.
    files: BTreeMap<String, String>,
}

/// An ext4 file system with the files of a small Linux user space.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The recipe of the initial RAM file system that has them.
    files_of: String,
    /// How large it is.
    mebibytes: u32,
}

fn folder() -> PathBuf {
    workspace::root().join("guests")
}

impl Recipe {
    /// Reads a recipe.
    pub fn read(name: &str) -> Result<Self> {
        Source::read(&folder().join(format!("{name}.toml")))?.parse()
    }

    /// The names of all recipes of a kind, in order.
    pub fn names(kind: RecipeKind) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder()).context("cannot read guests/")? {
            let file = entry?.file_name();
            if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".toml"))
                && Self::read(name)?.kind() == kind
            {
                names.push(name.to_string());
            }
        }
        names.sort();
        Ok(names)
    }

    fn kind(&self) -> RecipeKind {
        match self {
            Self::Kernel(_) => RecipeKind::Kernel,
            Self::Initramfs(_) => RecipeKind::Initramfs,
            Self::Disk(_) => RecipeKind::Disk,
        }
    }

    /// How the made kernel is loaded.
    pub fn guest_kind(&self) -> GuestKind {
        match self {
            Self::Kernel(Kernel::Program { .. }) => GuestKind::Multiboot,
            _ => GuestKind::Linux,
        }
    }

    /// The workspace's programs that it needs.
    pub fn programs(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Kernel(Kernel::Program { program }) => vec![program.clone()],
            Self::Kernel(Kernel::Package { .. }) => vec![],
            Self::Initramfs(initramfs) => initramfs.programs.clone(),
            Self::Disk(disk) => Self::read(&disk.files_of)?.programs()?,
        })
    }

    /// Downloads what it needs from packages, if that is not there already.
    pub fn fetch(&self) -> Result<()> {
        match self {
            Self::Kernel(Kernel::Program { .. }) => Ok(()),
            Self::Kernel(Kernel::Package { .. }) => self.unpacked().map(|_| ()),
            Self::Initramfs(Initramfs { package, busybox, drivers_of, .. }) => {
                if let Some(kernel) = drivers_of {
                    Self::read(kernel)?.fetch()?;
                }
                Package { name: package, depends: None }.file(busybox).map(|_| ())
            }
            Self::Disk(disk) => Self::read(&disk.files_of)?.fetch(),
        }
    }

    /// The kernel of a package, its modules, and its drivers, all of the same version.
    fn unpacked(&self) -> Result<(PathBuf, Vec<PathBuf>, Vec<PathBuf>)> {
        let Self::Kernel(Kernel::Package { package, depends, file, modules, drivers }) = self else {
            bail!("this recipe's kernel is in no package")
        };
        let files: Vec<&str> = [file].into_iter().chain(modules).chain(drivers).map(String::as_str).collect();
        let mut files = Package { name: package, depends: depends.as_deref() }.files(&files)?;
        let drivers = files.split_off(1 + modules.len());
        let modules = files.split_off(1);
        Ok((files.remove(0), modules, drivers))
    }

    /// The kernel of a package, and behind it its modules.
    pub fn with_modules(&self) -> Result<Vec<PathBuf>> {
        let (kernel, modules, _) = self.unpacked()?;
        Ok([kernel].into_iter().chain(modules).collect())
    }

    /// Makes the file for a bundle.
    pub fn make(&self, programs: &Programs) -> Result<Vec<u8>> {
        match self {
            Self::Kernel(Kernel::Program { program }) => programs.stripped(program),
            Self::Kernel(Kernel::Package { .. }) => workspace::read(&self.unpacked()?.0),
            Self::Initramfs(initramfs) => Ok(initramfs.tree(programs)?.archive()),
            Self::Disk(_) => bail!("a disk is no part of a bundle"),
        }
    }

    /// Makes a disk in `file`.
    pub fn make_disk(&self, programs: &Programs, file: &Path) -> Result<()> {
        let Self::Disk(disk) = self else { bail!("this recipe makes no disk") };
        let Self::Initramfs(initramfs) = Self::read(&disk.files_of)? else {
            bail!("the recipe {} makes no {}", disk.files_of, RecipeKind::Initramfs)
        };
        initramfs.tree(programs)?.disk(file, disk.mebibytes)
    }
}

impl Initramfs {
    fn tree(&self, programs: &Programs) -> Result<Tree> {
        let mut tree = Tree::default();
        for folder in ["bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var"] {
            tree.folder(folder);
        }
        for alias in ["sbin", "usr"] {
            tree.link(alias, if alias == "usr" { "/" } else { "bin" });
        }
        // The kernel opens it for the first process before anything is mounted.
        tree.character_device("dev/console", 0o600, 5, 1);
        tree.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n".into());
        tree.file("etc/group", 0o644, b"root:x:0:\n".into());
        tree.file("etc/profile", 0o644, b"PS1='\\w # '\n".into());
        for (path, file) in &self.files {
            tree.file(path, 0o755, workspace::read(&folder().join(file))?);
        }
        let busybox = Package { name: &self.package, depends: None }.file(&self.busybox)?;
        tree.file("bin/busybox", 0o755, workspace::read(&busybox)?);
        for applet in applets(&busybox)? {
            let path = format!("bin/{applet}");
            if !self.files.contains_key(&path) {
                tree.link(&path, "busybox");
            }
        }
        if let Some(kernel) = &self.drivers_of {
            add_drivers(&mut tree, &Recipe::read(kernel)?.unpacked()?.2)?;
        }
        for program in &self.programs {
            tree.file(&format!("bin/{program}"), 0o755, programs.stripped(program)?);
        }
        Ok(tree)
    }
}

/// Modules, and a list of them in the order in which they can be loaded.
fn add_drivers(tree: &mut Tree, drivers: &[PathBuf]) -> Result<()> {
    let mut order = String::new();
    tree.folder("lib");
    tree.folder("lib/drivers");
    for driver in drivers {
        let name = driver.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        order += &format!("{name}\n");
        tree.file(&format!("lib/drivers/{name}"), 0o644, workspace::read(driver)?);
    }
    tree.file("lib/drivers/order", 0o644, order.into_bytes());
    Ok(())
}

/// The applets of a static busybox, which runs on any Linux of this architecture.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let output = std::process::Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", workspace::shown(busybox)))?;
    let list = String::from_utf8(output.stdout).map_err(|_| anyhow!("busybox lists applets that are no text"))?;
    let applets: Vec<String> = list.lines().filter(|name| *name != "busybox").map(String::from).collect();
    if applets.is_empty() {
        bail!("{} lists no applets", workspace::shown(busybox));
    }
    Ok(applets)
}

/// An archive with one command, for the initial RAM file system of [`crate::system::System::execute`].
pub fn script(command: &str) -> Vec<u8> {
    let mut tree = Tree::default();
    tree.file("exec", 0o755, format!("{command}\n").into_bytes());
    tree.archive()
}
