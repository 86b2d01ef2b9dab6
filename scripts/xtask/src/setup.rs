//! `cargo xtask setup`: whatever is missing on this machine. The other verbs call the part they need, which costs
//! nothing when nothing is missing.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::emulator::Emulator;
use crate::guest::{Recipe, RecipeKind};
use crate::programs::{self, TARGET};
use crate::tree::MKE2FS;
use crate::workspace;

/// A Debian package, and the file by which one sees that what it brings is there, whoever brought it.
struct Tool {
    package: &'static str,
    file: &'static str,
}

const fn tool(package: &'static str, file: &'static str) -> Tool {
    Tool { package, file }
}

const BUILD: [Tool; 1] = [tool("binutils", "strip")];
/// Makes file systems on the disks of emulated machines.
const DISKS: Tool = tool("e2fsprogs", MKE2FS);
const QEMU: Tool = tool("qemu-system-x86", "qemu-system-x86_64");
const BOCHS: [Tool; 7] = [
    tool("bochs", "bochs"),
    tool("bochs-term", "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so"),
    tool("bochsbios", "/usr/share/bochs/BIOS-bochs-latest"),
    tool("vgabios", "/usr/share/bochs/VGABIOS-lgpl-latest"),
    tool("grub-common", "grub-mkrescue"),
    tool("grub-pc-bin", "/usr/lib/grub/i386-pc/multiboot2.mod"),
    tool("xorriso", "xorriso"),
];
/// Judges that the tests call.
const JUDGES: [Tool; 2] = [tool("cpio", "cpio"), tool("acpica-tools", "iasl")];
const SPIN: Tool = tool("spin", "spin");

/// The first major version of QEMU whose SVM is good enough.
const QEMU_VERSION: u32 = 8;

/// Installs everything that any verb needs.
pub fn everything() -> Result<()> {
    install_target()?;
    let mut tools: Vec<&Tool> = BUILD.iter().chain(&BOCHS).chain(&JUDGES).collect();
    tools.extend([&QEMU, &SPIN, &DISKS]);
    install(&tools)?;
    for kind in [RecipeKind::Kernel, RecipeKind::Initramfs, RecipeKind::Disk] {
        for name in Recipe::names(kind)? {
            Recipe::read(&name)?.fetch()?;
        }
    }
    Ok(())
}

/// Installs what building the programs needs.
pub fn for_building() -> Result<()> {
    install_target()?;
    install(&BUILD.iter().collect::<Vec<_>>())
}

/// Installs what building a system and starting it needs.
pub fn for_machine(emulator: Emulator) -> Result<()> {
    install_target()?;
    let mut tools: Vec<&Tool> = BUILD.iter().collect();
    match emulator {
        Emulator::Qemu | Emulator::Kvm => tools.extend([&QEMU, &DISKS]),
        Emulator::Bochs => tools.extend(&BOCHS),
    }
    install(&tools)
}

/// Installs what checking models needs.
pub fn for_models() -> Result<()> {
    install(&[&SPIN])
}

/// Installs what making boot media needs.
pub fn for_media() -> Result<()> {
    install_target()?;
    install(&BUILD.iter().chain(&BOCHS).collect::<Vec<_>>())
}

fn install_target() -> Result<()> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot start `rustc`")?;
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_string();
    let libraries = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
    let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    let present = fs::read_dir(libraries)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_core)));
    if present {
        return Ok(());
    }
    eprintln!("installing the Rust target {TARGET}");
    let script = workspace::root().join("scripts/bare-metal-target.sh");
    programs::run(Command::new("bash").arg(script).arg(TARGET), "installing the Rust target")
}

fn install(tools: &[&Tool]) -> Result<()> {
    let missing: Vec<&str> = tools.iter().filter(|tool| !is_there(tool)).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let debian = Debian::here().map_err(|system| {
        anyhow!(
            "this is {system}, not Debian; install what these Debian packages bring and start again: {}",
            missing.join(" ")
        )
    })?;
    eprintln!("installing the packages {}", missing.join(" "));
    update_index()?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    let backports = format!("{}-backports", debian.codename);
    if missing.contains(&QEMU.package) && debian.version == Some(12) {
        debian.add_backports(&backports)?;
        arguments.extend(["--target-release", &backports]);
    }
    arguments.extend(&missing);
    programs::run(&mut administrator(&[&["apt-get", "-qq"], &arguments[..]].concat())?, "installing packages")?;
    let still: Vec<&str> = tools.iter().filter(|tool| !is_there(tool)).map(|tool| tool.file).collect();
    if !still.is_empty() {
        bail!("the packages are installed, but there is still no usable {}", still.join(", "));
    }
    Ok(())
}

