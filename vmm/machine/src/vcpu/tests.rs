extern crate std;

use super::*;
use crate::clock::WallClock;
use crate::memory::VecMemory;
use abi::event::{GUEST_ARCH, RECALL};
use abi::mtd::injection::{INTERRUPT_WINDOW, VALID};
use alloc::vec;
use proptest::prelude::*;
use std::sync::Mutex;

const CODE: u64 = 0x1000;
const EVERY: Mtd = Mtd::all();

fn host(leaf: u32, _: u32) -> [u32; 4] {
    match leaf {
        0 => [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0008 => [0x3028, 0, 0, 0],
        _ => [0; 4],
    }
}

mod quick;

const HARDWARE: Hardware = Hardware { lengths_told: true, priority_exit: PriorityExit::Threshold };

struct Shared {
    board: Mutex<Board>,
    woken: Mutex<VcpuSet>,
}

impl Platform for Arc<Shared> {
    fn board(&self) -> impl DerefMut<Target = Board> {
        self.board.lock().unwrap()
    }

    fn try_board(&self) -> Option<impl DerefMut<Target = Board>> {
        self.board.try_lock().ok()
    }

    fn wake(&self, vcpus: VcpuSet) {
        let mut woken = self.woken.lock().unwrap();
        *woken = woken.union(vcpus);
    }
}

/// Of a machine's vCPUs, the one that the test looks at; [`Fixture::switch`] takes another.
struct Fixture {
    vcpu: Vcpu<Arc<Shared>>,
    others: vec::Vec<Vcpu<Arc<Shared>>>,
    shared: Arc<Shared>,
    memory: VecMemory,
    state: Architectural,
    now: u64,
}

impl Fixture {
    fn new() -> Self {
        Self::with(1)
    }

    fn with(vcpus: usize) -> Self {
        Self::on(HARDWARE, vcpus)
    }

    fn on(hardware: Hardware, vcpus: usize) -> Self {
        let config = Config {
            stc_frequency: 1_000_000_000,
            wall_clock: WallClock { unix_ns: 0, stc: 0 },
            memory_below_4g: 1 << 20,
            memory_above_4g: 0,
            exec_channel: true,
        };
        let mut state = Architectural::default();
        // Flat 64-bit mode without paging, which no CPU has: linear addresses are physical.
        (state.cs.access, state.efer, state.rip, state.rflags) = (0xa9b, 1 << 10, CODE, 0x202);
        let (backplane, bus) = (Arc::new(Backplane::new(vcpus)), Arc::<Bus>::default());
        let board = Mutex::new(Board::new(&config, backplane.clone(), bus.clone(), 0));
        let shared = Arc::new(Shared { board, woken: Mutex::new(VcpuSet::EMPTY) });
        let make = |index| {
            let (backplane, bus) = (backplane.clone(), bus.clone());
            let setup = Setup { config: &config, host: &host, hardware, backplane, bus, index, now: 0 };
            Vcpu::new(&setup, shared.clone())
        };
        let (vcpu, others) = (make(0), (1..vcpus).map(make).collect());
        Self { vcpu, others, shared, memory: VecMemory::new(1 << 20), state, now: 0 }
    }

    /// Changes places with the vCPU that is at `index` among the others. The state is the test's to care for.
    fn switch(&mut self, index: usize) {
        core::mem::swap(&mut self.vcpu, &mut self.others[index]);
    }

    fn woken(&self) -> VcpuSet {
        core::mem::take(&mut *self.shared.woken.lock().unwrap())
    }

    fn exit(&mut self, number: u16, have: Mtd) -> Next {
        self.vcpu.handle(number, have, &mut self.state, &self.memory, self.now)
    }

    fn instruction(&mut self, number: u16, length: u32) -> Next {
        self.state.instruction_length = length;
        let have = self.vcpu.portal_mtd(number);
        self.exit(number, have)
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Next {
        self.state.gpr[gpr::RCX] = index as u64;
        self.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.state.gpr[gpr::RDX] = value >> 32;
        self.instruction(guest::WRMSR, 2)
    }

    /// Sets the LAPIC up in x2APIC mode with a one-shot deadline timer on a vector.
    fn timer(&mut self, vector: u8, deadline: u64) {
        assert!(matches!(self.wrmsr(0x1b, 0xfee0_0d00), Next::Resume(_)));
        assert!(matches!(self.wrmsr(0x80f, 0x1ff), Next::Resume(_)));
        assert!(matches!(self.wrmsr(0x832, 2 << 17 | vector as u64), Next::Resume(_)));
        assert!(matches!(self.wrmsr(0x6e0, deadline), Next::Resume(_)));
        assert_eq!(self.vcpu.deadline(), deadline);
    }
}

#[test]
fn cpuid_advances() {
    let mut f = Fixture::new();
    f.state.gpr[gpr::RAX] = 0x4000_0000;
    assert_eq!(f.instruction(guest::CPUID, 2), Next::Resume(Mtd::GPR_0_7 | Mtd::RIP));
    assert_eq!((f.state.rip, f.state.gpr[gpr::RBX]), (CODE + 2, 0x4b4d_564b));
}

#[test]
fn unknown_registers_fault() {
    let mut f = Fixture::new();
    assert_eq!(f.wrmsr(0x1234, 0), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, 0x8000_0b0d);
    assert_eq!(f.state.rip, CODE);
    assert_eq!(f.vcpu.unknown_msrs().writes, 1);
    assert_eq!(f.wrmsr(0xc000_0080, 0x500), Next::More(Mtd::EFER | Mtd::CR));
}

#[test]
fn the_console_and_its_interrupts() {
    let mut f = Fixture::new();
    f.state.gpr[gpr::RAX] = b'x' as u64;
    f.state.qualification[0] = 0x3f8 << 16;
    assert!(matches!(f.instruction(guest::IO, 1), Next::Resume(_)));
    let mut out = [0; 4];
    assert_eq!(f.shared.board.lock().unwrap().drain_serial(&mut out), 1);
    assert_eq!(out[0], b'x');
    f.state.qualification[0] = 0xcf9 << 16;
    f.state.gpr[gpr::RAX] = 6;
    assert_eq!(f.instruction(guest::IO, 1), Next::Reset);
}

#[test]
fn power_off() {
    let mut f = Fixture::new();
    f.state.qualification[0] = (crate::pm::PM1A_CONTROL as u64) << 16 | 1;
    f.state.gpr[gpr::RAX] = (crate::pm::SLEEP_TYPE_S5 as u64) << 10 | 1 << 13;
    assert_eq!(f.instruction(guest::IO, 1), Next::PowerOff);
}

#[test]
fn a_timer_wakes_from_hlt() {
    let mut f = Fixture::new();
    f.timer(0x40, 1_000_000);
    f.state.interruptibility = 1;
    assert_eq!(f.instruction(guest::HLT, 1), Next::Halt);
    assert_eq!((f.state.interruptibility, f.vcpu.deadline()), (0, 1_000_000));
    assert_eq!(f.vcpu.wake(&mut f.state, 999_999), Next::Halt);
    assert_eq!(f.vcpu.wake(&mut f.state, 1_000_000), Next::Resume(Mtd::RIP | Mtd::STA | Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0x40);
}

#[test]
fn a_recall_injects_or_waits_for_the_window() {
    let mut f = Fixture::new();
    f.timer(0x40, 1_000);
    f.now = 1_000;
    let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
    f.state.rflags = 2;
    assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, INTERRUPT_WINDOW);
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0x40);
    // Nothing more: a further recall changes nothing.
    (f.state.rflags, f.state.interruption_info) = (0x202, 0);
    assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::empty()));
    // An event on its way stays.
    f.wrmsr(0x80b, 0);
    f.wrmsr(0x6e0, 2_000);
    (f.now, f.state.interruption_info) = (2_000, VALID | 0x0e);
    assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0x0e | INTERRUPT_WINDOW);
}

