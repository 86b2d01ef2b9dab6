#![allow(unsafe_code)]
//! Segment descriptors, task state and interrupt descriptors (Intel SDM vol. 3A, 3.4, 7.14, 8.7).
//!
//! Unsafe: loads descriptor-table registers.
//!
//! The task state segments of all CPUs and the I/O permission bitmap of the current host space lie in one window of the
//! address space, so that the bitmap changes with CR3: [`WINDOW`] holds 14 pages of task state segments, the same for
//! every space, then the two pages of the bitmap and a page whose first byte is the terminator, different for each
//! space that has I/O ports. More CPUs than these pages hold have further such groups of pages.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::VirtAddr;
use x86_64::instructions::tables::{self, DescriptorTablePointer};
use x86_64::structures::tss::TaskStateSegment;

use crate::cpu::CPUS_MAX;
use crate::memory::{Shared, StaticFrame};

/// Selector of the kernel's code segment.
pub const KERNEL_CS: u16 = 0x08;
/// Selector of the kernel's stack segment.
pub const KERNEL_SS: u16 = 0x10;
/// Selector of the user stack segment. SYSRET wants it just below the user code segment, SYSEXIT another just above.
pub const USER_SS: u16 = 0x23;
/// Selector of the user code segment. SYSEXIT wants it 32 above the kernel's.
pub const USER_CS: u16 = 0x2b;
/// Selector of the task state segment.
pub const TSS: u16 = 0x38;

/// Start of the address-space window of task state segments and I/O bitmap.
pub const WINDOW: u64 = 0xffff_ff00_0000_0000;
/// Pages in the window that hold task state segments.
pub const WINDOW_TSS_PAGES: usize = 14;
/// Pages in a group: also the bitmap and its terminator.
pub const WINDOW_GROUP: usize = WINDOW_TSS_PAGES + 3;
/// Groups in the window.
pub const WINDOW_GROUPS: usize = CPUS_MAX.div_ceil(WINDOW_TSS_PAGES * TSS_PER_PAGE);
/// Offset of the I/O bitmap in a group.
const BITMAP: usize = WINDOW_TSS_PAGES * 4096;
/// Bytes from the start of a task state segment to the next.
const TSS_STRIDE: usize = 128;
const TSS_PER_PAGE: usize = 4096 / TSS_STRIDE;
const TSS_PAGES: usize = CPUS_MAX.div_ceil(TSS_PER_PAGE);

/// Address of the task state segment of CPU `cpu`, and its distance from the I/O bitmap.
pub const fn task(cpu: usize) -> (u64, usize) {
    const IN_GROUP: usize = WINDOW_TSS_PAGES * TSS_PER_PAGE;
    let offset = cpu % IN_GROUP * TSS_STRIDE;
    (WINDOW + (cpu / IN_GROUP * WINDOW_GROUP * 4096 + offset) as u64, BITMAP - offset)
}

/// The first page of task state segments.
static TSS_PAGE: StaticFrame = StaticFrame::zeroed();
/// Physical addresses of the further ones, 0 as long as no CPU needs them.
static FURTHER_TSS_PAGES: [AtomicU64; TSS_PAGES - 1] = [const { AtomicU64::new(0) }; TSS_PAGES - 1];

/// Physical addresses of the pages of task state segments in use, and where in the window they are mapped.
pub fn tss_pages() -> impl Iterator<Item = (usize, u64)> {
    let further = FURTHER_TSS_PAGES.iter().map(|page| page.load(Ordering::Relaxed)).take_while(|page| *page != 0);
    let place = |page: usize| page / WINDOW_TSS_PAGES * WINDOW_GROUP + page % WINDOW_TSS_PAGES;
    core::iter::once(TSS_PAGE.physical()).chain(further).enumerate().map(move |(page, frame)| (place(page), frame))
}

/// Makes room for the task state segment of CPU `cpu`; `allocate` returns a zeroed frame. False if there is none.
pub fn provide_tss(cpu: usize, allocate: impl FnOnce() -> Option<u64>) -> bool {
    let Some(page) = (cpu / TSS_PER_PAGE).checked_sub(1) else { return true };
    let Some(slot) = FURTHER_TSS_PAGES.get(page) else { return false };
    if slot.load(Ordering::Relaxed) == 0 {
        slot.store(allocate().unwrap_or(0), Ordering::Relaxed);
    }
    slot.load(Ordering::Relaxed) != 0
}

