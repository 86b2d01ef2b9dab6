//! The handler of a vCPU's events.

use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::convert::Infallible;

use abi::event::{GUEST_ARCH, GUEST_NOVA, STARTUP, guest};
use abi::utcb::Architectural;
use abi::{Mtd, Selector};
use machine::report::Cause;
use machine::vcpu::{EVERYTHING, INITIAL, Next, Vcpu, set_controls};
use plan::{OnReset, VmConfig};
use runtime::parent::Ended;
use runtime::thread::Service;
use runtime::utcb::Utcb;
use runtime::{log, manifest, syscall, time};

use crate::output::HELD_MS;
use crate::vm::{Devices, Machine, Totals};
use crate::{ending, image, input};

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

/// One virtual CPU's handler.
pub struct Monitor {
    /// Its machine.
    machine: &'static Machine,
    /// Its number; the first one sees to the board's time and input.
    index: usize,
    vcpu: Vcpu<&'static Machine>,
    /// First event portal.
    portals: Selector,
    /// Events whose portal asks for more than usual until the next exit.
    widened: Vec<u16>,
    /// STC value at which output that this vCPU left unfinished goes out; `u64::MAX`: there is none.
    flush_at: u64,
    /// Resets of the machine that it has seen.
    resets: u64,
}

/// The machine was reset: the vCPU starts anew.
struct Restarted;

impl Service for Monitor {
    fn serve(&mut self, pid: u64, mtd: u32, mut utcb: Utcb) -> u32 {
        let (number, have, state) = (pid as u16, Mtd::from_bits_retain(mtd), utcb.architectural());
        match self.vcpu.quick(number, have, state, &self.machine.memory, time::now) {
            Some(reply) if !self.vcpu.left_something() => reply.bits(),
            Some(reply) => self.resume(reply).bits(),
            None => self.serve_event(number, have, state).bits(),
        }
    }

    #[inline(always)]
    fn is_quick(pid: u64) -> bool {
        pid as u16 == guest::IO
    }

    // What else is to be done does not come unannounced: whoever has something recalls the vCPU.
    #[inline(always)]
    fn quick(&mut self, pid: u64, mtd: u32, mut utcb: Utcb) -> Option<u32> {
        let (number, have) = (pid as u16, Mtd::from_bits_retain(mtd));
        self.vcpu.quick_port(number, have, utcb.architectural()).map(|reply| reply.bits())
    }

    #[inline(always)]
    fn brief(&mut self, pid: u64, mtd: u32, mut utcb: Utcb) -> Option<u32> {
        let (number, have) = (pid as u16, Mtd::from_bits_retain(mtd));
        let memory = &self.machine.memory;
        self.vcpu.quick_cpuid(number, have, utcb.architectural(), memory).map(|reply| reply.bits())
    }
}

impl Monitor {
    /// For vCPU number `index`, whose portals begin at `portals`.
    pub fn new(machine: &'static Machine, index: usize, vcpu: Vcpu<&'static Machine>, portals: Selector) -> Self {
        Self { machine, index, vcpu, portals, widened: Vec::new(), flush_at: u64::MAX, resets: 0 }
    }

    #[inline(never)]
    fn serve_event(&mut self, number: u16, have: Mtd, state: &mut Architectural) -> Mtd {
        let mut outcome = match number == GUEST_ARCH + STARTUP {
            true => self.begin(state),
            false => self.exit(number, have, state),
        };
        loop {
            match outcome {
                Ok(reply) => return reply,
                Err(Restarted) => {
                    self.resets = self.machine.pause.resets();
                    self.vcpu.reset(self.machine.started());
                    outcome = self.begin(state);
                }
            }
        }
    }

    #[inline]
    fn exit(&mut self, number: u16, have: Mtd, state: &mut Architectural) -> Result<Mtd, Restarted> {
        let now = time::now();
        if self.has_other_work(now) {
            self.work(number, now)?;
        }
        match self.vcpu.handle(number, have, state, &self.machine.memory, now) {
            Next::Resume(reply) if !self.vcpu.left_something() => Ok(reply),
            next => self.follow_up(next, number, have, state),
        }
    }