/// A vector below the task priority waits for the threshold, then for nothing.
#[test]
fn the_task_priority_holds_interrupts_back() {
    let mut f = Fixture::new();
    f.timer(0x51, u64::MAX);
    let send = |f: &mut Fixture| f.wrmsr(0x83f, 0x51);
    let requested = Next::Resume(Mtd::INJ | Mtd::RIP);
    assert_eq!(send(&mut f), requested);
    // CR8 was raised without an exit.
    f.state.cr8 = 7;
    f.state.interruption_info = 0;
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ | Mtd::CR), Next::Resume(Mtd::INJ | Mtd::TPR));
    assert_eq!((f.state.interruption_info, f.state.tpr_threshold), (0, 5));
    // The same vector again asks for nothing.
    assert_eq!(send(&mut f), Next::Resume(Mtd::RIP));
    f.state.cr8 = 4;
    let have = f.vcpu.portal_mtd(TPR_BELOW_THRESHOLD);
    assert_eq!(f.exit(TPR_BELOW_THRESHOLD, have), Next::Resume(Mtd::INJ | Mtd::TPR));
    assert_eq!((f.state.interruption_info, f.state.tpr_threshold), (VALID | 0x51, 0));
    assert_eq!(f.vcpu.lapic.cr8(), 4);
}

