//! Boot media.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use plan::observation::Wanted;

use crate::emulator::Boot;
use crate::system::Size;
use crate::{bundle, setup, workspace};

/// Builds a system and writes it as an ISO that GRUB boots.
pub fn make(system: &str, iso: &Path, kernel: Option<&Path>) -> Result<()> {
    setup::for_media()?;
    let built = bundle::build(system, Size::default(), kernel, None, Wanted::default())?;
    write_iso(&built.boot, iso)?;
    eprintln!("wrote {}", workspace::shown(iso));
    Ok(())
}

/// Writes a CD image whose GRUB starts our kernel by multiboot2 with the bundle as its module, or Linux.
pub fn write_iso(boot: &Boot, iso: &Path) -> Result<()> {
    let folder = iso.with_extension("files");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("boot/grub"))?;
    place(&boot.kernel, &folder.join("boot/kernel"))?;
    let (start, module) = match &boot.linux {
        None => ("multiboot2 /boot/kernel".into(), "module2 /boot/module"),
        Some(line) => (format!("linux /boot/kernel {line}"), "initrd /boot/module"),
    };
    let mut menu = format!("set timeout=0\nmenuentry kilonova {{\n  {start}\n");
    if let Some(file) = &boot.module {
        place(file, &folder.join("boot/module"))?;
        menu.push_str(&format!("  {module}\n"));
    }
    menu.push_str("}\n");
    fs::write(folder.join("boot/grub/grub.cfg"), menu)?;
    let output = Command::new("grub-mkrescue")
        .args(["--directory", "/usr/lib/grub/i386-pc", "--compress", "no", "--output"])
        .arg(iso)
        .arg(&folder)
        .stdin(Stdio::null())
        .output()
        .context("making the ISO: cannot start `grub-mkrescue`; `cargo xtask setup` installs it")?;
    let _ = fs::remove_dir_all(&folder);
    if !output.status.success() {
        bail!("making the ISO: `grub-mkrescue` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Puts a file into the folder of a medium: a link, for a copy of a few hundred MiB is worth nobody's time.
fn place(file: &Path, at: &Path) -> Result<()> {
    fs::hard_link(file, at)
        .or_else(|_| fs::copy(file, at).map(|_| ()))
        .with_context(|| format!("cannot read {}", workspace::shown(file)))
}
