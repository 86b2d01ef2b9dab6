#![allow(unsafe_code)]
//! The kernel's half of every host space: image and pool, devices, CPUs' blocks, and the window that differs.
//!
//! Unsafe: takes addresses of the linker's symbols, fills frames of the image.

use crate::cpu::{BLOCK, BLOCK_STRIDE, BOOT_CPU, CpuBlock};
use crate::descriptors::{WINDOW_GROUP, WINDOW_GROUPS, WINDOW_TSS_PAGES};
use crate::memory::{Frame, KERNEL, KERNEL_ACCOUNT, StaticFrame, read_entry, write_entry};
use crate::observation::counters_of;

/// Address of the device window: the LAPIC's page, then one page for each I/O APIC.
pub const DEVICES: u64 = 0xffff_ffff_c000_0000;

/// Where the blocks of all CPUs but the first are mapped.
pub const CPUS: u64 = DEVICES + (1 << 21);

/// The page-table root that holds the kernel's half; its entries are in every host space.
static MASTER: StaticFrame = StaticFrame::zeroed();
static MASTER_PDPT: StaticFrame = StaticFrame::zeroed();
static IMAGE_PD: StaticFrame = StaticFrame::zeroed();
static IMAGE_PT: StaticFrame = StaticFrame::zeroed();
static DEVICE_PD: StaticFrame = StaticFrame::zeroed();
static DEVICE_PT: StaticFrame = StaticFrame::zeroed();
/// The first page table of the CPUs' blocks.
static CPUS_PT: StaticFrame = StaticFrame::zeroed();
static WINDOW_PDPT: StaticFrame = StaticFrame::zeroed();
static WINDOW_PD: StaticFrame = StaticFrame::zeroed();
static WINDOW_PT: StaticFrame = StaticFrame::zeroed();
/// A page of ones: the I/O bitmap of spaces without ports, and the terminator of all.
static ONES: StaticFrame = StaticFrame::zeroed();
/// A page of segment descriptors that are not present.
static ZEROS: StaticFrame = StaticFrame::zeroed();

pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 1 << 1;
const UNCACHEABLE: u64 = 1 << 4 | 1 << 3;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

fn put(table: &StaticFrame, index: usize, value: u64) {
    write_entry(table.physical(), index, value);
}

/// Builds the kernel's half of the address space (W^X, no user memory) and returns its root.
pub fn build_kernel() -> u64 {
    unsafe extern "C" {
        static text_start: u8;
        static rodata_start: u8;
        static data_start: u8;
        static metadata_start: u8;
        static kernel_end: u8;
    }
    let (text, rodata) = (&raw const text_start as u64, &raw const rodata_start as u64);
    let (data, metadata) = (&raw const data_start as u64, &raw const metadata_start as u64);
    let end = &raw const kernel_end as u64;
    // SAFETY: the frame is ours.
    unsafe { core::ptr::write_bytes(ONES.pointer(), 0xff, 4096) };
    let table = PRESENT | WRITE;
    put(&MASTER, 511, MASTER_PDPT.physical() | table);
    put(&MASTER, 510, WINDOW_PDPT.physical() | table);
    put(&MASTER_PDPT, 510, IMAGE_PD.physical() | table);
    put(&MASTER_PDPT, 511, DEVICE_PD.physical() | table);
    put(&DEVICE_PD, 0, DEVICE_PT.physical() | table);
    put(&DEVICE_PD, 1, CPUS_PT.physical() | table);
    map_gdt(CPUS_PT.physical(), 0, &raw const BOOT_CPU as u64 - KERNEL + CpuBlock::GDT as u64);

    let index = |address: u64| ((address - KERNEL) >> 21) as usize;
    put(&IMAGE_PD, index(text), IMAGE_PT.physical() | table);
    for page in (text..metadata).step_by(4096).take_while(|page| index(*page) == index(text)) {
        let flags = match page {
            _ if page < rodata => PRESENT,
            _ if page < data => PRESENT | NO_EXECUTE,
            _ => PRESENT | WRITE | NO_EXECUTE,
        };
        let offset = page.wrapping_sub(&raw const BOOT_CPU as u64) as usize;
        if offset >= BLOCK || !CpuBlock::is_guard(offset) {
            put(&IMAGE_PT, (page >> 12) as usize & 511, (page - KERNEL) | flags | GLOBAL);
        }
    }
    for large in (metadata..end).step_by(1 << 21) {
        put(&IMAGE_PD, index(large), (large - KERNEL) | PRESENT | WRITE | NO_EXECUTE | LARGE | GLOBAL);
    }

    put(&WINDOW_PDPT, 0, WINDOW_PD.physical() | table);
    put(&WINDOW_PD, 0, WINDOW_PT.physical() | table);
    fill_window(WINDOW_PT.physical(), [ONES.physical(); 2]);
    MASTER.physical()
}

