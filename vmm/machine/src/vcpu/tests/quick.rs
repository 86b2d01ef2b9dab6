//! Exits that are answered quickly are answered as others.

use super::*;
use crate::vcpu::quick::PORT;

/// Without instruction lengths.
const UNTOLD: Hardware = Hardware { lengths_told: false, priority_exit: PriorityExit::Write };

impl Fixture {
    fn quick(&mut self, number: u16, have: Mtd) -> Option<Mtd> {
        let port = self.vcpu.quick_port(number, have, &mut self.state);
        let cpuid = port.or_else(|| self.vcpu.quick_cpuid(number, have, &mut self.state, &self.memory));
        cpuid.or_else(|| self.vcpu.quick(number, have, &mut self.state, &self.memory, || self.now))
    }

    /// Quickly if possible; the reply, and whether it was possible.
    fn quickly(&mut self, number: u16) -> (Next, bool) {
        let have = self.vcpu.portal_mtd(number);
        match self.quick(number, have) {
            Some(reply) => (Next::Resume(reply), true),
            None => (self.exit(number, have), false),
        }
    }

    /// A register is written, quickly if possible.
    fn quick_wrmsr(&mut self, index: u32, value: u64) -> (Next, bool) {
        (self.state.gpr[gpr::RCX], self.state.gpr[gpr::RAX]) = (index.into(), value & 0xffff_ffff);
        (self.state.gpr[gpr::RDX], self.state.instruction_length) = (value >> 32, 2);
        self.quickly(guest::WRMSR)
    }

    fn account(&self) -> vec::Vec<alloc::string::String> {
        self.vcpu.statistics.lines().map(|line| alloc::format!("{line}")).collect()
    }
}

fn port(port: u16, input: bool) -> u64 {
    u64::from(port) << 16 | u64::from(input) << 3
}

#[test]
fn a_register_that_only_holds_a_value_is_quick() {
    let mut f = Fixture::new();
    f.state.instruction_length = 1;
    (f.state.qualification[0], f.state.gpr[gpr::RAX]) = (port(0x3ff, false), 0x11a5);
    assert_eq!(f.quickly(guest::IO), (Next::Resume(Mtd::RIP), true));
    (f.state.qualification[0], f.state.gpr[gpr::RAX]) = (port(0x3ff, true), 0x1100);
    assert_eq!(f.quickly(guest::IO), (Next::Resume(Mtd::GPR_0_7 | Mtd::RIP), true));
    assert_eq!((f.state.gpr[gpr::RAX], f.state.rip), (0x11a5, CODE + 2));
    // Output has to go somewhere; a length has to be known; a wider portal closes.
    f.state.qualification[0] = port(0x3f8, false);
    assert!(!f.quickly(guest::IO).1);
    (f.state.qualification[0], f.state.instruction_length) = (port(0x3ff, true), 0);
    assert!(!f.quickly(guest::IO).1);
    f.state.instruction_length = 1;
    assert_eq!(f.quick(guest::IO, EVERY), None);
    // Somebody else has the board.
    let shared = f.shared.clone();
    let board = shared.board.lock().unwrap();
    assert_eq!(f.quick(guest::IO, PORT), None);
    drop(board);
    assert!(f.quickly(guest::IO).1);
}

