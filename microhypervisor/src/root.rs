#![allow(unsafe_code)]
//! The root protection domain: what exists at start (NOVA 6.1.3, 6.2, 6.3).
//!
//! Unsafe: fills the information page.

use core::sync::atomic::Ordering;

use abi::capability::{Permissions, SELECTOR_COUNT, nova, root};
use abi::extension::{self, Announcement};
use abi::hip::{self, Hip};
use abi::scd::{PRIORITY_MAX, Scd};
use abi::utcb::gpr;
use abi::{HIP_ADDRESS, ROOT_UTCB_ADDRESS, Status, event};
use kernel_core::boot::PhysicalMemory;
use kernel_core::boot::elf::RootElf;
use kernel_core::paging::Piece;
use kernel_core::slots::Entry;

use crate::boot::HandOver;
use crate::cpu::Cpu;
use crate::ec::{Continuation, EcKind};
use crate::memory::{KERNEL_ACCOUNT, StaticFrame, kernel_range};
use crate::object::{self, Object, Ref};
use crate::panic::fatal;
use crate::pd::Pd;
use crate::sched::{self, Sc};
use crate::semaphore::Sm;
use crate::space::{HostSpace, MsrSpace, ObjectSpace, PioSpace};
use crate::vcpu::Processor;
use crate::{console, create, ctrl_pd, interrupt, ioapic, iommu, observation, platform, rounds, timer};

/// Frames that the kernel keeps for itself; all others are the root protection domain's allowance.
const KERNEL_RESERVE: u32 = 64;

/// The root image, checked.
pub struct Image {
    elf: RootElf,
    range: (u64, u64),
}

impl Image {
    /// Reads the headers of the image at physical `range`; stops the machine if they break a rule.
    #[inline(never)]
    pub fn read(memory: &impl PhysicalMemory, range: (u64, u64)) -> Self {
        match RootElf::parse(memory, range.0, range.1) {
            Ok(elf) => Self { elf, range },
            Err(error) => fatal(format_args!("root image: {error}")),
        }
    }
}

static HIP: StaticFrame = StaticFrame::zeroed();

fn must<T>(result: Result<T, Status>) -> T {
    result.unwrap_or_else(|status| failed(status))
}

#[inline(never)]
fn failed(status: Status) -> ! {
    fatal(format_args!("cannot create the root protection domain: error {}", status as u64))
}

/// MSRs that a guest may be given, by what of them (NOVA 8.2.3). To read and write: what is switched with the vCPU. To
/// write: commands of branch prediction and L1 data cache. To read: the clock; identification of platform and microcode;
/// core capabilities, MPERF and APERF, MTRR capabilities, architectural capabilities, microcode options, overclocking,
/// performance and thermal status, IA32_XSS; and what a VMM sets by its replies.
const MSRS: [(Permissions, &[u32]); 4] = [
    (
        Permissions::READ.union(Permissions::WRITE),
        &[0x174, 0x175, 0x176, 0x277, 0xc000_0080, 0xc000_0100, 0xc000_0101, 0xc000_0102],
    ),
    (Permissions::WRITE, &[0x49, 0x10b]),
    (Permissions::READ, &[0x10, 0x17, 0x8b, 0xcf, 0xe7, 0xe8, 0xfe, 0x10a, 0x123, 0x195, 0x198, 0x19c, 0x1b1, 0xda0]),
    (Permissions::READ, &[0xc000_0081, 0xc000_0082, 0xc000_0084, 0xc000_0103]),
];

