//! Boot media.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{bundle, workspace};

/// Builds a system and writes it as an ISO that GRUB boots.
pub fn make(system: &str, iso: &Path, kernel: Option<&Path>) -> Result<()> {
    let built = bundle::build(system, kernel, None)?;
    write_iso(&built.kernel, built.bundle.as_deref(), iso)?;
    eprintln!("wrote {}", workspace::shown(iso));
    Ok(())
}

/// Writes a CD image whose GRUB starts `kernel` with `bundle` as its first module, by multiboot2.
pub fn write_iso(kernel: &Path, bundle: Option<&Path>, iso: &Path) -> Result<()> {
    let folder = iso.with_extension("files");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("boot/grub"))?;
    fs::copy(kernel, folder.join("boot/kernel"))
        .with_context(|| format!("cannot read {}", workspace::shown(kernel)))?;
    let mut menu = String::from("set timeout=0\nmenuentry kilonova {\n  multiboot2 /boot/kernel\n");
    if let Some(bundle) = bundle {
        // A copy of a few hundred MiB is not worth a second of anyone's time.
        let file = folder.join("boot/bundle");
        fs::hard_link(bundle, &file)
            .or_else(|_| fs::copy(bundle, &file).map(|_| ()))
            .with_context(|| format!("cannot read {}", workspace::shown(bundle)))?;
        menu.push_str("  module2 /boot/bundle\n");
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
