//! The handler of the vCPU's events.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;

use abi::event::{GUEST_ARCH, GUEST_NOVA, RECALL, STARTUP};
use abi::utcb::Architectural;
use abi::{Mtd, Selector};
use machine::vcpu::{EVERYTHING, INITIAL, Next, Vcpu, set_controls};
use plan::{OnReset, VmConfig};
use runtime::parent::Ended;
use runtime::thread::Service;
use runtime::utcb::Utcb;
use runtime::{log, manifest, syscall, time};

use crate::image::Files;
use crate::memory::HostMemory;
use crate::output::{HELD_MS, Output};
use crate::threads::Shared;
use crate::{ending, image};

/// Events that have a portal. The kernel's own follow the architectural ones here, whatever their number is there.
pub const EVENTS: u16 = GUEST_ARCH + GUEST_NOVA;

/// Where the kernel looks for the portal of an event, from the vCPU's event base. The architectural events that it has no
/// selectors for never happen.
pub fn portal_offset(number: u16) -> Option<u64> {
    let architectural = manifest().sel_gst_arch;
    match number.checked_sub(GUEST_ARCH) {
        Some(own) => Some(u64::from(architectural) + u64::from(own)),
        None => (number < architectural).then_some(number.into()),
    }
}

/// The selectors of the vCPU's spaces.
#[derive(Clone, Copy, Debug)]
pub struct Spaces {
    /// Guest-physical memory.
    pub guest: Selector,
    /// Ports that do not exit: none.
    pub pio: Selector,
    /// Registers that do not exit.
    pub msr: Selector,
}

/// Everything of one virtual machine.
pub struct Monitor {
    /// The machine.
    pub vcpu: Vcpu,
    /// Its RAM.
    pub memory: HostMemory,
    /// Its files.
    pub files: Files,
    /// Its configuration.
    pub config: VmConfig,
    /// Its output.
    pub output: Output,
    /// What the threads see.
    pub shared: Arc<Shared>,
    /// Its spaces.
    pub spaces: Spaces,
    /// First event portal.
    pub portals: Selector,
    /// Events whose portal asks for more than usual until the next exit.
    pub widened: Vec<u16>,
    /// STC value at the start of the guest.
    pub started: u64,
}

impl Service for Monitor {
    fn serve(&mut self, pid: u64, mtd: u32, mut utcb: Utcb) -> u32 {
        let number = pid as u16;
        let have = Mtd::from_bits_truncate(mtd);
        self.serve_event(number, have, utcb.architectural()).bits()
    }
}

impl Monitor {
    fn serve_event(&mut self, number: u16, have: Mtd, state: &mut Architectural) -> Mtd {
        if number == GUEST_ARCH + STARTUP {
            return self.start(state);
        }
        if !self.widened.is_empty() && self.widened.contains(&number) {
            self.narrow(number);
        }
        let recalled = number == GUEST_ARCH + RECALL;
        if recalled {
            self.output.flush();
        }
        self.input();
        let mut next = self.vcpu.handle(number, have, state, &self.memory, time::now());
        loop {
            if let Some(mark) = self.vcpu.take_mark() {
                self.milestone(mark);
            }
            let taken = self.output.take(&mut self.vcpu.board);
            match next {
                Next::Resume(reply) => {
                    let reply = if taken { self.vcpu.recheck(state, reply, time::now()) } else { reply };
                    self.arm();
                    return reply;
                }
                Next::More(mtd) => {
                    self.widen(number, have | mtd);
                    return Mtd::empty();
                }
                Next::Halt => {
                    self.output.flush();
                    self.shared.sleep(self.vcpu.deadline());
                    self.input();
                    next = self.vcpu.wake(state, time::now());
                }
                Next::PowerOff => self.power_off(),
                Next::Reset => return self.reset(state),
                Next::Crash(cause) => {
                    self.output.flush();
                    ending::crash(cause, &self.vcpu, state, &self.memory, &self.output);
                    ending::statistics(&self.vcpu, "at the crash");
                    ending::end(Ended::Crashed, &cause.to_string());
                }
            }
        }
    }

    /// Gives waiting console input to the serial port.
    fn input(&mut self) {
        if self.shared.has_input() {
            let board = &mut self.vcpu.board;
            self.shared.offer_input(|bytes| board.serial_input(bytes));
            self.vcpu.touch();
        }
    }

    fn arm(&self) {
        let mut deadline = self.vcpu.deadline();
        if self.output.holds() {
            deadline = deadline.min(time::now() + time::ticks_from_ms(HELD_MS));
        }
        self.shared.arm(deadline);
    }

    fn set_portal(&self, number: u16, mtd: Mtd) {
        let Some(offset) = portal_offset(number) else { return };
        if let Err(status) = syscall::ctrl_pt(self.portals + offset, number as u64, mtd.bits()) {
            panic!("cannot set the portal of event {number:#x}: {status:?}");
        }
    }

    /// Asks for more state at the next exit of this kind.
    fn widen(&mut self, number: u16, mtd: Mtd) {
        self.set_portal(number, mtd | if mtd.contains(EVERYTHING) { EVERYTHING } else { Mtd::empty() });
        self.widened.push(number);
    }

    fn narrow(&mut self, number: u16) {
        self.set_portal(number, self.vcpu.portal_mtd(number));
        self.widened.retain(|&other| other != number);
    }

    /// Loads the guest and puts its initial state into the reply.
    fn start(&mut self, state: &mut Architectural) -> Mtd {
        match self.files.load(&self.memory, &self.config) {
            Ok(entry) => {
                log!("{}", entry.description);
                entry.apply(state);
                set_controls(state, 0);
            }
            Err(error) => {
                log!("{error}");
                ending::end(Ended::BadConfig, &error);
            }
        }
        (state.sel_gst, state.sel_pio, state.sel_msr) = (self.spaces.guest, self.spaces.pio, self.spaces.msr);
        self.started = time::now();
        INITIAL | Mtd::SPACES
    }

    fn reset(&mut self, state: &mut Architectural) -> Mtd {
        self.output.flush();
        ending::statistics(&self.vcpu, "at the reset");
        if self.config.on_reset == OnReset::Stop {
            ending::end(Ended::Reset, "the guest reset its machine");
        }
        log!("the guest reset its machine: starting it again");
        self.vcpu.reset(time::now());
        let reply = self.start(state);
        self.arm();
        reply
    }

    fn power_off(&mut self) -> ! {
        self.output.flush();
        ending::statistics(&self.vcpu, "at power-off");
        ending::end(Ended::PoweredOff, "");
    }

    fn milestone(&mut self, mark: u32) {
        let ms = time::nanoseconds(time::now() - self.started, time::frequency()) / 1_000_000;
        self.output.flush();
        ending::statistics(&self.vcpu, &format!("at mark {mark}, after {ms} ms"));
    }
}

/// The configuration that the root task gave.
pub fn configuration() -> Result<VmConfig, alloc::string::String> {
    let range = runtime::manifest().config;
    if range.length == 0 {
        return Err("there is no configuration".to_string());
    }
    VmConfig::decode(image::bytes(range)).map_err(|error| format!("the configuration {error}"))
}
