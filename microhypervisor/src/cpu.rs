#![allow(unsafe_code)]
//! State of one CPU. It lies at the top of the CPU's stack, which is how entries find it; nothing else leads there.
//!
//! Unsafe: hands out what only this CPU may touch.

use core::cell::{Cell, UnsafeCell};

use kernel_core::ready::ReadyQueue;
use kernel_core::timeout::TimeoutQueue;
use spin::Once;

use crate::descriptors::{Gdt, TaskState};
use crate::ec::Ec;
use crate::guest::GuestState;
use crate::memory::StaticFrame;
use crate::sched::Sc;
use crate::vcpu::Processor;

/// Number of a CPU.
pub type CpuNumber = u16;

/// A value that only one CPU touches, with interrupts off, never reentered.
#[repr(transparent)]
pub struct Owned<T>(UnsafeCell<T>);

impl<T> Owned<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The value. Callers hold the reference only for one operation and never across a call that may take it again.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub fn get(&self) -> &mut T {
        // SAFETY: the type's contract: one CPU, interrupts off, no reentry.
        unsafe { &mut *self.0.get() }
    }
}

/// Per-CPU state.
#[repr(C, align(64))]
pub struct Cpu {
    /// The EC that user mode or guest mode runs; entry stubs save registers there. First field: see `entry.S`.
    pub current: Cell<*const Ec>,
    /// Number of this CPU.
    pub number: CpuNumber,
    /// The SC whose budget is being consumed.
    pub sc: Cell<Option<&'static Sc>>,
    /// The current SC runs a chain that it only helps: a reply must walk the chain again.
    pub helping: Cell<bool>,
    /// A more urgent SC became ready: look before returning to user or guest mode.
    pub reschedule: Cell<bool>,
    /// Ready SCs.
    pub ready: Owned<ReadyQueue>,
    /// Armed timeouts of blocked ECs.
    pub timeouts: Owned<TimeoutQueue>,
    /// System time at which the current SC's budget ends.
    pub slice_end: Cell<u64>,
    /// System time at which the current SC began to consume.
    pub slice_start: Cell<u64>,
    /// System time that the timer is programmed for.
    pub deadline: Cell<u64>,
    /// Physical address of the page tables in CR3.
    pub space: Cell<u64>,
    /// Owner of what the FPU holds.
    pub fpu_owner: Cell<*const Ec>,
    /// Value of XCR0.
    pub xcr0: Cell<u64>,
    /// CR0.TS is clear in the kernel.
    pub ts_clear: Cell<bool>,
    /// What this CPU has for running guests.
    pub processor: Once<Processor>,
    /// The guest that ran last, if its state is in registers that host programs depend on.
    pub guest: Cell<Option<&'static GuestState>>,
    /// A guest ran since the task register was loaded: VMX exits cut its limit.
    pub task_register_stale: Cell<bool>,
    /// Task state segment.
    pub task: Cell<Option<&'static TaskState>>,
    /// Global descriptor table.
    pub gdt: Cell<*mut Gdt>,
}

/// Bytes of a CPU's stack.
const STACK: usize = 16384;
/// Bytes of an interrupt stack.
const IST: usize = 4096;

/// A CPU's stack, guarded below, with its [`Cpu`] on top, its interrupt stacks and its descriptor table.
#[repr(C, align(4096))]
pub struct CpuBlock {
    guard: StaticFrame,
    stack: UnsafeCell<[u8; STACK]>,
    /// On top of the stack.
    pub cpu: Cpu,
    gdt: UnsafeCell<Gdt>,
    ist: UnsafeCell<[[u8; IST]; 4]>,
}

// SAFETY: after boot each CPU touches its own block only.
unsafe impl Sync for CpuBlock {}

impl CpuBlock {
    /// The block of CPU `number`.
    pub const fn new(number: CpuNumber) -> Self {
        Self {
            guard: StaticFrame::zeroed(),
            stack: UnsafeCell::new([0; STACK]),
            cpu: Cpu {
                current: Cell::new(core::ptr::null()),
                number,
                sc: Cell::new(None),
                helping: Cell::new(false),
                reschedule: Cell::new(false),
                ready: Owned::new(ReadyQueue::empty()),
                timeouts: Owned::new(TimeoutQueue::empty()),
                slice_end: Cell::new(u64::MAX),
                slice_start: Cell::new(0),
                deadline: Cell::new(u64::MAX),
                space: Cell::new(0),
                fpu_owner: Cell::new(core::ptr::null()),
                xcr0: Cell::new(0),
                ts_clear: Cell::new(false),
                processor: Once::new(),
                guest: Cell::new(None),
                task_register_stale: Cell::new(false),
                task: Cell::new(None),
                gdt: Cell::new(core::ptr::null_mut()),
            },
            gdt: UnsafeCell::new(Gdt::new(number as usize)),
            ist: UnsafeCell::new([[0; IST]; 4]),
        }
    }

    /// Address of the page below the stack, which must not be mapped.
    pub fn guard(&self) -> u64 {
        self.guard.pointer() as u64
    }

    /// Loads this CPU's descriptor tables.
    pub fn load_descriptors(&'static self) {
        let ist = self.ist.get() as u64;
        let tops = [1, 2, 3, 4].map(|n| ist + (n * IST) as u64);
        // SAFETY: called once, by the CPU that owns the block; the window is mapped by then.
        let task = unsafe { crate::descriptors::load(self.cpu.number as usize, &mut *self.gdt.get(), tops) };
        self.cpu.task.set(Some(task));
        self.cpu.gdt.set(self.gdt.get());
    }

    /// Offset of the stack's top.
    pub const STACK_TOP: usize = core::mem::offset_of!(CpuBlock, cpu);
}

/// The CPU that booted the machine.
pub static BOOT_CPU: CpuBlock = CpuBlock::new(0);

impl Cpu {
    /// The CPU with this number, if there is one.
    pub fn by_number(number: CpuNumber) -> Option<&'static Cpu> {
        (number == 0).then_some(&BOOT_CPU.cpu)
    }
}

/// Reads the time-stamp counter: the system time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC has no side effects.
    unsafe { core::arch::x86_64::_rdtsc() }
}