#[test]
fn cpuid_without_a_length_is_read_where_it_is() {
    const PAGES: u64 = 0x1_0000;
    let mut f = Fixture::on(UNTOLD, 1);
    // One large page at linear 0x4020_0000, which is physical 0.
    for (at, entry) in [(PAGES, 0x1_1003), (0x1_1008, 0x1_2003), (0x1_2008, 0x83)] {
        f.memory.write(at, &u64::to_le_bytes(entry)).unwrap();
    }
    let code = 0x4020_0000 + CODE;
    (f.state.cr0, f.state.cr3, f.state.cr4) = (1 << 31 | 1, PAGES, 1 << 5);
    let mut at = |rip, bytes: &[u8]| {
        f.memory.write(rip & 0x1f_ffff, bytes).unwrap();
        (f.state.rip, f.state.gpr[gpr::RAX]) = (rip, 0x4000_0000);
        (f.quickly(guest::CPUID), f.state.rip, f.state.gpr[gpr::RBX] as u32)
    };
    let done = Next::Resume(Mtd::GPR_0_7 | Mtd::RIP);
    assert_eq!(at(code, &[0x0f, 0xa2]), ((done, true), code + 2, 0x4b4d_564b));
    // With a prefix, where there was none; and across a page: all of the mode is asked for.
    assert_eq!(at(code, &[0x48, 0x0f, 0xa2]).0, (Next::More(DECODE), false));
    assert_eq!(at(code + 0xfff, &[0x0f, 0xa2]).0, (Next::More(DECODE), false));
    assert_eq!(at(code, &[0x0f, 0xa2]).1, code + 2);
    // Then it is there.
    let have = f.vcpu.portal_mtd(guest::CPUID) | DECODE;
    f.memory.write(CODE, &[0x48, 0x0f, 0xa2]).unwrap();
    f.state.rip = code;
    assert_eq!(f.exit(guest::CPUID, have), done);
    assert_eq!(f.state.rip, code + 3);
    // Paging of 32 bits has other tables.
    (f.state.efer, f.state.rip) = (0, code);
    assert!(!f.quickly(guest::CPUID).1);
}

#[test]
fn a_way_through_the_tables_counts_while_all_of_it_holds() {
    const LINEAR: u64 = 0x4020_1000;
    const TABLES: [(u64, u64); 4] =
        [(0x1_0000, 0x1_1003), (0x1_1008, 0x1_2003), (0x1_2008, 0x1_3003), (0x1_3008, CODE | 3)];
    let mut f = Fixture::on(UNTOLD, 1);
    let put = |f: &Fixture, (at, entry)| f.memory.write(at, &u64::to_le_bytes(entry)).unwrap();
    TABLES.into_iter().for_each(|table| put(&f, table));
    f.memory.write(CODE, &[0x0f, 0xa2]).unwrap();
    (f.state.cr0, f.state.cr3, f.state.cr4) = (1 << 31 | 1, 0x1_0000, 1 << 5);
    let good = f.state;
    let at_once = |f: &mut Fixture| {
        (f.state.rip, f.state.gpr[gpr::RAX]) = (LINEAR, 0x4000_0000);
        let have = f.vcpu.portal_mtd(guest::CPUID);
        let reply = f.vcpu.quick_cpuid(guest::CPUID, have, &mut f.state, &f.memory);
        assert_eq!(f.state.rip - LINEAR, if reply.is_some() { 2 } else { 0 });
        reply.is_some()
    };
    assert!(!at_once(&mut f), "no way is known");
    assert!(f.quickly(guest::CPUID).1);
    assert!(at_once(&mut f));
    for (at, entry) in TABLES {
        for other in [entry + 0x4000, entry - 1] {
            put(&f, (at, other));
            assert!(!at_once(&mut f), "the entry at {at:#x} is {other:#x}");
        }
        put(&f, (at, entry));
        assert!(at_once(&mut f));
    }
    let changes: [fn(&mut Architectural); 3] = [|s| s.cr3 = 0x2_0000, |s| s.cr0 = 1, |s| s.efer = 0];
    for change in changes {
        change(&mut f.state);
        assert!(!at_once(&mut f));
        f.state = good;
    }
    f.memory.write(CODE, &[0x48, 0x0f, 0xa2]).unwrap();
    assert!(!at_once(&mut f));
    // The same address is a CPUID elsewhere.
    f.memory.write(0x5000, &[0x0f, 0xa2]).unwrap();
    put(&f, (0x1_3008, 0x5003));
    assert!(!at_once(&mut f));
    assert!(f.quickly(guest::CPUID).1);
    assert!(at_once(&mut f));
    // A large page ends the way sooner.
    f.memory.write(CODE, &[0x0f, 0xa2]).unwrap();
    put(&f, (0x1_2008, 0x83));
    assert!(!at_once(&mut f));
    assert!(f.quickly(guest::CPUID).1);
    assert!(at_once(&mut f));
    put(&f, (0x1_2008, 0x40_0083));
    assert!(!at_once(&mut f));
}

