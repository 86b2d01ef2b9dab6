#![allow(unsafe_code)]
//! State of one CPU. It lies at the top of the CPU's stack, which is how entries find it; nothing else leads there.
//!
//! Unsafe: hands out what only this CPU may touch.

use core::cell::{Cell, UnsafeCell};
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use kernel_core::ready::ReadyQueue;
use kernel_core::shootdown::Use;
use kernel_core::timeout::TimeoutQueue;
use spin::Once;

use crate::descriptors::Gdt;
use crate::ec::Ec;
use crate::guest::{GuestState, NOBODY};
use crate::memory::{FRAME, Shared};
use crate::observation::Counters;
use crate::rounds::Rounds;
use crate::sched::Sc;
use crate::vcpu::Processor;

/// Number of a CPU.
pub type CpuNumber = u16;

/// Most CPUs.
pub const CPUS_MAX: usize = 1024;

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

/// Circumstances in which a switch from one EC to another has more to do than the usual: the fast path wants all zero.
#[repr(C, align(4))]
pub struct Unusual {
    /// The current SC runs a chain that it only helps: a reply must walk the chain again.
    pub helping: Cell<bool>,
    /// CR0.TS is clear in the kernel.
    pub ts_clear: Cell<bool>,
    /// The state of a guest is in registers that host programs depend on, see [`Cpu::guest`].
    pub guest: Cell<bool>,
    /// The trace is on.
    pub tracing: AtomicBool,
}

impl Unusual {
    const fn none() -> Self {
        Self {
            helping: Cell::new(false),
            ts_clear: Cell::new(false),
            guest: Cell::new(false),
            tracing: AtomicBool::new(false),
        }
    }

    /// The state of a guest, as a mask of [`Self::bits`].
    pub const GUEST: u32 = 0xff << (8 * offset_of!(Self, guest));

    /// All of them; 0 if there are none.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        // SAFETY: four bytes, aligned as such; this CPU alone writes the cells.
        unsafe { AtomicU32::from_ptr(core::ptr::from_ref(self).cast_mut().cast()) }.load(Ordering::Relaxed)
    }
}

/// Per-CPU state. Other CPUs touch what is atomic only.
#[repr(C, align(64))]
pub struct Cpu {
    /// The EC that user mode or guest mode runs; entry stubs save registers there. First field: see `entry.S`.
    pub current: Cell<*const Ec>,
    /// What keeps calls and replies off the fast path.
    pub unusual: Unusual,
    /// A more urgent SC became ready, or another CPU wants something: look before returning to user or guest mode. The fast
    /// path looks at both at once.
    pub reschedule: Cell<bool>,
    always_0: [u8; 3],
    /// Number of this CPU.
    pub number: CpuNumber,
    /// Identifier of its local APIC.
    pub apic_id: Cell<u32>,
    /// Physical address of the page tables in CR3.
    pub space: Use,
    /// The guest that ran last, if it can go on without anything but its general registers and RIP; else [`NOBODY`].
    pub poised: Cell<*const GuestState>,
    /// The SC whose budget is being consumed.
    pub sc: Cell<Option<&'static Sc>>,
    /// System time at which the current SC's budget ends.
    pub slice_end: Cell<u64>,
    /// System time that the timer is programmed for.
    pub deadline: Cell<u64>,
    /// Owner of what the FPU holds.
    pub fpu_owner: Cell<*const Ec>,
    /// Tells the time that the CPU was idle. It never competes.
    pub idle: Cell<Option<&'static Sc>>,
    /// Ready SCs.
    pub ready: Owned<ReadyQueue>,
    /// Armed timeouts of blocked ECs.
    pub timeouts: Owned<TimeoutQueue>,
    /// Value of XCR0.
    pub xcr0: Cell<u64>,
    /// What this CPU has for running guests.
    pub processor: Once<Processor>,
    /// The guest that ran last, if its state is in registers that host programs depend on.
    pub guest: Cell<Option<&'static GuestState>>,
    /// Its CR2 at the latest exit (VMX).
    pub guest_cr2: Cell<u64>,
    /// A guest ran since the task register was loaded: VMX exits cut its limit, so that all ports fault.
    pub task_register_stale: Cell<bool>,
    /// Global descriptor table.
    pub gdt: Cell<*mut Gdt>,
    /// Physical address of the nested page tables of the guest that ran last.
    pub nested: Use,
    /// What passes between CPUs.
    pub rounds: Rounds,
}

/// Bytes of a CPU's stack.
const STACK: usize = 16384;
/// Bytes of a [`CpuBlock`], and its alignment: how entries on any of its stacks find it.
pub const BLOCK: usize = 1 << 16;
/// Bytes from one block to the next: zeros follow its descriptor table, see [`crate::descriptors::load`].
pub const BLOCK_STRIDE: usize = 2 * BLOCK;

/// A page that is never mapped, and above it one as the stack of an interrupt.
type InterruptStack = [u8; 2 * FRAME];

/// A CPU's stack, guarded below, with its [`Cpu`] on top, its descriptor table and its interrupt stacks.
#[repr(C, align(65536))]
pub struct CpuBlock {
    guard: [u8; FRAME],
    stack: UnsafeCell<[u8; STACK]>,
    /// On top of the stack.
    pub cpu: Cpu,
    counters: Counters,
    ist: Shared<[InterruptStack; 4]>,
    /// Zeros behind it.
    gdt: Shared<Gdt>,
}

const _: () =
    assert!(size_of::<CpuBlock>() == BLOCK && offset_of!(Cpu, unusual) == 8 && offset_of!(Cpu, reschedule) == 12);

// SAFETY: after boot each CPU touches its own block only, but for what is atomic.
unsafe impl Sync for CpuBlock {}

