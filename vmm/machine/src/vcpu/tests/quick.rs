//! Exits that are answered quickly are answered as others.

use super::*;
use crate::vcpu::quick::PORT;

/// Without instruction lengths.
const UNTOLD: Hardware = Hardware { lengths_told: false, priority_exit: PriorityExit::Write };

impl Fixture {
    fn quick(&mut self, number: u16, have: Mtd) -> Option<Mtd> {
        let port = self.vcpu.quick_port(number, have, &mut self.state);
        port.or_else(|| self.vcpu.quick(number, have, &mut self.state, &self.memory))
    }

    /// Quickly if possible; the reply, and whether it was possible.
    fn quickly(&mut self, number: u16) -> (Next, bool) {
        let have = self.vcpu.portal_mtd(number);
        match self.quick(number, have) {
            Some(reply) => (Next::Resume(reply), true),
            None => (self.exit(number, have), false),
        }
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

proptest! {
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
    fn cpuid_as_slowly(leaf: u32, base in 0u32..4, subleaf in 0u32..4, cr4: u64) {
        let (mut quick, mut slow) = (Fixture::new(), Fixture::new());
        for f in [&mut quick, &mut slow] {
            f.state.gpr[gpr::RAX] = u64::from(base << 30 | leaf & 0x3f);
            (f.state.gpr[gpr::RCX], f.state.cr4, f.state.instruction_length) = (subleaf.into(), cr4, 2);
        }
        let have = slow.vcpu.portal_mtd(guest::CPUID);
        let (reply, quickly) = quick.quickly(guest::CPUID);
        prop_assert_eq!(reply, slow.exit(guest::CPUID, have));
        prop_assert!(!quickly || ![1, 7, 0xb, 0xd].contains(&leaf));
        prop_assert_eq!(quick.state, slow.state);
    }
}
