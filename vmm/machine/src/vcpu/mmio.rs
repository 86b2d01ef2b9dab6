//! Accesses to guest-physical memory that is not RAM.

use abi::Mtd;
use abi::utcb::Architectural;

use super::{EVERYTHING, Next, Platform, Vcpu};
use crate::bus::Width;
use crate::decode;
use crate::emulate::{Devices, Emulator, Failure};
use crate::memory::GuestMemory;
use crate::report::Cause;

/// Exit qualification of a memory access (Intel SDM vol. 3C, table 28-7): it was an instruction fetch.
const FETCH: u64 = 1 << 2;

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
        let instruction = match decode::instruction(state, memory) {
            Ok(instruction) => instruction,
            Err(why) => return Next::Crash(Cause::Undecodable(why)),
        };
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
}
