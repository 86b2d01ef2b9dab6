//! Runs a command inside a Linux guest and sends its output and status through the execution port.
//!
//! `agent FILE` runs `/bin/sh FILE`; `agent mark N` tells the virtual machine monitor that milestone N is reached;
//! `agent ring SECONDS PROCESSES` passes a token round among processes on different CPUs ([`mod@ring`]); `agent measure`
//! tells what starting programs and a loop take ([`mod@measure`]); `agent disk fill|check|read FILE DEPTH BLOCKS TURN` has that
//! many requests to a disk on their way at once ([`mod@disk`]); `agent verify FILE SEED MIB WRITTEN SECONDS [log]` reads and
//! writes the first MIB of a disk at random until WRITTEN MiB are written and SECONDS gone ([`mod@verify`]); `agent dma
//! read|write FILE FIRST STEP COUNT` has an NVMe controller whose registers are FILE read or write memory ([`mod@dma`]);
//! `agent io FILE` sends requests to a disk between marks, and `agent frames PORT` exchanges datagrams with the network's host
//! so ([`mod@frames`]).
//! A static Linux program without a C library: the guest's user space is busybox and this. It needs root's right to use I/O ports.
#![no_std]
#![no_main]

mod command;
mod disk;
mod dma;
mod entry;
mod frame;
mod frames;
mod linux;
mod measure;
mod port;
mod ring;
mod verify;
mod window;

use core::ffi::CStr;
use core::fmt::{self, Write};

use linux::Errno;

/// The agent's own exit status when it could not do its work.
const FAILED: u8 = 125;

/// Why the agent gives up.
enum Failure {
    Usage,
    NoPortAccess(Errno),
    NoChannel,
    Linux(&'static str, Errno),
    Device,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Usage => formatter.write_str(
                "usage: agent FILE | agent mark NUMBER | agent ring SECONDS PROCESSES | agent measure \
                           | agent disk fill|check|read FILE DEPTH BLOCKS TURN \
                           | agent dma read|write FILE FIRST STEP COUNT \
                           | agent verify FILE SEED MIB WRITTEN SECONDS [log] | agent io FILE | agent frames PORT",
            ),
            Self::Device => formatter.write_str("the device does not answer"),
            Self::NoPortAccess(errno) => write!(formatter, "may not use I/O ports ({errno})"),
            Self::NoChannel => formatter.write_str("this machine has no exec channel"),
            Self::Linux(what, errno) => write!(formatter, "cannot {what} ({errno})"),
        }
    }
}

/// Text for standard error.
struct StandardError;

impl Write for StandardError {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        linux::write_all(linux::STANDARD_ERROR, text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// The program; returns its exit status.
fn main<'a>(mut arguments: impl Iterator<Item = &'a CStr>) -> u8 {
    let _name = arguments.next();
    let words: [Option<&CStr>; 7] = core::array::from_fn(|_| arguments.next());
    let result = match (words[0], words[1], words[2]) {
        (Some(word), Some(work), Some(file)) if word == c"disk" => disk(work, file, &words[3..]),
        (Some(word), Some(way), Some(file)) if word == c"dma" => dma(way, file, &words[3..]),
        (Some(word), Some(file), Some(seed)) if word == c"verify" => verify(file, seed, &words[3..]),
        (Some(word), Some(number), None) if word == c"mark" => mark(number),
        (Some(word), Some(seconds), Some(processes)) if word == c"ring" => ring(seconds, processes),
        (Some(word), None, None) if word == c"measure" => measure::run(),
        (Some(word), Some(file), None) if word == c"io" => disk::measure(file),
        (Some(word), Some(port), None) if word == c"frames" => frames::measure(port),
        (Some(file), None, None) => command::run(file),
        _ => Err(Failure::Usage),
    };
    result.unwrap_or_else(|failure| {
        // Nobody is left to be told when standard error is closed.
        let _ = writeln!(StandardError, "agent: {failure}");
        FAILED
    })
}

/// Text for standard output.
struct StandardOutput;

impl Write for StandardOutput {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        linux::write_all(linux::STANDARD_OUTPUT, text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// A line on its way to the output.
struct Line {
    bytes: [u8; 32],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).and_then(|rest| rest.get_mut(..text.len())).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

fn number(text: &CStr) -> Result<u64, Failure> {
    text.to_str().ok().and_then(|text| text.parse::<u64>().ok()).ok_or(Failure::Usage)
}

fn disk(work: &CStr, file: &CStr, numbers: &[Option<&CStr>]) -> Result<u8, Failure> {
    let work = match work.to_bytes() {
        b"fill" => disk::Work::Fill,
        b"check" => disk::Work::Check,
        b"read" => disk::Work::Read,
        _ => return Err(Failure::Usage),
    };
    let &[Some(depth), Some(blocks), Some(turn), None] = numbers else { return Err(Failure::Usage) };
    let (depth, blocks, turn) = (number(depth)? as usize, number(blocks)?, number(turn)?);
    if !(1..=disk::DEPTH_MAX).contains(&depth) || !blocks.is_power_of_two() || turn >> 16 != 0 {
        return Err(Failure::Usage);
    }
    disk::Job { work, depth, blocks, turn, window: None }.run(file)
}

fn dma(way: &CStr, file: &CStr, rest: &[Option<&CStr>]) -> Result<u8, Failure> {
    let &[Some(first), Some(step), Some(count), None] = rest else { return Err(Failure::Usage) };
    let write = match way.to_bytes() {
        b"read" => false,
        b"write" => true,
        _ => return Err(Failure::Usage),
    };
    dma::run(write, file, number(first)?, number(step)?, number(count)?)
}

fn verify(file: &CStr, seed: &CStr, rest: &[Option<&CStr>]) -> Result<u8, Failure> {
    let &[Some(mebibytes), Some(written), Some(seconds), log] = rest else { return Err(Failure::Usage) };
    if log.is_some_and(|word| word != c"log") {
        return Err(Failure::Usage);
    }
    let (seed, mebibytes, log) = (number(seed)?, number(mebibytes)?, log.is_some());
    let (written, seconds) = (number(written)?, number(seconds)?);
    if seed >> 8 != 0 || !(1..=verify::MEBIBYTES_MAX).contains(&mebibytes) {
        return Err(Failure::Usage);
    }
    verify::Job { seed, mebibytes, written, seconds, log }.run(file)
}

fn ring(seconds: &CStr, processes: &CStr) -> Result<u8, Failure> {
    let processes = number(processes)? as usize;
    if !(1..=ring::MOST).contains(&processes) {
        return Err(Failure::Usage);
    }
    match ring::run(number(seconds)?, processes)? {
        Some(steps) => {
            // In one piece, for others write there, too.
            let mut line = Line { bytes: [0; 32], length: 0 };
            let _ = writeln!(line, "ring {steps}");
            let _ = linux::write_all(linux::STANDARD_OUTPUT, &line.bytes[..line.length]);
            Ok(0)
        }
        None => Ok(1),
    }
}

fn mark(number: &CStr) -> Result<u8, Failure> {
    let number = number.to_str().ok().and_then(|text| text.parse().ok()).ok_or(Failure::Usage)?;
    port::Ports::open().map_err(Failure::NoPortAccess)?.mark(number);
    Ok(0)
}