/// Creates everything that exists at start and makes the root EC ready.
pub fn create(cpu: &'static Cpu, image: &Image, hand_over: &HandOver, pins: u32) {
    // The header that null references name exists, and names nothing.
    object::header(0).begin(0, 1);
    let account = &KERNEL_ACCOUNT;
    let new_pd = |root| must(object::create_own(|own| Ok(Pd::new(own, account, root))));
    let (nova_pd, _) = new_pd(false);
    must(iommu::start(nova_pd));
    let (pd, pd_reference) = new_pd(true);
    let given = pd.give_allowance(account, account.allowance.balance().saturating_sub(KERNEL_RESERVE));
    must(given.then_some(()).ok_or(Status::MemObj));

    let nova_objects = object(ObjectSpace::new(nova_pd));
    let nova_host = object(HostSpace::new(nova_pd));
    let nova_pio = object(PioSpace::new(nova_pd, false));
    let nova_msr = object(MsrSpace::new(nova_pd));
    let objects = object(ObjectSpace::new(pd));
    let host = object(HostSpace::new(pd));
    let pio = object(PioSpace::new(pd, true));
    pd.objects.call_once(|| objects.0);
    pd.host.call_once(|| host.0);
    pd.pio.call_once(|| pio.0);

    let all = Permissions::GRANT | Permissions::TAKE;
    let take = Permissions::TAKE;
    let put = |selector, entry| must(nova_objects.0.set(selector, &|| entry));
    let (_, console) = object(Ok(Sm::new(0, None)));
    interrupt::bind(interrupt::CONSOLE, console);
    put(nova::CONSOLE_SEMAPHORE, console.capability(Permissions::UP | Permissions::DOWN));
    put(nova::OBJECT_SPACE, nova_objects.1.capability(take));
    put(nova::HOST_SPACE, nova_host.1.capability(take));
    put(nova::PIO_SPACE, nova_pio.1.capability(take));
    put(nova::MSR_SPACE, nova_msr.1.capability(take));
    put(nova::ROOT_OBJECT_SPACE, objects.1.capability(all));
    put(nova::ROOT_HOST_SPACE, host.1.capability(all));
    put(nova::ROOT_PIO_SPACE, pio.1.capability(all | Permissions::ASSIGN));
    let interrupts = (nova::INTERRUPT_BASE..).zip((0..pins).chain(ioapic::MAX_PINS..interrupt::FAULTS));
    for (selector, number) in interrupts.chain(iommu::is_on().then_some((nova::DMA_FAULTS, interrupt::FAULTS))) {
        let (_, reference) = object(Ok(Sm::new(0, Some(number))));
        interrupt::bind(number, reference);
        put(selector, reference.capability(Permissions::ASSIGN_INT | Permissions::DOWN));
    }
    ctrl_pd::NOVA_HOST.store(nova_host.1.capability(take).to_raw(), Ordering::Relaxed);
    ctrl_pd::NOVA_PORTS.store(nova_pio.1.capability(take).to_raw(), Ordering::Relaxed);
    open_nova_spaces(nova_pio.0, nova_msr.0);

    map_image(host.0, image);
    write_hip(image, hand_over, pins);
    must(host.0.map_kernel_page(HIP_ADDRESS, HIP.physical(), Permissions::READ));
    let page = ROOT_UTCB_ADDRESS >> 12;
    let words = [page, HIP_ADDRESS, 0];
    let (ec, ec_reference) = must(create::host_or_guest(cpu, Err(pd), EcKind::Global, false, words));
    ec.rip.set(image.elf.entry);
    ec.set_gpr(gpr::RDI, hand_over.magic as u64);
    ec.set_gpr(gpr::RSI, hand_over.information as u64);
    ec.continuation.set(Continuation::ReturnInterrupt);
    let scd = Scd { budget: 1000, priority: PRIORITY_MAX, cos: 0 };
    let sc = Sc::new(ec_reference, cpu, scd, timer::frequency() / 1000);
    let (sc, sc_reference) = object(Ok(sc));

    for cpu in Cpu::all() {
        let (sc, reference) = object(Ok(Sc::inherited(ec_reference, cpu)));
        cpu.idle.set(Some(sc));
        // It is idle already.
        rounds::call(cpu);
        put(cpu.number as u64, reference.capability(Permissions::CTRL));
    }
    ec.bound.store(sc_reference.index() + 1, Ordering::Relaxed);
    let put = |selector, entry: Entry| must(objects.0.set(selector, &|| entry));
    put(root::NOVA_OBJECT_SPACE, nova_objects.1.capability(take));
    put(root::OBJECT_SPACE, objects.1.capability(all));
    put(root::PROTECTION_DOMAIN, pd_reference.capability(Permissions::all()));
    let ec_permissions = Permissions::CTRL | Permissions::BIND_PT | Permissions::BIND_SC;
    put(root::EXECUTION_CONTEXT, ec_reference.capability(ec_permissions));
    put(root::SCHEDULING_CONTEXT, sc_reference.capability(Permissions::CTRL));
    sched::begin(cpu, sc);
}

/// Makes what was built an object of the kernel's. (Not inlined, for the kernel's size.)
#[inline(never)]
fn object<T: Object>(built: Result<T, Status>) -> (&'static T, Ref<T>) {
    must(object::create_own(|_| built))
}