/// Brings apt's package index up to date.
pub fn update_index() -> Result<()> {
    programs::run(&mut administrator(&["apt-get", "-qq", "update"])?, "updating apt's index")
}

fn is_there(tool: &Tool) -> bool {
    let found = if tool.file.starts_with('/') {
        Path::new(tool.file).exists()
    } else {
        std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(tool.file).is_file()))
    };
    found && (tool.package != QEMU.package || qemu_version().is_some_and(|version| version >= QEMU_VERSION))
}

fn qemu_version() -> Option<u32> {
    let output = Command::new(QEMU.file).arg("--version").output().ok()?;
    major_version(&String::from_utf8_lossy(&output.stdout))
}

fn major_version(text: &str) -> Option<u32> {
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// A command as the machine's administrator.
fn administrator(arguments: &[&str]) -> Result<Command> {
    let mut words = arguments.to_vec();
    if !rustix::process::geteuid().is_root() {
        if !is_there(&tool("sudo", "sudo")) {
            bail!("this has to be done as root, and there is no sudo: {}", arguments.join(" "));
        }
        words.splice(0..0, ["sudo", "env", "DEBIAN_FRONTEND=noninteractive"]);
    }
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    Ok(command)
}

/// The Debian that this machine runs, or a system that uses its packages' names.
#[derive(Debug)]
struct Debian {
    /// None for a derivative.
    version: Option<u32>,
    codename: String,
}

impl Debian {
    /// The name of the system if it is another one.
    fn here() -> Result<Self, String> {
        Self::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(release: &str) -> Result<Self, String> {
        let field = |name: &str| {
            let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"').to_string()
        };
        let codename = field("VERSION_CODENAME");
        if field("ID") == "debian" {
            return Ok(Self { version: field("VERSION_ID").parse().ok(), codename });
        }
        if field("ID_LIKE").split_whitespace().any(|like| like == "debian") {
            return Ok(Self { version: None, codename });
        }
        let name = field("PRETTY_NAME");
        Err(if name.is_empty() { "an unknown system".into() } else { name })
    }

    /// Adds the suite with newer packages for this release, from the mirror that the machine uses already.
    fn add_backports(&self, suite: &str) -> Result<()> {
        let output = Command::new("apt-get")
            .args(["indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"])
            .output()
            .context("cannot start `apt-get`")?;
        let targets = String::from_utf8_lossy(&output.stdout).into_owned();
        let uri = |wanted: &str| {
            targets.lines().find_map(|line| line.split_once(' ').filter(|(codename, _)| *codename == wanted))
        };
        if uri(suite).is_some() {
            return Ok(());
        }
        let (_, mirror) = uri(&self.codename).ok_or_else(|| anyhow!("apt knows no mirror of {}", self.codename))?;
        let list = format!("/etc/apt/sources.list.d/{suite}.list");
        let line = format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n");
        eprintln!("adding {suite} to apt's sources ({list})");
        let mut tee =
            administrator(&["tee", &list])?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("tee")?;
        tee.stdin.take().expect("piped").write_all(line.as_bytes())?;
        if !tee.wait()?.success() {
            bail!("cannot write {list}");
        }
        update_index()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart() {
        let debian = Debian::parse("ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\n").expect("is Debian");
        assert_eq!((debian.version, debian.codename.as_str()), (Some(12), "bookworm"));
        let ubuntu = Debian::parse("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n").expect("has its packages");
        assert_eq!(ubuntu.version, None);
        assert_eq!(Debian::parse("ID=fedora\nPRETTY_NAME=\"Fedora 40\"\n").err().as_deref(), Some("Fedora 40"));
        assert_eq!(Debian::parse("").err().as_deref(), Some("an unknown system"));
    }

    #[test]
    fn qemu_tells_its_version() {
        assert_eq!(major_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(major_version("QEMU emulator version 7.2.17"), Some(7));
    }
}
