#![allow(unsafe_code)]
//! Bringing the machine up: from the boot loader's hand-over to the root protection domain.
//!
//! Unsafe: sets control registers, and reads physical memory through the boot page tables.
//!
//! In order: find what the boot loader handed over (the root image and the ACPI tables); read the tables that the kernel
//! needs (processors, interrupt controllers, timer); check the processor; replace the boot page tables by the kernel's
//! own; load descriptor tables and control registers; measure the clocks; turn virtualization on; create the root
//! protection domain and let it run.

use core::sync::atomic::Ordering;

use kernel_core::boot::acpi::{self, Tables as AcpiTables};
use kernel_core::boot::memory_map::{MemoryMap, UefiMap};
use kernel_core::boot::{BootInformation, PhysicalMemory, multiboot1, multiboot2, pvh};
use kernel_core::calibration;
use kernel_core::reason::Words;
use x86_64::instructions::port::Port;

use crate::cpu::{BOOT_CPU, CPUS_MAX, Cpu, CpuBlock, now};
use crate::fast::sysenter_entry;
use crate::panic::fatal;
use crate::platform::{self, PLATFORM, Platform};
use crate::registers::{self, Cr0, Cr4, EFER, FMASK, LSTAR, PAT, STAR, SYSENTER_CS, rdmsr, wrmsr};
use crate::svm::spec::CPUID_PAGE_1G;
use crate::vcpu::register::cpuid;
use crate::vcpu::{PhysPage, Processor};
use crate::{
    console, descriptors, fpu, ioapic, iommu, lapic, log, memory, observation, root, run, sched, smp, space, timer,
};

core::arch::global_asm!(
    include_str!("boot.S"),
    block = sym BOOT_CPU,
    stack = const CpuBlock::STACK_TOP,
    main = sym kernel_main,
    ticket = sym smp::TICKET,
    offered = const smp::OFFERED,
    claimed = const smp::CLAIMED,
    trampoline_size = const smp::TRAMPOLINE_SIZE,
    tables = sym smp::TABLES,
    further_stack = sym smp::STACK,
    further = sym further_main,
    options(att_syntax)
);

/// Physical memory below 4 GiB, through the boot page tables' one-to-one map.
struct BootMemory;

impl PhysicalMemory for BootMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        let end = address.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > 1 << 32) {
            return false;
        }
        for (offset, byte) in buffer.iter_mut().enumerate() {
            // SAFETY: mapped until step 4, after which nobody has a `BootMemory`; not memory that Rust knows of.
            *byte = unsafe { ((address as usize + offset) as *const u8).read_volatile() };
        }
        true
    }
}

/// What the boot loader handed over.
pub struct HandOver {
    /// EAX at entry.
    pub magic: u32,
    /// EBX at entry.
    pub information: u32,
    /// Physical range of the root image.
    pub image: (u64, u64),
    /// The rest.
    pub found: BootInformation,
}

#[inline(never)]
fn hand_over(magic: u32, information: u32) -> HandOver {
    let (memory, address, mut found) = (&BootMemory, information as u64, BootInformation::default());
    let (name, result) = match magic {
        multiboot2::MAGIC => ("multiboot2", multiboot2::parse(memory, address, &mut found)),
        pvh::MAGIC => ("PVH", pvh::parse(memory, address, &mut found)),
        multiboot1::MAGIC => ("multiboot", multiboot1::parse(memory, address, &mut found)),
        _ => fatal(format_args!("boot loader magic {:#x} is neither multiboot nor PVH", magic as u64)),
    };
    result.unwrap_or_else(|error| fatal(format_args!("{} information: {error}", Words(name))));
    let kernel = memory::kernel_range();
    if let Some(have) = found.map.ram(memory).filter(|ram| *ram < kernel.1) {
        let (need, have) = (kernel.1 >> 20, have >> 20);
        fatal(format_args!("too little memory: the kernel alone needs {need} MiB, the machine has {have} MiB"));
    }
    require_ram("the kernel", &found.map, kernel);
    let Some(image) = found.module else {
        fatal(format_args!("the boot loader gave no root image: pass it as the first module (QEMU: -initrd)"))
    };
    require_ram("the root image", &found.map, image);
    if image.0 < kernel.1 && kernel.0 < image.1 {
        fatal(format_args!("the root image at {:#x}..{:#x} overlaps the kernel", image.0, image.1));
    }
    HandOver { magic, information, image, found }
}

fn require_ram(what: &str, map: &MemoryMap, (start, end): (u64, u64)) {
    if let Some(hole) = map.hole(&BootMemory, start, end) {
        let what = Words(what);
        fatal(format_args!("{what} is at {start:#x}..{end:#x}, but the memory map has no RAM at {hole:#x}"));
    }
}

/// Physical addresses where messages are interrupts.
const MESSAGES: (u64, u64) = (0xfee0_0000, 0xfef0_0000);