/// Maps the task state segments and an I/O bitmap in the window's page table `table`.
pub fn fill_window(table: u64, bitmap: [u64; 2]) {
    let flags = PRESENT | NO_EXECUTE;
    for (place, frame) in crate::descriptors::tss_pages() {
        write_entry(table, place, frame | flags | WRITE | GLOBAL);
    }
    for group in 0..WINDOW_GROUPS {
        for (page, frame) in [bitmap[0], bitmap[1], ONES.physical()].into_iter().enumerate() {
            write_entry(table, group * WINDOW_GROUP + WINDOW_TSS_PAGES + page, frame | flags);
        }
    }
}

/// Maps the descriptor table at `frame`, or of that entry, and zeros up to the limit that VMX exits give it, for the block at `page` of `table`.
fn map_gdt(table: u64, page: usize, frame: u64) {
    for offset in 0..16 {
        let frame = if offset == 0 { frame | WRITE } else { ZEROS.physical() };
        write_entry(table, page + (CpuBlock::GDT >> 12) + offset, frame | PRESENT | NO_EXECUTE | GLOBAL);
    }
}

/// Allocates and maps the block of CPU `number`; false if there is no memory for it.
pub fn map_cpu(number: u16) -> bool {
    let frame = || KERNEL_ACCOUNT.frames(0).map(Frame::physical);
    if !crate::descriptors::provide_tss(number as usize, frame) {
        return false;
    }
    fill_window(WINDOW_PT.physical(), [ONES.physical(); 2]);
    let page = (number as usize * BLOCK_STRIDE) >> 12;
    let directory = 1 + (page >> 9);
    if read_entry(DEVICE_PD.physical(), directory) == 0 {
        let Some(table) = frame() else { return false };
        put(&DEVICE_PD, directory, table | PRESENT | WRITE);
    }
    let table = read_entry(DEVICE_PD.physical(), directory) & !0xfff;
    for offset in (0..BLOCK).step_by(4096).filter(|offset| !CpuBlock::is_guard(*offset)) {
        let index = (page + (offset >> 12)) & 511;
        // What a CPU that did not answer left is there already.
        if read_entry(table, index) == 0 {
            let counters = counters_of(number).filter(|_| offset == CpuBlock::COUNTERS);
            let Some(frame) = counters.or_else(frame) else { return false };
            write_entry(table, index, frame | PRESENT | WRITE | NO_EXECUTE | GLOBAL);
        }
    }
    map_gdt(table, page & 511, read_entry(table, (page & 511) + (CpuBlock::GDT >> 12)));
    true
}

/// Makes the frame at `physical` hold the counters of the first CPU, which executes this.
pub fn map_counters(physical: u64) {
    let counters = &raw const BOOT_CPU as u64 + CpuBlock::COUNTERS as u64;
    put(&IMAGE_PT, (counters >> 12) as usize & 511, physical | PRESENT | WRITE | NO_EXECUTE | GLOBAL);
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(counters));
}

/// Physical address of the page-table root without user memory.
pub fn master() -> u64 {
    MASTER.physical()
}

/// Maps the device page at `physical` into slot `slot` of the device window and returns where it is.
pub fn map_device(slot: usize, physical: u64) -> *mut u8 {
    put(&DEVICE_PT, slot, physical | PRESENT | WRITE | UNCACHEABLE | NO_EXECUTE | GLOBAL);
    (DEVICES + slot as u64 * 4096) as *mut u8
}

/// Empties a slot of the device window, on this CPU.
pub fn unmap_device(slot: usize) {
    put(&DEVICE_PT, slot, 0);
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(DEVICES + slot as u64 * 4096));
}