    /// Whether there is more to do at an exit than to handle it.
    #[inline]
    fn has_other_work(&self, now: u64) -> bool {
        let machine = self.machine;
        // Resets need no look of their own: they happen while all are parked.
        now >= self.flush_at || !self.widened.is_empty() || machine.pause.wanted() || self.input_waits()
    }

    #[inline(never)]
    fn work(&mut self, number: u16, now: u64) -> Result<(), Restarted> {
        if self.widened.contains(&number) {
            self.narrow(number);
        }
        self.park_if_wanted()?;
        if self.flush_at <= now {
            self.flush();
        }
        self.input();
        Ok(())
    }

    /// Does what an exit leaves to do, and says how the vCPU goes on.
    #[inline(never)]
    fn follow_up(
        &mut self,
        mut next: Next,
        number: u16,
        have: Mtd,
        state: &mut Architectural,
    ) -> Result<Mtd, Restarted> {
        loop {
            if let Some(mark) = self.vcpu.take_mark() {
                self.milestone(mark);
            }
            let taken = self.take_output();
            match next {
                Next::Resume(reply) => {
                    let reply = if taken { self.vcpu.recheck(state, reply, time::now()) } else { reply };
                    return Ok(self.resume(reply));
                }
                Next::More(mtd) => {
                    self.widen(number, have | mtd);
                    return Ok(Mtd::empty());
                }
                Next::Halt | Next::HaltDisabled => {
                    self.flush();
                    self.sleep(next == Next::HaltDisabled, state)?;
                    next = self.vcpu.wake(state, time::now());
                }
                Next::Init => {
                    self.vcpu.initialize(time::now());
                    return self.await_startup(state);
                }
                Next::PowerOff => match self.power_off()? {},
                Next::Reset => match self.reset()? {},
                Next::Crash(cause) => match self.crash(cause, state)? {},
            }
        }
    }

    fn resume(&mut self, reply: Mtd) -> Mtd {
        let deadline = self.vcpu.take_deadline();
        self.machine.seats[self.index].arm(deadline.min(self.flush_at));
        reply
    }

    /// Sleeps until there is something to see; `lost`: something that only another vCPU can bring about.
    fn sleep(&mut self, lost: bool, state: &Architectural) -> Result<(), Restarted> {
        let machine = self.machine;
        if lost && machine.lose_one() {
            machine.find_one();
            match self.crash(Cause::HaltedForever, state)? {}
        }
        machine.seats[self.index].sleep(self.vcpu.deadline(), || machine.backplane.has_news(self.index));
        if lost {
            machine.find_one();
        }
        self.park_if_wanted()?;
        self.input();
        Ok(())
    }

    #[inline]
    fn input_waits(&self) -> bool {
        self.index == 0 && self.machine.input.waits()
    }

    /// Gives waiting console input to the serial port.
    fn input(&mut self) {
        let machine = self.machine;
        if self.input_waits() {
            let mut bytes = [0; input::CAPACITY];
            let count = machine.input.peek(&mut bytes);
            let taken = self.vcpu.with_board(time::now(), |board| board.serial_input(&bytes[..count]));
            machine.input.consume(taken);
        }
    }

    /// Takes what the last exit left on the board. True if anything was taken: the board may have raised an interrupt.
    fn take_output(&mut self) -> bool {
        if !self.vcpu.take_output_waits() {
            return false;
        }
        let (taken, holds, wakes) = {
            let mut devices = self.machine.devices.lock();
            let Devices { board, output } = &mut *devices;
            (output.take(board), output.serial.holds(), board.take_wakes())
        };
        self.vcpu.notify(wakes);
        self.flush_at = if holds { time::now() + time::ticks_from_ms(HELD_MS) } else { u64::MAX };
        taken
    }