/// Finds the tables that the kernel needs.
fn tables(hand_over: &HandOver) -> AcpiTables {
    let mut found = acpi::find(&BootMemory, hand_over.found.rsdp);
    let map = &hand_over.found.map;
    let has_map = map.ram(&BootMemory).is_some();
    found.check_ioapics(|chip| {
        let page = chip.address & !0xfff;
        let taken = [memory::kernel_range(), MESSAGES].iter().any(|(start, end)| (start..end).contains(&&page));
        !(taken || has_map && map.hole(&BootMemory, page, page + 4096).is_none())
    });
    for complaint in found.complaints() {
        log!("ACPI: {complaint}");
    }
    found
}

/// Components of XSAVE (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
fn check_processor() -> u64 {
    let [_, _, features, legacy] = cpuid(1);
    if features & 1 << 26 == 0 || legacy & (1 << 9 | 1 << 24) != 1 << 9 | 1 << 24 {
        fatal(format_args!("this processor lacks XSAVE or an APIC"));
    }
    // x87, SSE, AVX, AVX-512: their area fits one page; AMX (bits 17, 18) does not.
    cpuid(0xd)[0] as u64 & 0xe7 | 1
}

/// CR4 bits: PAE, MCE, PGE, OSFXSR, OSXMMEXCPT, and where the processor has them UMIP, OSXSAVE, SMEP, SMAP.
fn control_registers(cpu: &Cpu) {
    let [_, smep_smap, umip, _] = cpuid(7).map(u64::from);
    let optional = (umip >> 2 & 1) << 11 | (smep_smap >> 7 & 1) << 20 | (smep_smap >> 20 & 1) << 21;
    let cr4 = 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 18 | optional;
    // SAFETY: only bits that the processor has; the system-call registers point to the kernel's entry; the attribute
    // table is the one that the page-table formats encode: WB, WT, UC-, UC, WC, WP, UC-, UC.
    unsafe {
        Cr4::write_raw(cr4);
        Cr0::write_raw(Cr0::read_raw() | registers::CR0_AM);
        wrmsr(PAT, 0x0007_0501_0007_0406);
        wrmsr(EFER, rdmsr(EFER) | 0x801);
        wrmsr(STAR, ((descriptors::USER_SS - 8) as u64) << 48 | (descriptors::KERNEL_CS as u64) << 32);
        wrmsr(LSTAR, smp::stub(cpu.number));
        // As VM exits set them, on VMX: SYSENTER begins with the address of the current EC in RSP.
        wrmsr(SYSENTER_CS, descriptors::KERNEL_CS as u64);
        wrmsr(SYSENTER_CS + 1, core::ptr::from_ref(cpu) as u64);
        wrmsr(SYSENTER_CS + 2, &raw const sysenter_entry as u64);
        wrmsr(FMASK, 0x5_7700);
    }
}

/// Silences the legacy interrupt controllers: remapped out of the exceptions' way and masked.
fn silence_legacy() {
    for (command, vectors, cascade) in [(0x20, 0xf0, 4), (0xa0, 0xf8, 2)] {
        // SAFETY: initialization words 1 to 4 and the mask of the 8259A pair (Intel 8259A datasheet).
        unsafe {
            Port::<u8>::new(command).write(0x11);
            for value in [vectors, cascade, 1, 0xff] {
                Port::<u8>::new(command + 1).write(value);
            }
        }
    }
}

/// Milliseconds over which the clocks are compared with the power-management timer.
const CALIBRATION_MS: u32 = 60;

/// Measures the frequency of the system time, and the LAPIC timer's, in case it has no deadline mode.
fn calibrate(pm_timer: Option<(u16, bool)>) {
    let Some((port, wide)) = pm_timer else {
        fatal(format_args!("no ACPI power-management timer: the clocks cannot be measured"))
    };
    let mut port = Port::<u32>::new(port);
    // SAFETY: reads the timer that the FADT names.
    let mut read = || unsafe { port.read() };
    let target = calibration::PM_TIMER_HZ / 1000 * CALIBRATION_MS;
    lapic::start_counting();
    let (start, tsc_start, lapic_start) = (read(), now(), lapic::counted());
    let mut polls = (0..1u64 << 32).map(|_| calibration::elapsed(start, read(), wide));
    let Some(elapsed) = polls.find(|elapsed| *elapsed >= target) else {
        fatal(format_args!("the ACPI timer stands still"))
    };
    let stc = now() - tsc_start;
    lapic::set_rate(lapic::counted().wrapping_sub(lapic_start), stc);
    timer::FREQUENCY.store(calibration::frequency(stc, elapsed), Ordering::Relaxed);
}

