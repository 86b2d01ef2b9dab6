//! What Linux' requests to a disk and its frames cost in a virtual machine, whose disk a driver of ours serves, and on the machine itself,
//! where Linux has the same device.
//!
//! The agent in Linux puts marks around its requests, and the QEMU plugin counts what is executed between them: by Linux, by
//! the kernel, by the monitor, by drivers. What is not executed, while the processor waits, does not count.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use plan::observation::Wanted;

use super::figures::Measured;
use super::linux;
use super::runs::{self, Runs};
use crate::bundle;
use crate::emulator::Emulator;
use crate::system::Size;
use crate::system::devices::{DeviceKind, DiskContent};
use crate::{setup, system, workspace};

/// The system file.
const SYSTEM: &str = "io";
const BARE: &str = "Linux on the machine";
/// What stands in the system file for the port that answers datagrams.
const PEER: &str = "peer=0";
/// What init says at the end.
const LAST: &str = "measured io";
/// Requests, and frames, in a window: the agent's numbers.
const REQUESTS: f64 = 4096.0;
const FRAMES: f64 = 2048.0;
/// Bytes of a datagram that fills a frame, and how many of them there are in a burst.
const DATAGRAM: usize = 1472;
const BURST: usize = 32;
/// Bytes of the disk. It answers at once: while the processor waits, virtual time runs on, and Linux' timers with it.
const DISK: u64 = 64 << 20;
/// Runs that may come to nothing, and seconds for each: QEMU can deliver an interrupt twice, at which Linux hangs
/// (`docs/emulators.md`).
const ATTEMPTS: u32 = 4;
const PATIENCE: u64 = 150;
/// VMRUN: each ends with an exit.
const ENTRY: &str = "0f01d8";

/// A window of the agent's, by its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Window {
    /// Reads, one after the other.
    ReadAlone = 1,
    /// Reads, 32 at a time.
    ReadMany,
    /// Writes, one after the other.
    WriteAlone,
    /// Writes, 32 at a time.
    WriteMany,
    /// Frames that come, 32 in a burst.
    FramesReceived,
    /// Frames that go.
    FramesSent,
}

impl Window {
    /// How often it has what it is about.
    fn count(self) -> f64 {
        match self {
            Self::FramesReceived | Self::FramesSent => FRAMES,
            _ => REQUESTS,
        }
    }
}

/// What a window holds.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Cost {
    instructions: u64,
    exits: u64,
}

/// By the numbers of the windows.
pub type Costs = BTreeMap<u8, Cost>;

/// Instructions of a request, and what they are on the machine itself.
pub fn instructions(runs: &mut Runs, window: Window) -> Result<Measured> {
    let each = |cost: Cost| cost.instructions as f64 / window.count();
    Ok(Measured::beside(each(cost(runs, false, window)?), each(cost(runs, true, window)?), BARE))
}

/// How many times as many instructions as on the machine itself.
pub fn ratio(runs: &mut Runs, window: Window) -> Result<Measured> {
    let measured = instructions(runs, window)?;
    Ok(Measured::beside(measured.ratio().context("no peer")?, 1.0, BARE))
}

/// How often the virtual machine is left for a request.
pub fn exits(runs: &mut Runs, window: Window) -> Result<Measured> {
    Ok(Measured::alone(cost(runs, false, window)?.exits as f64 / window.count()))
}

fn cost(runs: &mut Runs, bare: bool, window: Window) -> Result<Cost> {
    let costs = runs.io(bare)?;
    costs.get(&(window as u8)).copied().with_context(|| format!("{window:?} was not measured"))
}

/// Boots it, on the machine itself if `bare`.
pub fn measure(bare: bool) -> Result<Costs> {
    setup::for_machine(Emulator::Qemu)?;
    runs::build_plugin()?;
    let mut last = attempt(bare);
    for _ in 1..ATTEMPTS {
        if last.is_ok() {
            break;
        }
        last = attempt(bare);
    }
    last
}

fn attempt(bare: bool) -> Result<Costs> {
    let system = workspace::folder("run")?.join(format!("{SYSTEM}.toml"));
    let text = String::from_utf8(workspace::read(&system::find(SYSTEM)?)?)?;
    workspace::write(&system, text.replace(PEER, &format!("peer={}", answer()?)).as_bytes())?;
    let system = system.to_str().context("the build directory's name is no text")?;
    let mut built = match bare {
        true => bundle::build_bare(system, Size::default())?,
        false => bundle::build(system, Size::default(), None, None, Wanted::default())?,
    };
    // Linux does not use an IOMMU unless it is told to.
    built.devices.retain(|device| !bare || device.kind != DeviceKind::Iommu);
    for device in &mut built.devices {
        if let DeviceKind::Disk(_, content @ DiskContent::Empty(_)) = &mut device.kind {
            *content = DiskContent::Nothing(DISK);
        }
    }
    let file = workspace::folder("run")?.join(format!("{}.counts", built.name));
    let plugin = format!("{},counts={}", super::plugin().display(), file.display());
    linux::run(built, bare, &["-plugin".into(), plugin], PATIENCE, |line| line.starts_with(LAST))?;
    read(&file)
}

/// Answers a burst of datagrams by a short one, and a short one by a burst; the port.
fn answer() -> Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for datagrams")?;
    let port = socket.local_addr()?.port();
    thread::spawn(move || {
        let (mut datagram, mut came) = ([0; DATAGRAM], 0);
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            came += usize::from(length == DATAGRAM);
            let answered = match length {
                DATAGRAM if came % BURST != 0 => Ok(0),
                DATAGRAM => socket.send_to(&[0], from),
                _ => (0..BURST).try_fold(0, |_, _| socket.send_to(&datagram, from)),
            };
            if answered.is_err() {
                break;
            }
        }
    });
    Ok(port)
}

fn read(file: &Path) -> Result<Costs> {
    let text = fs::read_to_string(file).context("the plugin counted nothing")?;
    costs(&text).with_context(|| format!("{} is not what the plugin writes", workspace::shown(file)))
}

/// What the plugin wrote: `n TIMES ADDRESS CODE` of each instruction, and `counted NUMBER` behind those of a window.
fn costs(text: &str) -> Option<Costs> {
    let mut costs = Costs::new();
    let mut cost = Cost::default();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["n", times, _, code] => {
                let times = u64::from_str_radix(times, 16).ok()?;
                cost.instructions += times;
                cost.exits += if code == ENTRY { times } else { 0 };
            }
            ["counted", number] => _ = costs.insert(u8::from_str_radix(number, 16).ok()?, core::mem::take(&mut cost)),
            _ => return None,
        }
    }
    Some(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_plugin_wrote_is_added_up() {
        let text = "n 10 1000 0f01d8\nn a 1003 90\ncounted 1\nn 5 1003 90\ncounted 4\nn 1";
        let cost = |instructions, exits| Cost { instructions, exits };
        assert_eq!(costs(text), Some(Costs::from([(1, cost(26, 16)), (4, cost(5, 0))])));
        assert_eq!(costs("begin 0 7\n"), None);
    }
}
