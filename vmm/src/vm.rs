//! What the vCPUs of one virtual machine share.

use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use abi::Selector;
use alloc::sync::Arc;
use machine::backplane::{Backplane, VcpuSet};
use machine::board::Board;
use machine::bus::Unclaimed;
use machine::pci::bus::Bus;
use machine::statistics::Statistics;
use machine::vcpu::Platform;
use plan::VmConfig;
use runtime::parent::{self, Ended};
use runtime::sync::{Guard, Mutex, Semaphore};
use runtime::syscall::Result;

use crate::console::Line;
use crate::image::Files;
use crate::input::Input;
use crate::memory::HostMemory;
use crate::output::{self, Output};
use crate::pause::Pause;
use crate::seat::Seat;

/// The selectors of the vCPUs' spaces.
#[derive(Clone, Copy, Debug)]
pub struct Spaces {
    /// Guest-physical memory.
    pub guest: Selector,
    /// Ports that do not exit: none.
    pub pio: Selector,
    /// Registers that do not exit.
    pub msr: Selector,
}

/// The devices, behind one lock: an access is short, and what concerns a LAPIC does not need them.
pub struct Devices {
    /// The board.
    pub board: Board,
    /// Where its output goes.
    pub output: Output,
}

/// What vCPUs did, added up while they park.
#[derive(Default)]
pub struct Totals {
    /// Exits.
    pub statistics: Statistics,
    /// Registers that the guest wanted and does not have.
    pub unknown_msrs: Unclaimed,
}

/// One virtual machine.
pub struct Machine {
    /// Its RAM.
    pub memory: HostMemory,
    /// Its files.
    pub files: Files,
    /// Its configuration.
    pub config: VmConfig,
    /// Its spaces.
    pub spaces: Spaces,
    /// Where vCPUs and board leave word for each other.
    pub backplane: Arc<Backplane>,
    /// Its PCI bus.
    pub bus: Arc<Bus>,
    /// Its devices.
    pub devices: Mutex<Devices>,
    /// Its vCPUs.
    pub seats: Vec<Seat>,
    /// The system's console.
    pub console: output::Shared,
    /// Console input of its serial port.
    pub input: Input,
    /// The other side of its virtio console.
    pub line: Option<Arc<Line>>,
    /// Stops the vCPUs.
    pub pause: Pause,
    /// Sums of those that are parked.
    pub totals: Mutex<Totals>,
    /// vCPUs that only another one can wake.
    lost: AtomicUsize,
    /// STC value at the start of the guest.
    started: AtomicU64,
}

/// A lock with a semaphore of its own.
pub fn mutex<T>(value: T) -> Result<Mutex<T>> {
    Ok(Mutex::new(value, Semaphore::new(0)?.selector()))
}

/// What a machine is made from.
pub struct Parts {
    /// See [`Machine::memory`].
    pub memory: HostMemory,
    /// See [`Machine::files`].
    pub files: Files,
    /// See [`Machine::config`].
    pub config: VmConfig,
    /// See [`Machine::spaces`].
    pub spaces: Spaces,
    /// See [`Machine::backplane`].
    pub backplane: Arc<Backplane>,
    /// See [`Machine::bus`].
    pub bus: Arc<Bus>,
    /// See [`Machine::devices`].
    pub devices: Devices,
    /// See [`Machine::console`].
    pub console: output::Shared,
    /// See [`Machine::line`].
    pub line: Option<Arc<Line>>,
    /// The vCPUs' ECs.
    pub vcpus: Vec<Selector>,
    /// STC value at the start.
    pub now: u64,
}

impl Machine {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Result<Self> {
        let Parts { memory, files, config, spaces, backplane, bus, devices, console, line, vcpus, now } = parts;
        Ok(Self {
            memory,
            files,
            config,
            spaces,
            backplane,
            bus,
            devices: mutex(devices)?,
            seats: vcpus.iter().map(|&vcpu| Seat::new(vcpu)).collect::<Result<_>>()?,
            console,
            input: Input::new(),
            line,
            pause: Pause::new(vcpus.len())?,
            totals: mutex(Totals::default())?,
            lost: AtomicUsize::new(0),
            started: AtomicU64::new(now),
        })
    }

    /// STC value at the start of the guest.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// The guest starts at STC value `now`.
    pub fn start(&self, now: u64) {
        self.started.store(now, Ordering::Relaxed);
    }

    /// Makes a vCPU look that has something to see.
    pub fn tell(&self, vcpu: usize) {
        self.look(self.backplane.nudge(vcpu));
    }

    /// Makes vCPUs look of which the backplane said that they have to.
    pub fn look(&self, vcpus: VcpuSet) {
        (&self).wake(vcpus);
    }

    /// Gives what was typed to the device that it is for; returns how many bytes that took.
    pub fn give_input(&self, bytes: &[u8]) -> usize {
        match &self.line {
            Some(line) if line.attended() => {
                let count = line.give(bytes);
                self.serve_console();
                count
            }
            _ => {
                let count = self.input.put(bytes);
                self.tell(0);
                count
            }
        }
    }

    /// Has the virtio console look at its other side.
    pub fn serve_console(&self) {
        // The last one in front of the functions that the machine has to itself.
        let behind = self.config.functions.len() + 1;
        if let Some(slot) = self.bus.slots().count().checked_sub(behind) {
            self.look(self.bus.serve(slot));
        }
    }

    /// A vCPU goes to sleep that only another one can wake. True if that leaves nobody.
    pub fn lose_one(&self) -> bool {
        let vcpus = self.seats.len();
        self.lost.fetch_add(1, Ordering::SeqCst) + 1 == vcpus && !(0..vcpus).any(|vcpu| self.backplane.has_news(vcpu))
    }

    /// It was woken.
    pub fn find_one(&self) {
        self.lost.fetch_sub(1, Ordering::SeqCst);
    }

    /// Ends the machine; all other vCPUs are parked for ever.
    pub fn end(&self, how: Ended, explanation: &str) -> ! {
        parent::vm_ended(how, explanation);
        runtime::sync::park()
    }
}

/// The board, locked.
struct Locked<'a>(Guard<'a, Devices>);

impl Deref for Locked<'_> {
    type Target = Board;
    fn deref(&self) -> &Board {
        &self.0.board
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Board {
        &mut self.0.board
    }
}

impl Platform for &Machine {
    fn board(&self) -> impl DerefMut<Target = Board> {
        Locked(self.devices.lock())
    }

    #[inline]
    fn try_board(&self) -> Option<impl DerefMut<Target = Board>> {
        self.devices.try_lock().map(Locked)
    }

    fn wake(&self, vcpus: VcpuSet) {
        vcpus.iter().filter_map(|vcpu| self.seats.get(vcpu)).for_each(Seat::wake);
    }
}