/// Tables under which linear addresses are physical ones, in long mode.
fn paged() -> Fixture {
    const TABLES: u64 = 0x1_0000;
    let mut f = Fixture::on(UNTOLD, 1);
    for (at, entry) in [(TABLES, 0x1_1003), (0x1_1000, 0x83), (0x1_1018, 0xc000_0083)] {
        f.memory.write(at, &u64::to_le_bytes(entry)).unwrap();
    }
    (f.state.cr0, f.state.cr3, f.state.cr4) = (1 << 31 | 1, TABLES, 1 << 5);
    f
}

impl Fixture {
    /// Touches a device by the instruction `code`, whose address is in RBX and whose register is EAX; true if that was quick.
    fn touch(&mut self, code: &[u8], gpa: u64, rax: u64) -> bool {
        let write = u64::from(code[0] == 0x89) << 1;
        self.memory.write(CODE, code).unwrap();
        (self.state.rip, self.state.gpr[gpr::RBX], self.state.gpr[gpr::RAX]) = (CODE, gpa, rax);
        self.state.qualification = [1 << 8 | write, gpa, gpa];
        let (next, quickly) = self.quickly(guest::PAGE_FAULT);
        if next == Next::More(EVERYTHING) {
            assert!(matches!(self.exit(guest::PAGE_FAULT, EVERY), Next::Resume(_)));
        } else {
            assert!(matches!(next, Next::Resume(reply) if reply.contains(Mtd::GPR_0_7 | Mtd::GPR_8_15 | Mtd::RIP)));
        }
        assert_eq!(self.state.rip, CODE + code.len() as u64);
        quickly
    }
}

#[test]
fn devices_in_memory_by_instructions_that_were_decoded_before() {
    const IOAPIC: u64 = 0xfec0_0000;
    const LOAD: &[u8] = &[0x8b, 0x03];
    const STORE: &[u8] = &[0x89, 0x03];
    let mut f = paged();
    assert!(!f.touch(STORE, IOAPIC, 1), "it was never seen");
    assert!(f.touch(STORE, IOAPIC, 1));
    assert!(!f.touch(LOAD, IOAPIC + 0x10, 0), "it is another one");
    assert!(f.touch(LOAD, IOAPIC + 0x10, 0));
    assert_eq!(f.state.gpr[gpr::RAX], 0x17_0020);
    assert!(f.touch(LOAD, 0xfee0_0030, 0));
    assert_eq!(f.state.gpr[gpr::RAX] & 0xff, 0x14);
    // From this something follows, but it is decoded once only: the task priority.
    assert!(!f.touch(STORE, 0xfee0_0080, 0x20));
    assert_eq!(f.state.cr8, 2);
    assert!(!f.touch(STORE, 0xfee0_0080, 0x30));
    assert_eq!((f.state.cr8, f.vcpu.lapic().cr8()), (3, 3));
    // An access to page tables, or one of another kind than the instruction, is not the instruction's.
    for qualification in [2, 1 << 8, 1 << 8 | 4] {
        f.state.rip = CODE;
        f.state.qualification[0] = qualification;
        assert_eq!(f.quick(guest::PAGE_FAULT, f.vcpu.portal_mtd(guest::PAGE_FAULT)), None, "{qualification:#x}");
    }
}