/// All ports but the protected ones; the registers that may be passed through.
fn open_nova_spaces(pio: &PioSpace, msr: &MsrSpace) {
    for port in (0..1 << 16).step_by(64) {
        must(pio.set(port, u64::MAX, &|| u64::MAX));
    }
    for port in platform::protected_ports().into_iter().filter(|port| *port != 0) {
        must(pio.set(port as u64, 1 << (port & 63), &|| 0));
    }
    for (permissions, registers) in MSRS {
        registers.iter().for_each(|register| msr.set(*register, &|| permissions));
    }
}

/// Maps the segments of the root image where the boot loader put them.
fn map_image(host: &HostSpace, image: &Image) {
    for segment in image.elf.segments() {
        let mut done = 0;
        while done < segment.pages {
            let (pa, rest) = (segment.pa + done * 4096, segment.pages - done);
            let piece = Piece { pa, permissions: segment.permissions, ..Piece::unmap(segment.va + done * 4096, rest) };
            done += must(host.memory.step(&piece, None));
        }
    }
}

#[inline(never)]
fn write_hip(image: &Image, hand_over: &HandOver, pins: u32) {
    let (nova_start, nova_end) = kernel_range();
    let (mbuf_start, mbuf_end) = console::range();
    let features = match crate::cpu::BOOT_CPU.cpu.processor.get() {
        Some(Processor::Vmx(_)) => hip::FEATURE_VMX,
        Some(Processor::Svm(_)) => hip::FEATURE_SVM,
        None => 0,
    };
    let observation = observation::place();
    let page = Hip {
        signature: hip::SIGNATURE,
        length: size_of::<Hip>() as u16,
        nova_start,
        nova_end,
        mbuf_start,
        mbuf_end,
        root_start: image.range.0,
        root_end: image.range.1,
        acpi_rsdp: hand_over.found.rsdp.unwrap_or(hip::NOT_PRESENT),
        uefi_map: hand_over.found.uefi.map_or(hip::NOT_PRESENT, |map| map.start),
        uefi_map_size: hand_over.found.uefi.map_or(0, |map| map.size),
        uefi_descriptor_size: hand_over.found.uefi.map_or(0, |map| map.descriptor_size),
        uefi_descriptor_version: hand_over.found.uefi.map_or(0, |map| map.descriptor_version),
        stc_frequency: timer::frequency(),
        sel_num: SELECTOR_COUNT,
        sel_hst_arch: event::HOST_ARCH,
        sel_hst_nova: event::HOST_NOVA,
        sel_gst_arch: event::GUEST_ARCH,
        sel_gst_nova: event::GUEST_NOVA,
        cpu_num: crate::cpu::count(),
        cpu_bsp: 0,
        int_pin: pins as u16,
        int_msi: (interrupt::FAULTS - ioapic::MAX_PINS) as u16,
        mco_obj: 9,
        mco_hst: 9,
        mco_gst: 9,
        mco_dma: 9,
        mco_pio: 16,
        mco_msr: 14,
        platform_features: features | if iommu::is_on() { hip::FEATURE_IOMMU } else { 0 },
        extension: Announcement {
            magic: extension::MAGIC,
            version: extension::VERSION,
            features: extension::FEATURE_ALLOWANCE
                | extension::FEATURE_NEUTRAL_EVENTS
                | extension::FEATURE_DESTROY
                | if features == hip::FEATURE_VMX { extension::FEATURE_SYSENTER } else { 0 }
                | if iommu::is_on() { extension::FEATURE_FAULTS } else { 0 }
                | observation.map_or(0, |_| extension::FEATURE_OBSERVATION),
            observation: observation.map_or(0, |(address, _)| address),
            observation_frames: observation.map_or(0, |(_, frames)| frames),
            reserved: 0,
        },
        ..Hip::default()
    };
    // SAFETY: the page holds plain integers without padding; nobody else has it yet.
    unsafe {
        let (page_pointer, words) = (HIP.pointer().cast::<Hip>(), HIP.pointer().cast::<u16>());
        page_pointer.write(page);
        let sum = (0..size_of::<Hip>() / 2).fold(0u16, |sum, index| sum.wrapping_add(words.add(index).read()));
        (*page_pointer).checksum = sum.wrapping_neg();
    }
}