/// Without a threshold, writes of CR8 exit meanwhile; and it looks every millisecond.
#[test]
fn writes_of_the_task_priority_are_awaited() {
    let mut f = Fixture::new();
    f.vcpu.priority_exit = PriorityExit::Write;
    f.timer(0x51, u64::MAX);
    f.wrmsr(0x83f, 0x51);
    (f.state.cr8, f.state.interruption_info) = (7, 0);
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ | Mtd::CR), Next::Resume(Mtd::INJ | Mtd::CTRL));
    assert_eq!((f.state.interruption_info, f.state.exec_controls_1 >> 19 & 1), (0, 1));
    assert_eq!(f.vcpu.deadline(), 1_000_000);
    // A vector of a higher class asks for a window of its own.
    assert_eq!(f.wrmsr(0x83f, 0x81), Next::Resume(Mtd::INJ | Mtd::RIP));
    f.state.interruption_info = 0;
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ | Mtd::CR), Next::Resume(Mtd::INJ | Mtd::CTRL));
    assert_eq!((f.state.interruption_info, f.state.exec_controls_1 >> 19 & 1), (VALID | 0x81, 0));
    // When that is over, the first one waits for the priority again.
    assert_eq!(f.wrmsr(0x80b, 0), Next::Resume(Mtd::INJ | Mtd::RIP));
    f.state.interruption_info = 0;
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ | Mtd::CR), Next::Resume(Mtd::INJ | Mtd::CTRL));
    // mov cr8, r9; the register comes from the instruction.
    f.memory.write(CODE, &[0x45, 0x0f, 0x22, 0xc1]).unwrap();
    (f.state.rip, f.state.instruction_length, f.state.gpr[9]) = (CODE, 0, 2);
    f.state.qualification[0] = 8;
    let Next::Resume(reply) = f.exit(guest::CR_ACCESS, EVERY) else { panic!() };
    assert!(reply.contains(Mtd::CR | Mtd::CTRL | Mtd::INJ | Mtd::RIP));
    assert_eq!((f.state.cr8, f.state.exec_controls_1 >> 19 & 1, f.state.rip), (2, 0, CODE + 4));
    assert_eq!(f.state.interruption_info, INTERRUPT_WINDOW);
    f.state.interruption_info = 0;
    assert_eq!(f.exit(guest::INTERRUPT_WINDOW, Mtd::INJ | Mtd::CR), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0x51);
}

#[test]
fn a_dead_guest_is_noticed() {
    let mut f = Fixture::new();
    f.state.rflags = 2;
    assert_eq!(f.exit(guest::HLT, EVERY), Next::Crash(Cause::HaltedForever));
    assert_eq!(f.state.rip, CODE);
    assert_eq!(f.instruction(guest::HLT, 1), Next::More(EVERYTHING));
    f.state.qualification = [4, 0, 0xd000_0000];
    assert_eq!(f.exit(guest::PAGE_FAULT, EVERY), Next::Crash(Cause::FetchOutsideRam(0xd000_0000)));
}

