//! INIT and start-up: how further vCPUs begin.
//!
//! Intel SDM vol. 3A, 9.4 (multiple-processor initialization), table 10-1 (state after RESET and INIT).

use abi::Mtd;
use abi::utcb::{Architectural, DescriptorTable, Segment, gpr};

use super::{INITIAL, Platform, Vcpu, set_controls};
use crate::loader::PAT_RESET;

/// What INIT leaves as it was.
const KEPT_BY_INIT: Mtd =
    Mtd::XSAVE.union(Mtd::SYSCALL).union(Mtd::SYSENTER).union(Mtd::PAT).union(Mtd::KERNEL_GS).union(Mtd::TSC);

/// CR0 after INIT: caches off, extension type.
const CR0_INIT: u64 = 0x6000_0010;
/// Where the bootstrap processor begins after INIT: segment base and instruction pointer.
const RESET_VECTOR: (u64, u64) = (0xffff_0000, 0xfff0);

/// The state after INIT, with code at `base`:`rip`; `signature` is what EDX tells.
fn real_mode(state: &mut Architectural, (base, rip): (u64, u64), signature: u32) {
    *state = Architectural::default();
    let segment = |selector, base, access| Segment { selector, access, limit: 0xffff, base };
    state.cs = segment((base >> 4) as u16, base, 0x9b);
    let data = segment(0, 0, 0x93);
    (state.ss, state.ds, state.es, state.fs, state.gs) = (data, data, data, data, data);
    state.ldtr = segment(0, 0, 0x82);
    state.tr = segment(0, 0, 0x8b);
    let table = DescriptorTable { reserved: 0, limit: 0xffff, base: 0 };
    (state.gdtr, state.idtr) = (table, table);
    (state.rip, state.rflags, state.cr0) = (rip, 2, CR0_INIT);
    state.gpr[gpr::RDX] = signature.into();
    (state.dr7, state.pat, state.xcr0) = (0x400, PAT_RESET, 1);
    set_controls(state, 0);
}

impl<P: Platform> Vcpu<P> {
    /// INIT came, or the machine starts and this is not the bootstrap processor: the LAPIC starts anew, and the vCPU
    /// waits for a start-up IPI.
    pub fn initialize(&mut self, now: u64) {
        let startup = self.lapic.take_startup();
        self.lapic.init();
        self.lapic.restore_startup(startup);
        self.publish();
        self.window_requested = false;
        self.awaited_class = 0;
        self.refresh_deadline(now);
    }

    /// Whether a vCPU that waits for it has been started: writes its whole state and returns the reply. The bootstrap
    /// processor begins at the reset vector without waiting. Call it again when someone has made the vCPU look.
    pub fn startup(&mut self, state: &mut Architectural, now: u64) -> Option<Mtd> {
        self.collect();
        self.advance(now);
        self.refresh_deadline(now);
        if self.lapic.signals().init {
            self.initialize(now);
        }
        // Nobody is there to take it.
        self.lapic.take_nmi();
        let begin = match self.lapic.take_startup() {
            _ if self.index == 0 => RESET_VECTOR,
            Some(page) => (u64::from(page) << 12, 0),
            None => return None,
        };
        real_mode(state, begin, self.cpuid.query(1, 0, 0, 1)[0]);
        let fresh = core::mem::replace(&mut self.fresh, false);
        Some(if fresh { INITIAL } else { INITIAL.difference(KEPT_BY_INIT) })
    }
}
