//! Accesses to guest-physical memory that is not RAM.

use abi::Mtd;
use abi::event::guest;
use abi::utcb::Architectural;

use super::{EVERYTHING, Next, Platform, Vcpu};
use crate::backplane::VcpuSet;
use crate::bus::Width;
use crate::decode;
use crate::emulate::{Devices, Emulator, Failure};
use crate::memory::GuestMemory;
use crate::report::Cause;
use crate::site::Move;

/// Exit qualification of a memory access (Intel SDM vol. 3C, table 28-7): it was an instruction fetch.
const FETCH: u64 = 1 << 2;
/// It was a write.
const WRITE: u64 = 1 << 1;
/// It was no access to the guest's page tables.
const FINAL: u64 = 1 << 8;
/// What an instruction that was decoded before needs.
pub(super) const MEMORY: Mtd =
    Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RIP).union(Mtd::QUAL).union(super::quick::FINDING);
/// What a move changes.
const MEMORY_REPLY: Mtd = Mtd::GPR_0_7.union(Mtd::GPR_8_15).union(Mtd::RIP);

/// What an instruction that touches devices sees.
struct DeviceMemory<'a, P> {
    vcpu: &'a mut Vcpu<P>,
    now: u64,
}

impl<P: Platform> Devices for DeviceMemory<'_, P> {
    fn read(&mut self, gpa: u64, width: Width) -> u64 {
        self.vcpu.mmio_read(gpa, width, self.now)
    }

    fn write(&mut self, gpa: u64, width: Width, value: u64) {
        self.vcpu.mmio_write(gpa, width, value, self.now);
    }
}

impl<P: Platform> Vcpu<P> {
    pub(super) fn memory_access(
        &mut self,
        have: Mtd,
        state: &mut Architectural,
        memory: &impl GuestMemory,
        now: u64,
    ) -> Next {
        let gpa = state.qualification[2];
        if memory.ram().contains(gpa) {
            return Next::Crash(Cause::RamNotMapped(gpa));
        }
        if state.qualification[0] & FETCH != 0 {
            return Next::Crash(Cause::FetchOutsideRam(gpa));
        }
        if !have.contains(EVERYTHING) {
            return self.known_access(gpa, state, memory, now);
        }
        let instruction = match decode::instruction(state, memory) {
            Ok(instruction) => instruction,
            Err(why) => return Next::Crash(Cause::Undecodable(why)),
        };
        if decode::bitness(state) == 64 {
            self.sites.keep(&instruction, state, memory);
        }
        self.touched = true;
        self.sync_priority(state);
        let mut devices = DeviceMemory { vcpu: self, now };
        let result = Emulator::new(state, memory, &mut devices).run(&instruction);
        let mut reply = Mtd::GPR_0_7 | Mtd::GPR_8_15 | Mtd::RFLAGS | Mtd::RIP;
        if u64::from(self.lapic.cr8()) != state.cr8 {
            reply |= self.priority_written(state);
        }
        match result {
            // An event whose delivery the access interrupted is queued again; nothing may replace it.
            Ok(()) if have.contains(EVERYTHING) && state.interruption_info & abi::mtd::injection::VALID != 0 => {
                Next::Resume(if self.wants_window() { reply | self.request_window(state) } else { reply })
            }
            Ok(()) => self.resume_after_instruction(state, reply),
            Err(Failure::Fault(fault)) => self.raise_page_fault(fault, state, reply),
            Err(Failure::Unsupported) => Next::Crash(Cause::NotEmulated(gpa)),
        }
    }

    /// The access of an instruction that was decoded before; of all others everything is asked for.
    fn known_access(&mut self, gpa: u64, state: &mut Architectural, memory: &impl GuestMemory, now: u64) -> Next {
        let Some(access) = self.known(gpa, state, memory).copied() else { return Next::More(EVERYTHING) };
        self.touched = true;
        self.sync_priority(state);
        let mut reply = MEMORY_REPLY;
        let next = access.next(state);
        if access.write {
            self.mmio_write(gpa, access.width, access.source(state), now);
        } else {
            let value = self.mmio_read(gpa, access.width, now);
            access.complete(state, value);
        }
        state.rip = next;
        if u64::from(self.lapic.cr8()) != state.cr8 {
            reply |= self.priority_written(state);
        }
        if self.lapic.signals().nmi || self.wants_window() {
            // An event may be on its way, which was not asked for: whether another one can be taken is seen after a recall.
            self.platform.wake(VcpuSet::one(self.index));
        }
        Next::Resume(reply)
    }

    /// The instruction at the instruction pointer, if it was kept and is what touched `gpa`.
    #[inline]
    fn known(&self, gpa: u64, state: &Architectural, memory: &impl GuestMemory) -> Option<&Move> {
        let access = self.sites.find(state, memory)?;
        let wanted = FINAL | if access.write { WRITE } else { 0 };
        let plain = state.qualification[0] & (FINAL | WRITE | FETCH) == wanted;
        (plain && access.touches(state, gpa)).then_some(access)
    }

    /// Handles an access from which nothing follows, by an instruction that was decoded before; see [`Vcpu::quick`].
    #[inline]
    pub(super) fn quick_access(&mut self, state: &mut Architectural, memory: &impl GuestMemory) -> Option<Mtd> {
        let gpa = state.qualification[2];
        let access = self.known(gpa, state, memory)?;
        let rip = state.rip;
        let next = access.next(state);
        if access.write {
            // The LAPIC may lie in front of it.
            let board = self.lapic.offset_of(gpa).is_none();
            let written = board && self.platform.try_board()?.quiet_mmio_write(gpa, access.source(state));
            written.then_some(())?;
        } else {
            let value = self.quiet_read(gpa, access.width)?;
            access.complete(state, value);
        }
        self.statistics.exit(guest::PAGE_FAULT);
        self.history.remember(guest::PAGE_FAULT, true, rip, [state.qualification[0], gpa]);
        state.rip = next;
        Some(MEMORY_REPLY)
    }

    #[inline]
    fn quiet_read(&self, gpa: u64, width: Width) -> Option<u64> {
        match self.lapic.offset_of(gpa) {
            Some(offset) => self.lapic.quiet_read(offset, width),
            None => self.platform.try_board()?.quiet_mmio_read(gpa, width),
        }
    }
}