#[test]
fn string_output_to_the_exec_port() {
    let mut f = Fixture::new();
    f.memory.write(CODE, &[0xf3, 0x6e]).unwrap(); // rep outsb
    let text: vec::Vec<u8> = (0..6000).map(|i| i as u8).collect();
    f.memory.write(0x5ff0, &text).unwrap();
    (f.state.gpr[gpr::RSI], f.state.gpr[gpr::RCX]) = (0x5ff0, 6000);
    f.state.qualification[0] = 0xe90 << 16 | 1 << 4 | 1 << 5;
    assert_eq!(f.instruction(guest::IO, 2), Next::More(EVERYTHING));
    assert_eq!(f.exit(guest::IO, EVERY), Next::Resume(Mtd::GPR_0_7 | Mtd::RIP));
    assert_eq!((f.state.rip, f.state.gpr[gpr::RCX]), (CODE + 2, 0));
    let mut out = vec![0; 6000];
    assert_eq!(f.shared.board.lock().unwrap().drain_exec(&mut out), 6000);
    assert!(out == text);
}

#[test]
fn the_lapic_in_memory() {
    let mut f = Fixture::new();
    f.memory.write(CODE, &[0x8b, 0x03]).unwrap(); // mov eax, [rbx]
    f.state.gpr[gpr::RBX] = 0xfee0_0030;
    f.state.qualification = [1, 0, 0xfee0_0030];
    assert!(matches!(f.exit(guest::PAGE_FAULT, EVERY), Next::Resume(_)));
    assert_eq!((f.state.rip, f.state.gpr[gpr::RAX] & 0xff), (CODE + 2, 0x14));
}

/// INIT and two start-up IPIs from vCPU 0 to vCPU 1, as Linux sends them; and INIT again while it runs.
#[test]
fn a_further_vcpu_starts_and_starts_again() {
    let mut f = Fixture::with(2);
    f.timer(0x40, u64::MAX);
    f.switch(0);
    f.vcpu.initialize(0);
    assert_eq!(f.vcpu.startup(&mut f.state, 0), None);
    f.switch(0);
    assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x4500), Next::Resume(_)));
    assert_eq!(f.woken(), VcpuSet::one(1));
    f.switch(0);
    assert_eq!(f.vcpu.startup(&mut f.state, 0), None);
    f.switch(0);
    assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x4699), Next::Resume(_)));
    f.switch(0);
    assert_eq!(f.vcpu.startup(&mut f.state, 0), Some(INITIAL));
    assert_eq!((f.state.cs.base, f.state.cs.selector, f.state.rip, f.state.cr0), (0x9_9000, 0x9900, 0, 0x6000_0010));
    // The second one finds it running.
    f.switch(0);
    (f.state.cs.access, f.state.efer, f.state.cr0) = (0xa9b, 1 << 10, 0);
    assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x4698), Next::Resume(_)));
    f.switch(0);
    let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
    assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::empty()));
    f.switch(0);
    assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x4500), Next::Resume(_)));
    assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x4697), Next::Resume(_)));
    f.switch(0);
    assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Init);
    f.vcpu.initialize(0);
    let reply = f.vcpu.startup(&mut f.state, 0).expect("the start-up IPI came already");
    assert_eq!((f.state.cs.base, reply.contains(Mtd::SYSENTER), reply.contains(Mtd::EFER)), (0x9_7000, false, true));
}