/// Global descriptor table of one CPU.
#[repr(C, align(64))]
pub struct Gdt([u64; 9]);

/// Interrupt descriptor table, the same for all CPUs; written once at boot by the first.
static IDT: Shared<[[u64; 2]; 256]> = Shared::new([[0; 2]; 256]);

impl Gdt {
    /// A table whose task state segment is that of CPU `cpu`.
    pub const fn new(cpu: usize) -> Self {
        let (base, bitmap) = task(cpu);
        let limit = bitmap as u64 + 8192;
        let low = limit & 0xffff
            | (base & 0xff_ffff) << 16
            | 0x89 << 40
            | (limit >> 16 & 0xf) << 48
            | (base >> 24 & 0xff) << 56;
        let (kernel, user) = ([0xaf_9b00_0000_ffff, 0xcf_9300_0000_ffff], [0xcf_f300_0000_ffff, 0xaf_fb00_0000_ffff]);
        Self([0, kernel[0], kernel[1], 0, user[0], user[1], user[0], low, base >> 32])
    }
}

/// Fills the interrupt descriptor table. Once, at boot.
///
/// `stub` tells where each vector's entry is, `ist` its interrupt stack, 0 for none.
pub fn fill_idt(stub: impl Fn(usize) -> usize, ist: impl Fn(usize) -> u8) {
    // SAFETY: runs once, before any other CPU or any interrupt uses the table.
    let table = unsafe { &mut *IDT.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        let target = stub(vector) as u64;
        // Interrupt gates with DPL 0 but for #BP and #OF, which INT3 and INTO raise at user level.
        let dpl: u64 = if vector == 3 || vector == 4 { 3 } else { 0 };
        gate[0] = target & 0xffff
            | (KERNEL_CS as u64) << 16
            | (ist(vector) as u64) << 32
            | (0x8e | dpl << 5) << 40
            | (target >> 16 & 0xffff) << 48;
        gate[1] = target >> 32;
    }
}

/// Loads the tables of CPU `cpu`. `top` is the stack for entries from user mode, `ist` the tops of the interrupt stacks.
///
/// The limit is the one that VMX exits set: programs can name what follows the table.
///
/// # Safety
/// `gdt` and the stacks must live for ever and belong to this CPU; behind `gdt` there are
/// zeros up to the limit; [`WINDOW`] must be mapped.
pub unsafe fn load(cpu: usize, gdt: *mut Gdt, top: u64, ist: [u64; 7]) {
    let (address, bitmap) = task(cpu);
    let mut state = TaskStateSegment::new();
    state.privilege_stack_table[0] = VirtAddr::new_truncate(top);
    state.interrupt_stack_table = ist.map(VirtAddr::new_truncate);
    state.iomap_base = bitmap as u16;
    let register = |limit, base| DescriptorTablePointer { limit, base: VirtAddr::new_truncate(base) };
    // SAFETY: the window is mapped, and the segment there this CPU's; the tables are complete and live for ever; the code
    // segment keeps its selector and attributes.
    unsafe {
        (address as *mut TaskStateSegment).write(state);
        tables::lgdt(&register(0xffff, gdt as u64));
        tables::lidt(&register(4095, IDT.get() as u64));
        asm!("mov ds, {0:e}", "mov es, {0:e}", "mov ss, {1:e}", "ltr {2:x}", in(reg) 0, in(reg) KERNEL_SS, in(reg) TSS);
    }
}

/// Loads the task register again: a VMX exit leaves its limit at 0x67, which hides the I/O bitmap.
///
/// # Safety
/// `gdt` is the table that this CPU has loaded.
pub unsafe fn reload_task_register(gdt: *mut Gdt) {
    // SAFETY: the descriptor is this CPU's own; clearing its busy bit (bit 41) is what LTR needs.
    unsafe {
        let descriptor = gdt.cast::<u64>().add(TSS as usize / 8);
        descriptor.write_volatile(descriptor.read_volatile() & !(1 << 41));
        asm!("ltr {0:x}", in(reg) TSS);
    }
}