impl CpuBlock {
    /// The block of the first CPU.
    const fn first() -> Self {
        Self {
            guard: [0; FRAME],
            stack: UnsafeCell::new([0; STACK]),
            cpu: Cpu::new(0),
            counters: Counters::none(),
            ist: Shared::new([[0; 2 * FRAME]; 4]),
            gdt: Shared::new(Gdt::new(0)),
        }
    }

    /// Makes zeroed memory the block of CPU `number`.
    ///
    /// # Safety
    /// `block` is aligned, mapped but for the guards, and nobody else's.
    pub unsafe fn prepare(block: *mut Self, number: CpuNumber) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*block).cpu).write(Cpu::new(number));
            (&raw mut (*block).gdt).cast::<Gdt>().write(Gdt::new(number as usize));
        }
    }

    /// Whether the page at `offset` of a block is a guard: it must not be mapped.
    pub const fn is_guard(offset: usize) -> bool {
        let ist = offset_of!(CpuBlock, ist);
        let in_ist = offset >= ist && offset < Self::GDT;
        offset < FRAME || in_ist && (offset - ist) % size_of::<InterruptStack>() < FRAME
    }

    /// Loads this CPU's descriptor tables.
    pub fn load_descriptors(&'static self) {
        let ist = self.ist.get() as u64;
        // Of the seven that a task state segment names four are used.
        let tops = [1, 2, 3, 4, 0, 0, 0].map(|n| ist + (n * size_of::<InterruptStack>()) as u64);
        let gdt = (place(self.cpu.number) as usize + Self::GDT) as *mut Gdt;
        // SAFETY: called once, by the CPU that owns the block; the window is mapped by then.
        unsafe { crate::descriptors::load(self.cpu.number as usize, gdt, &raw const self.cpu as u64, tops) };
        self.cpu.gdt.set(gdt);
    }

    /// Offset of the stack's top.
    pub const STACK_TOP: usize = offset_of!(CpuBlock, cpu);
    /// Offset of the counters.
    pub const COUNTERS: usize = offset_of!(CpuBlock, counters);
    /// Offset of the descriptor table's page, the last that is mapped.
    pub const GDT: usize = offset_of!(CpuBlock, gdt);
}

/// The CPU that booted the machine.
pub static BOOT_CPU: CpuBlock = CpuBlock::first();

/// Number of CPUs that run.
static COUNT: AtomicU16 = AtomicU16::new(1);

impl Cpu {
    #[inline(never)]
    const fn new(number: CpuNumber) -> Self {
        Self {
            current: Cell::new(core::ptr::null()),
            reschedule: Cell::new(false),
            always_0: [0; 3],
            number,
            apic_id: Cell::new(0),
            sc: Cell::new(None),
            idle: Cell::new(None),
            unusual: Unusual::none(),
            ready: Owned::new(ReadyQueue::empty()),
            timeouts: Owned::new(TimeoutQueue::empty()),
            slice_end: Cell::new(u64::MAX),
            deadline: Cell::new(u64::MAX),
            space: Use::none(),
            fpu_owner: Cell::new(core::ptr::null()),
            xcr0: Cell::new(0),
            processor: Once::new(),
            poised: Cell::new(NOBODY),
            guest: Cell::new(None),
            guest_cr2: Cell::new(0),
            task_register_stale: Cell::new(false),
            gdt: Cell::new(core::ptr::null_mut()),
            nested: Use::none(),
            rounds: Rounds::new(),
        }
    }

    /// The CPU with this number, if there is one.
    #[inline(always)]
    pub fn by_number(number: CpuNumber) -> Option<&'static Cpu> {
        // SAFETY: blocks below the count are complete and stay for ever.
        (number < count()).then(|| unsafe { &(*block(number)).cpu })
    }

    /// All CPUs.
    pub fn all() -> impl Iterator<Item = &'static Cpu> {
        (0..count()).filter_map(Self::by_number)
    }

    /// What it counts.
    #[inline(always)]
    pub fn counters(&self) -> &Counters {
        // SAFETY: a CPU lies inside its block.
        unsafe { &*core::ptr::from_ref(self).byte_add(CpuBlock::COUNTERS - CpuBlock::STACK_TOP).cast() }
    }

    /// The CPU that executes this: its block holds the stack.
    pub fn this() -> &'static Cpu {
        let stack: usize;
        // SAFETY: reads RSP; the kernel runs on the stacks of a block only.
        unsafe {
            core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack, preserves_flags));
            &(*((stack & !(BLOCK - 1)) as *const CpuBlock)).cpu
        }
    }

    /// Its block.
    pub fn block(&self) -> &'static CpuBlock {
        // SAFETY: a CPU lies inside its block.
        unsafe { &*((core::ptr::from_ref(self) as usize & !(BLOCK - 1)) as *const CpuBlock) }
    }
}

/// Number of CPUs that run: their numbers are below.
#[inline(always)]
pub fn count() -> CpuNumber {
    COUNT.load(Ordering::Acquire)
}

/// The next CPU runs.
pub fn add() {
    COUNT.fetch_add(1, Ordering::Release);
}

/// Where the block of CPU `number` is, or will be.
pub fn block(number: CpuNumber) -> *mut CpuBlock {
    if number == 0 { (&raw const BOOT_CPU).cast_mut() } else { place(number) }
}

/// Where blocks follow each other. Of the first CPU's only the descriptor table is mapped there, too.
fn place(number: CpuNumber) -> *mut CpuBlock {
    (crate::space::CPUS + number as u64 * BLOCK_STRIDE as u64) as *mut CpuBlock
}

/// Reads the time-stamp counter: the system time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC has no side effects.
    unsafe { core::arch::x86_64::_rdtsc() }
}