#[test]
fn an_interrupt_that_a_known_instruction_makes_waits_for_a_recall() {
    let mut f = paged();
    const STORE: &[u8] = &[0x89, 0x03];
    const ICR: u64 = 0xfee0_0300;
    assert!(!f.touch(STORE, 0xfee0_00f0, 0x1ff));
    f.state.qualification = [1 << 8 | 2, ICR, ICR];
    (f.state.rip, f.state.gpr[gpr::RBX], f.state.gpr[gpr::RAX]) = (CODE, ICR, 0x4_0041);
    let have = f.vcpu.portal_mtd(guest::PAGE_FAULT);
    let Next::Resume(reply) = f.exit(guest::PAGE_FAULT, have) else { panic!("it is known") };
    assert!(!reply.contains(Mtd::INJ), "nobody has asked what is on its way");
    assert_eq!(f.woken(), VcpuSet::one(0));
}

#[test]
fn what_a_tick_writes_is_quick() {
    // The next deadline when another is set, and that: it has passed, or the one before has.
    for (now, deadline) in [(1_000, 999), (2_000, 3_000)] {
        let mut f = Fixture::new();
        f.timer(0x40, 1_000);
        f.now = 1_000;
        let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
        assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::INJ));
        assert_eq!((f.state.interruption_info, f.vcpu.take_deadline()), (VALID | 0x40, u64::MAX));
        assert_eq!(f.quick_wrmsr(0x80b, 1), (Next::Resume(Mtd::INJ), false), "it has no such bits");
        f.state.rip = CODE;
        assert_eq!(f.quick_wrmsr(0x80b, 0), (Next::Resume(Mtd::RIP), true));
        assert!(!f.vcpu.left_something());
        assert_eq!((f.vcpu.lapic().ppr(), f.state.rip), (0, CODE + 2));
        assert_eq!(f.quick_wrmsr(0x6e0, 2_000), (Next::Resume(Mtd::RIP), true));
        assert!(f.vcpu.left_something());
        assert_eq!(f.vcpu.take_deadline(), 2_000);
        f.now = now;
        assert_eq!(f.quick_wrmsr(0x6e0, deadline), (Next::Resume(Mtd::INJ | Mtd::RIP), false));
        // An interrupt waits now.
        assert!(!f.quick_wrmsr(0x80b, 0).1);
        assert!(!f.quick_wrmsr(0x6e0, 4_000).1);
        // A length has to be known.
        f.state.instruction_length = 0;
        let have = f.vcpu.portal_mtd(guest::WRMSR);
        assert_eq!(f.quick(guest::WRMSR, have), None);
    }
}

#[test]
fn registers_without_a_length_are_found_where_they_are() {
    let mut f = paged();
    f.memory.write(CODE, &[0x0f, 0x30]).unwrap();
    (f.state.rip, f.state.gpr[gpr::RCX], f.state.gpr[gpr::RAX]) = (CODE, 0x1b, 0xfee0_0d00);
    assert_eq!(f.quickly(guest::WRMSR), (Next::Resume(Mtd::RIP), false));
    assert_eq!(f.state.rip, CODE + 2);
    f.memory.write(CODE + 2, &[0x0f, 0x30, 0x0f, 0x32]).unwrap();
    (f.state.gpr[gpr::RCX], f.state.gpr[gpr::RAX]) = (0x80b, 0);
    assert_eq!(f.quickly(guest::WRMSR), (Next::Resume(Mtd::RIP), true));
    f.state.gpr[gpr::RCX] = 0x1b;
    assert_eq!(f.quickly(guest::RDMSR), (Next::Resume(Mtd::GPR_0_7 | Mtd::RIP), false));
    assert_eq!((f.state.rip, f.state.gpr[gpr::RAX]), (CODE + 6, 0xfee0_0d00));
    // What is there is another instruction, or has a prefix: all of the mode is asked for, and nothing has happened.
    f.memory.write(CODE + 6, &[0x48, 0x0f, 0x30]).unwrap();
    (f.state.gpr[gpr::RCX], f.state.gpr[gpr::RAX]) = (0x80f, 0xff);
    assert_eq!(f.quickly(guest::WRMSR), (Next::More(DECODE), false));
    assert_eq!(f.quickly(guest::RDMSR), (Next::More(DECODE), false));
    assert_eq!((f.state.rip, f.vcpu.lapic().clone().rdmsr(0x80f, 0)), (CODE + 6, Ok(0x1ff)));
    let have = f.vcpu.portal_mtd(guest::WRMSR) | DECODE;
    assert!(matches!(f.exit(guest::WRMSR, have), Next::Resume(_)));
    assert_eq!((f.state.rip, f.vcpu.lapic().clone().rdmsr(0x80f, 0)), (CODE + 9, Ok(0xff)));
}

