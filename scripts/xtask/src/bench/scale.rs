//! What one virtual machine costs beside many that are idle.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use plan::observation::Wanted;

use super::exits;
use super::figures::Measured;
use super::runs::Runs;
use crate::bundle;
use crate::emulator::Emulator;
use crate::system::Size;
use crate::{setup, workspace};

/// Virtual machines in the largest system.
const MANY: usize = 64;
/// The one that measures; it is started last.
const MEASURING: &str = "measuring";
/// An exit to the monitor.
const OPERATION: &str = "out";
const FRAME: f64 = 4096.0;

/// What one system told.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Instructions of an exit.
    exit: f64,
    /// Bytes of kernel memory that came back when the measuring machine ended, beside those of page tables.
    kernel: f64,
}

/// What an exit costs among many machines as a multiple of what it costs alone.
pub fn exit(runs: &mut Runs) -> Result<Measured> {
    let (many, one) = (runs.scale(MANY)?.exit, runs.scale(1)?.exit);
    Ok(Measured::alone(many / one))
}

/// Kernel memory of a machine with one virtual CPU, among many, beside its page tables.
pub fn kernel_bytes(runs: &mut Runs) -> Result<Measured> {
    Ok(Measured::alone(runs.scale(MANY)?.kernel))
}

/// A system file with `count` machines, all but the last idle.
fn system(count: usize) -> Result<PathBuf> {
    // The same machine for all; its monitors have heaps of 8 MiB each.
    let mut text = String::from("[machine]\nmemory = \"1536M\"\n\n");
    for number in 1..count {
        write!(text, "[vm.idle{number}]\nmemory = \"4M\"\nkernel = \"micro\"\ncmdline = \"idle\"\n\n")?;
    }
    let words = format!("exits=64 only={OPERATION}");
    write!(text, "[vm.{MEASURING}]\nmemory = \"4M\"\nkernel = \"micro\"\ncmdline = \"{words}\"\nconsole = true\n")?;
    let file = workspace::folder("bundle")?.join(format!("scale-{count}.toml"));
    workspace::write(&file, text.as_bytes())?;
    Ok(file)
}

/// Runs a system with `count` machines.
pub fn measure(count: usize) -> Result<Scale> {
    setup::for_machine(Emulator::Qemu)?;
    let file = system(count)?;
    let file = file.to_str().context("the build directory's name is no text")?;
    let built = bundle::build(file, Size::default(), None, None, Wanted::default())?;
    let end = format!("root: vm {MEASURING}: ");
    let last = |line: &str| frames(line, &end).is_some();
    let lines = exits::run(&built.name, built.boot, built.memory, Emulator::Qemu, last)?;
    let frames = lines.iter().find_map(|line| frames(line, &end)).context("the root task told of no kernel memory")?;
    // With several machines each line says whose it is.
    let own = format!("[{MEASURING}] ");
    let lines = lines.iter().map(|line| line.strip_prefix(&own).unwrap_or(line));
    let exit = lines.filter_map(exits::parse).find(|(name, _)| *name == OPERATION);
    let (_, exit) = exit.context("the guest measured nothing")?;
    Ok(Scale { exit, kernel: frames * FRAME })
}

/// Frames beside those of page tables: `root: vm NAME: N frames of kernel memory came back, M of them page tables`.
fn frames(line: &str, start: &str) -> Option<f64> {
    let (frames, tables) = line.strip_prefix(start)?.split_once(" frames of kernel memory came back, ")?;
    let tables = tables.strip_suffix(" of them page tables")?;
    Some(frames.parse::<f64>().ok()? - tables.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_back_is_understood() {
        let line = "root: vm a: 64 frames of kernel memory came back, 20 of them page tables";
        assert_eq!(frames(line, "root: vm a: "), Some(44.0));
        assert_eq!(frames("root: vm a: 140996 KiB of memory came back, 269284 KiB are free", "root: vm a: "), None);
    }
}