    fn flush(&mut self) {
        if core::mem::replace(&mut self.flush_at, u64::MAX) != u64::MAX {
            self.machine.devices.lock().output.serial.flush();
        }
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

    /// The machine starts: the first vCPU loads the guest, the others wait for it to start them.
    fn begin(&mut self, state: &mut Architectural) -> Result<Mtd, Restarted> {
        if self.index != 0 {
            self.vcpu.initialize(time::now());
            return self.await_startup(state);
        }
        let machine = self.machine;
        match machine.files.load(&machine.memory, &machine.config, &machine.bus) {
            Ok(entry) => {
                log!("{}", entry.description);
                entry.apply(state);
                set_controls(state, 0);
            }
            Err(error) => {
                log!("{error}");
                self.machine.end(Ended::BadConfig, &error);
            }
        }
        let reply = self.with_spaces(INITIAL, state);
        Ok(self.resume(reply))
    }

    fn with_spaces(&self, reply: Mtd, state: &mut Architectural) -> Mtd {
        let spaces = self.machine.spaces;
        (state.sel_gst, state.sel_pio, state.sel_msr) = (spaces.guest, spaces.pio, spaces.msr);
        reply | Mtd::SPACES
    }

    /// Waits for a start-up IPI.
    fn await_startup(&mut self, state: &mut Architectural) -> Result<Mtd, Restarted> {
        loop {
            if let Some(reply) = self.vcpu.startup(state, time::now()) {
                let reply = self.with_spaces(reply, state);
                return Ok(self.resume(reply));
            }
            self.sleep(true, state)?;
        }
    }

    /// If another vCPU wants a pause, parks.
    fn park_if_wanted(&mut self) -> Result<(), Restarted> {
        if self.machine.pause.wanted() {
            self.flush();
            self.count();
            self.machine.pause.park();
        }
        if self.machine.pause.resets() == self.resets { Ok(()) } else { Err(Restarted) }
    }

    /// Adds what this vCPU did to the machine's sums.
    fn count(&self) {
        let mut totals = self.machine.totals.lock();
        totals.statistics.add(&self.vcpu.statistics);
        totals.unknown_msrs.add(self.vcpu.unknown_msrs());
    }

    /// Begins a pause, unless another vCPU does.
    fn pause(&mut self) -> bool {
        let machine = self.machine;
        let others = machine.backplane.all().without(self.index);
        let begun = machine.pause.begin(|| others.iter().for_each(|vcpu| machine.tell(vcpu)));
        if begun {
            self.count();
            machine.devices.lock().output.serial.flush();
            self.flush_at = u64::MAX;
            if let Some(line) = &machine.line {
                line.drain(true);
            }
        }
        begun
    }

    /// Waits until all other vCPUs are parked.
    fn quiet(&mut self) -> Result<(), Restarted> {
        while !self.pause() {
            self.park_if_wanted()?;
        }
        Ok(())
    }

    fn statistics(&self, when: &str) {
        let totals = core::mem::take::<Totals>(&mut *self.machine.totals.lock());
        ending::statistics(self.machine, &totals, when);
    }

    fn power_off(&mut self) -> Result<Infallible, Restarted> {
        self.quiet()?;
        self.statistics("at power-off");
        self.machine.end(Ended::PoweredOff, "")
    }

    fn crash(&mut self, cause: Cause, state: &Architectural) -> Result<Infallible, Restarted> {
        self.quiet()?;
        ending::crash(self.machine, cause, self.index, &self.vcpu.history, state);
        self.statistics("at the crash");
        self.machine.end(Ended::Crashed, &cause.to_string())
    }

    /// The guest resets its machine.
    fn reset(&mut self) -> Result<Infallible, Restarted> {
        self.quiet()?;
        self.statistics("at the reset");
        if self.machine.config.on_reset == OnReset::Stop {
            self.machine.end(Ended::Reset, "the guest reset its machine");
        }
        log!("the guest reset its machine: starting it again");
        let now = time::now();
        self.machine.backplane.reset();
        self.machine.devices.lock().board.reset(now);
        self.machine.start(now);
        self.machine.pause.end_with_reset();
        Err(Restarted)
    }

    fn milestone(&mut self, mark: u32) {
        let ms = time::nanoseconds(time::now() - self.machine.started(), time::frequency()) / 1_000_000;
        // Another vCPU that stops the machine has something more important to say.
        if self.pause() {
            self.statistics(&format!("at mark {mark}, after {ms} ms"));
            self.machine.pause.end();
        }
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