/// What of the machine programs cannot have. (Not inlined: its frame is half of the stack.)
#[inline(never)]
fn protect(tables: &AcpiTables, uefi: Option<UefiMap>) {
    let mut protected = [(0, 0); platform::RANGES];
    let (start, end) = memory::kernel_range();
    let (buffer, buffer_end) = console::range();
    let lapic = lapic::address();
    let mut slots = protected.iter_mut();
    let mut keep = |start: u64, end: u64| {
        let Some(slot) = slots.next() else {
            let most = platform::RANGES as u64;
            fatal(format_args!("firmware and devices keep more than {most} ranges of memory"))
        };
        *slot = (start >> 12, end.div_ceil(4096));
    };
    for (start, end) in [(start, buffer), (buffer_end, end), (lapic, lapic + 4096), MESSAGES] {
        keep(start, end);
    }
    tables.ioapics().iter().for_each(|chip| keep(chip.address, chip.address + 1));
    let dmar = tables.dmar.and_then(|place| iommu::read(&BootMemory, place));
    dmar.iter().flat_map(|dmar| dmar.units.as_slice()).for_each(|unit| keep(unit.address, unit.address + 1));
    uefi.iter().for_each(|map| map.runtime(&BootMemory).for_each(|(start, end)| keep(start, end)));
    let physical_pages = 1 << ((cpuid(0x8000_0008)[0] & 0xff).clamp(32, 52) - 12);
    let largest_page = if cpuid(0x8000_0001)[3] & CPUID_PAGE_1G != 0 { 2 } else { 1 };
    let fadt = tables.fadt;
    PLATFORM.call_once(|| Platform { protected, physical_pages, largest_page, fadt, dmar });
}

extern "C" fn kernel_main(magic: u32, information: u32) -> ! {
    console::init();
    log!(concat!("Kilonova ", env!("CARGO_PKG_VERSION"), " starts"));
    memory::init();
    let mut hand_over = hand_over(magic, information);
    let tables = tables(&hand_over);
    hand_over.found.rsdp = tables.rsdp;
    let components = check_processor();
    let image = root::Image::read(&BootMemory, hand_over.image);
    protect(&tables, hand_over.found.uefi);

    let (mut processors, mut found) = ([0; CPUS_MAX], 0);
    tables.processors(&BootMemory, |id| {
        if let Some(slot) = processors.get_mut(found) {
            (*slot, found) = (id, found + 1);
        }
    });
    smp::fill_stubs();
    let mut trampoline = smp::Trampoline::read();

    // From here on physical memory is out of reach.
    let master = space::build_kernel();
    space::map_device(0, lapic::address());
    for (index, chip) in tables.ioapics().iter().enumerate() {
        space::map_device(1 + index, chip.address & !0xfff);
    }
    // SAFETY: the new tables map the kernel where it runs, and the stack.
    unsafe { registers::set_cr3(master) };
    let cpu = &BOOT_CPU.cpu;
    // 16 bytes stand behind each 32 stubs.
    let stub = |vector| &raw const run::interrupt_stubs as usize + 4 * vector + vector / 32 * 16;
    // See `interrupt_ist` in `entry.S`.
    let ist = |vector| (1..).zip([1, 2, 8, 18]).find(|(_, own)| *own == vector).map_or(0, |(stack, _)| stack);
    descriptors::fill_idt(stub, ist);
    let processors = processors.get(..found).unwrap_or(&processors);
    // Before the LAPIC stops listening to them: QEMU keeps an interrupt asserted that is withdrawn after that.
    silence_legacy();
    start_this(cpu, components, || lapic::choose_mode(processors));
    let chips = tables.ioapics().iter().enumerate();
    let pins = chips.map(|(index, chip)| ioapic::init(index, chip)).max().unwrap_or(0);
    calibrate(tables.fadt.as_ref().and_then(|fadt| fadt.pm_timer));
    enable_virtualization(cpu);
    observation::init(processors.len());
    smp::start_all(processors, &mut trampoline);
    let [mhz, cpus, pins64, id] =
        [timer::frequency() / 1_000_000, crate::cpu::count() as u64, pins as u64, lapic::id() as u64];
    log!("system time runs at {mhz} MHz; {pins64} interrupt pins; {cpus} CPUs, the first with APIC id {id}");
    root::create(cpu, &image, &hand_over, pins);
    sched::schedule(cpu, crate::cpu::now())
}

/// Makes the CPU that executes this ready for programs. `choose` is called before the LAPIC is enabled.
fn start_this(cpu: &'static Cpu, components: u64, choose: impl FnOnce()) {
    cpu.space.announce(space::master());
    cpu.block().load_descriptors();
    control_registers(cpu);
    fpu::init(cpu, components);
    choose();
    lapic::init();
    cpu.apic_id.set(lapic::id());
}

/// A further CPU, on its stack.
extern "C" fn further_main() -> ! {
    let cpu = Cpu::this();
    start_this(cpu, fpu::components(), || ());
    enable_virtualization(cpu);
    smp::started();
    sched::schedule(cpu, crate::cpu::now())
}

fn enable_virtualization(cpu: &Cpu) {
    let page = || memory::KERNEL_ACCOUNT.frames(0).map(|frame| PhysPage { pa: frame.physical(), va: frame.pointer() });
    let (Some(first), Some(second)) = (page(), page()) else { return };
    match Processor::enable([first, second]) {
        Ok(processor) => _ = cpu.processor.call_once(|| processor),
        Err(reason) => log!("no virtual machines on CPU {}: {reason}", cpu.number as u64),
    }
}