#[test]
fn interrupts_cross_between_vcpus() {
    let mut f = Fixture::with(2);
    f.timer(0x40, u64::MAX);
    f.switch(0);
    f.timer(0x40, u64::MAX);
    // HLT with interrupts disabled is another's business now.
    f.state.rflags = 2;
    assert_eq!(f.instruction(guest::HLT, 1), Next::HaltDisabled);
    f.state.rflags = 0x202;
    assert_eq!(f.instruction(guest::HLT, 1), Next::Halt);
    f.switch(0);
    assert_eq!(f.wrmsr(0x830, 1 << 32 | 0xfb), Next::Resume(Mtd::RIP));
    assert_eq!(f.woken(), VcpuSet::one(1));
    // It has not looked yet: nobody needs to make it look again.
    assert_eq!(f.wrmsr(0x830, 1 << 32 | 0xfc), Next::Resume(Mtd::RIP));
    assert_eq!(f.woken(), VcpuSet::EMPTY);
    f.switch(0);
    let Next::Resume(reply) = f.vcpu.wake(&mut f.state, 0) else { panic!() };
    assert!(reply.contains(Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0xfc);
}

/// An NMI is taken with interrupts disabled, but not while another is served.
#[test]
fn nmis() {
    let mut f = Fixture::with(2);
    f.timer(0x40, u64::MAX);
    f.switch(0);
    f.timer(0x40, u64::MAX);
    let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
    f.state.rflags = 2;
    for (interruptibility, info) in [(0, VALID | 0x202), (8, 1 << 13), (1, 1 << 13)] {
        f.switch(0);
        assert!(matches!(f.wrmsr(0x830, 1 << 32 | 0x400), Next::Resume(_)));
        f.switch(0);
        (f.state.interruptibility, f.state.interruption_info) = (interruptibility, 0);
        assert_eq!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(Mtd::INJ));
        assert_eq!(f.state.interruption_info, info, "{interruptibility:#x}");
    }
    f.state.interruption_info = 0;
    assert_eq!(f.exit(guest::NMI_WINDOW, Mtd::INJ), Next::Resume(Mtd::INJ));
    assert_eq!(f.state.interruption_info, VALID | 0x202);
    // To itself: it looks at once whether it can be taken.
    let _ = f.woken();
    assert!(matches!(f.wrmsr(0x830, 1 << 18 | 0x400), Next::Resume(_)));
    assert_eq!(f.woken(), VcpuSet::one(1));
}

/// A device's deadline that another vCPU sets is the first one's to serve.
#[test]
fn the_first_vcpu_serves_the_board() {
    let mut f = Fixture::with(2);
    f.switch(0);
    // The real-time clock's periodic interrupt: rate 6, enabled.
    for (port, value) in [(0x70, 0x0au64), (0x71, 0x26), (0x70, 0x0b), (0x71, 0x42)] {
        f.state.qualification[0] = port << 16;
        f.state.gpr[gpr::RAX] = value;
        assert!(matches!(f.instruction(guest::IO, 1), Next::Resume(_)));
    }
    assert_eq!((f.woken(), f.vcpu.deadline()), (VcpuSet::one(0), u64::MAX));
    f.switch(0);
    let have = f.vcpu.portal_mtd(GUEST_ARCH + RECALL);
    assert!(matches!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(_)));
    assert!(f.vcpu.deadline() < 1_000_000);
    f.now = f.vcpu.deadline();
    assert!(matches!(f.exit(GUEST_ARCH + RECALL, have), Next::Resume(_)));
    assert!(f.vcpu.deadline() > f.now);
}

proptest! {
    #[test]
    fn no_exit_panics(number in 0u16..0x90, gprs: [u64; 16], qualification: [u64; 3], code: [u8; 16], rip: u64,
                      control: [u64; 4], info: u32, access: u16) {
        let mut f = Fixture::new();
        f.memory.write(CODE, &code).unwrap();
        f.state.gpr = gprs;
        f.state.qualification = qualification;
        f.state.rip = if rip & 1 == 0 { CODE } else { rip };
        (f.state.cr0, f.state.cr3, f.state.cr4, f.state.efer) = (control[0], control[1], control[2], control[3]);
        (f.state.interruption_info, f.state.cs.access) = (info, access);
        let mut have = f.vcpu.portal_mtd(number);
        for _ in 0..3 {
            match f.exit(number, have) {
                Next::More(more) => have |= more,
                _ => break,
            }
        }
    }
}