proptest! {
    /// Whether quickly or not, a LAPIC comes to the same, as the timer's time comes and goes.
    #[test]
    fn registers_as_slowly(writes in prop::collection::vec((0u8..8, 0u64..3_000, 0u64..3_000), 1..60)) {
        let (mut quick, mut slow) = (Fixture::new(), Fixture::new());
        for f in [&mut quick, &mut slow] {
            f.timer(0x40, 1_000);
        }
        for (what, time, value) in writes {
            let (index, value) = match what {
                0..3 => (0x80b, 0),
                3..6 => (0x6e0, if value < 100 { 0 } else { (slow.now + value).saturating_sub(1_000) }),
                6 => (0x83f, 0x30 + value % 64),
                _ => (0x808, value % 0x60),
            };
            for f in [&mut quick, &mut slow] {
                f.now += time;
                f.state.interruption_info = 0;
                // What somebody else does at that time.
                if f.now >= f.vcpu.deadline() {
                    let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
                    prop_assert!(matches!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(_)));
                }
                f.state.interruption_info = 0;
            }
            prop_assert_eq!(quick.quick_wrmsr(index, value).0, slow.wrmsr(index, value));
            prop_assert_eq!(quick.state, slow.state);
            prop_assert_eq!(quick.vcpu.deadline(), slow.vcpu.deadline());
            prop_assert_eq!(alloc::format!("{:?}", quick.vcpu.lapic()), alloc::format!("{:?}", slow.vcpu.lapic()));
        }
        prop_assert_eq!(quick.account(), slow.account());
    }

    /// Whether quickly or not, a serial port and the account of it come to the same.
    #[test]
    fn as_slowly(accesses in prop::collection::vec((0x3f7u16..=0x400, any::<bool>(), any::<u8>()), 1..60)) {
        let (mut quick, mut slow) = (Fixture::new(), Fixture::new());
        for (number, input, value) in accesses {
            for f in [&mut quick, &mut slow] {
                f.state.qualification[0] = port(number, input);
                f.state.gpr[gpr::RAX] = value.into();
                f.state.instruction_length = 1;
            }
            let have = slow.vcpu.portal_mtd(guest::IO);
            prop_assert_eq!(quick.quickly(guest::IO).0, slow.exit(guest::IO, have));
            prop_assert_eq!(quick.state, slow.state);
            prop_assert_eq!(quick.vcpu.left_something(), slow.vcpu.left_something());
        }
        prop_assert_eq!(quick.account(), slow.account());
    }

    /// So does CPUID.
    #[test]
    fn cpuid_as_slowly(leaf in 0u32..0x22, base in 0u32..4, subleaf in 0u32..3, cr4: u64) {
        let (mut quick, mut slow) = (Fixture::new(), Fixture::new());
        for f in [&mut quick, &mut slow] {
            f.state.gpr[gpr::RAX] = u64::from(base << 30 | leaf);
            (f.state.gpr[gpr::RCX], f.state.cr4, f.state.instruction_length) = (subleaf.into(), cr4, 2);
        }
        let have = slow.vcpu.portal_mtd(guest::CPUID);
        prop_assert_eq!(quick.quickly(guest::CPUID), (slow.exit(guest::CPUID, have), true));
        prop_assert_eq!(quick.state, slow.state);
    }
}
