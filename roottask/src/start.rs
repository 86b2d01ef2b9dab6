//! From the kernel's hand-over (NOVA 8.1.2) to a running runtime: memory, heap, stack, clock.
#![allow(unsafe_code)]

use crate::authority::{self, selector};
use crate::{clock, console, power, service, system, window};
use abi::capability::Permissions;
use abi::hip::{Hip, SIGNATURE};
use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use roottask::frames::{FreeMemory, PAGE, PhysRange};
use roottask::memory_map::{self, MapError};
use runtime::manifest::{Manifest, Name, Range, selector as own};
use runtime::sync::Mutex;
use runtime::{STACK_RESERVE, STACK_SIZE, STACK_SLOT};

/// The root task's address space above its image; children have the same layout.
pub mod layout {
    /// UTCB of a child's main EC, then the window for further UTCBs.
    pub const UTCBS: u64 = 0x1800_0000;
    /// Pages in that window.
    pub const UTCB_PAGES: u64 = 256;
    /// Stacks, one slot each.
    pub const STACKS: u64 = 0x2000_0000;
    /// Heap.
    pub const HEAP: u64 = 0x4000_0000;
    /// Free for the program's own mappings.
    pub const FREE: u64 = 0x200_0000_0000;
    /// Bytes of that.
    pub const FREE_LENGTH: u64 = 1 << 40;
}

const EARLY_STACK: usize = 32 << 10;
const HEAP_LENGTH: u64 = 4 << 20;
/// Main, kernel log, watchdog, keeper, scrubber, observer and collector of faults, what starts them, and two for each CPU.
const STACK_COUNT: u64 = 8 + 2 * plan::CPUS_MAX as u64;
/// Firmware and boot loaders keep things below; nothing here is worth the risk.
const LOW_MEMORY: u64 = 1 << 20;

#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; EARLY_STACK]>);
// SAFETY: only the entry stub refers to it.
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(core::cell::UnsafeCell::new([0; EARLY_STACK]));

/// What the first stage leaves to the second.
pub struct Boot {
    /// The hypervisor information page.
    pub hip: Hip,
    /// Memory that nobody has.
    pub free: FreeMemory,
    /// The boot module: the root task's own ELF file and the archive behind it.
    pub module: PhysRange,
    /// Usable memory of the machine in bytes.
    pub total: u64,
    manifest: Manifest,
}

static BOOT: Mutex<Option<Boot>> = Mutex::new(None, selector::EVENTS);

/// RDI and RSI: the boot loader's EAX and EBX. RSP: the hypervisor information page.
// SAFETY: no other item of this program has this name.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "mov rdx, rsp",
        "lea rsp, [rip + {stack} + {size}]",
        "xor ebp, ebp",
        "call {early}",
        "ud2",
        stack = sym STACK,
        size = const EARLY_STACK,
        early = sym early,
    )
}

fn read_hip(hip: *const Hip) -> Hip {
    // SAFETY: the kernel maps the page read-only and passes its address; any bytes are a valid structure.
    let mut hip = unsafe { hip.read() };
    if (hip.length as usize) < offset_of!(Hip, extension) + size_of_val(&hip.extension)
        || hip.extension.magic != abi::extension::MAGIC
    {
        hip.extension = Default::default();
    }
    hip
}

extern "C" fn early(magic: u64, info: u64, page: *const Hip) -> ! {
    let hip = read_hip(page);
    if let Err(status) = authority::take(hip.sel_num) {
        // Without authority there is no console either: the kernel's fault report shows the status.
        // SAFETY: raises #UD.
        unsafe { asm!("ud2", in("rax") status as u64, options(noreturn)) }
    }
    if let Err(status) = console::open() {
        // SAFETY: raises #UD.
        unsafe { asm!("ud2", in("rax") status as u64, options(noreturn)) }
    }
    if hip.signature != SIGNATURE {
        power::fatal(format_args!("the information page has signature {:#x}", hip.signature));
    }
    power::learn(hip.acpi_rsdp);
    let mut free = FreeMemory::new();
    // The kernel need not count as the root image what follows the last segment; the boot loader knows the whole file.
    let image = PhysRange::new(hip.root_start, hip.root_end);
    let module = match memory_map(magic, info, hip.root_start, &mut free) {
        Ok(module) => module.unwrap_or(image),
        Err(error) => power::fatal(format_args!("{error}")),
    };
    let total = free.total();
    free.remove(PhysRange::new(0, LOW_MEMORY));
    free.remove(PhysRange::new(hip.nova_start, hip.nova_end));
    free.remove(PhysRange::new(hip.mbuf_start, hip.mbuf_end));
    free.remove(image);
    free.remove(module);
    let manifest = match own_memory(&hip, page as u64, &mut free) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            let need = (HEAP_LENGTH + STACK_COUNT * STACK_SIZE as u64) >> 10;
            let left = free.total() >> 10;
            power::fatal(format_args!("not enough memory: the root task itself needs {need} KiB, {left} KiB are left"))
        }
        Err(status) => power::fatal(format_args!("the kernel refuses memory to the root task: {status:?}")),
    };
    *BOOT.lock() = Some(Boot { hip, module, free, total, manifest });
    let stack = layout::STACKS + STACK_SLOT as u64 - STACK_RESERVE as u64;
    // SAFETY: the stack was mapped by `own_memory`; nothing on the old one is used again.
    unsafe { asm!("mov rsp, {}", "xor ebp, ebp", "call {}", "ud2", in(reg) stack, sym late, options(noreturn)) }
}

/// Adds the usable memory to `free`; the boot module that contains the physical address `root`, if the loader tells.
fn memory_map(magic: u64, info: u64, root: u64, free: &mut FreeMemory) -> Result<Option<PhysRange>, MapError> {
    let read = |start: u64, length: usize| {
        let end = start.checked_add(length as u64).ok_or(MapError::Malformed)?;
        window::bytes(PhysRange::new(start, end)).map_err(|_| MapError::Malformed)
    };
    match magic {
        memory_map::MULTIBOOT2_MAGIC => {
            let info = read(info, memory_map::multiboot2_length(read(info, 8)?)?)?;
            memory_map::multiboot2(info, free)?;
            Ok(memory_map::multiboot2_module(info, root))
        }
        memory_map::MULTIBOOT1_MAGIC => {
            let info = read(info, memory_map::MULTIBOOT1_LENGTH)?;
            let (map, length) = memory_map::multiboot1_map(info)?;
            memory_map::multiboot1(read(map, length)?, free)?;
            let Some((list, count)) = memory_map::multiboot1_modules(info) else { return Ok(None) };
            let list = read(list, count * memory_map::MULTIBOOT1_MODULE_LENGTH)?;
            Ok(memory_map::multiboot1_module(list, root))
        }
        memory_map::PVH_MAGIC => {
            let info = read(info, memory_map::PVH_LENGTH)?;
            let (map, entries) = memory_map::pvh_map(info)?;
            memory_map::pvh(read(map, entries * memory_map::PVH_ENTRY_LENGTH)?, free);
            let Some((list, count)) = memory_map::pvh_modules(info) else { return Ok(None) };
            Ok(memory_map::pvh_module(read(list, count * memory_map::PVH_MODULE_LENGTH)?, root))
        }
        _ => Err(MapError::UnknownLoader(magic)),
    }
}

/// Heap and stacks for the root task itself, and the manifest that describes them; `None` if memory is short.
/// `page`: where the information page is mapped; the main EC's UTCB is the page below (NOVA 6.2.3.2).
fn own_memory(hip: &Hip, page: u64, free: &mut FreeMemory) -> Result<Option<Manifest>, abi::Status> {
    let mut take = |address: u64, length: u64| {
        let Some(memory) = free.allocate(length, PAGE) else { return Ok(false) };
        window::fill(memory, &[], 0)?;
        // SAFETY: nothing is mapped at these addresses yet.
        unsafe { window::grant(own::HOST_SPACE, memory, address, Permissions::READ | Permissions::WRITE)? };
        Ok(true)
    };
    let stack = |slot: u64| layout::STACKS + slot * STACK_SLOT as u64 + (STACK_SLOT - STACK_SIZE) as u64;
    let mut enough = take(layout::HEAP, HEAP_LENGTH)?;
    for slot in 0..STACK_COUNT {
        enough &= take(stack(slot), STACK_SIZE as u64)?;
    }
    let mut manifest = Manifest::EMPTY;
    manifest.name = Name::new("root");
    manifest.cpu = hip.cpu_bsp as u32;
    let further = (0..hip.cpu_num).filter(|&cpu| cpu != hip.cpu_bsp);
    manifest.further_cpus.iter_mut().zip(further).for_each(|(slot, cpu)| *slot = cpu);
    manifest.stc_frequency = hip.stc_frequency;
    manifest.sel_hst_arch = hip.sel_hst_arch;
    manifest.sel_gst_arch = hip.sel_gst_arch;
    manifest.sel_gst_nova = hip.sel_gst_nova;
    // The specification numbers guest events as VMX does; only where SVM is does the kernel have to say so.
    let on_vmx = hip.platform_features & abi::hip::FEATURE_VMX != 0;
    let neutral = if on_vmx { abi::extension::FEATURE_NEUTRAL_EVENTS } else { 0 };
    manifest.extensions = (hip.extension.features | neutral) as u16;
    manifest.platform_features = hip.platform_features;
    manifest.main_utcb = page - PAGE;
    manifest.heap = Range { address: layout::HEAP, length: HEAP_LENGTH };
    manifest.stacks = Range { address: layout::STACKS, length: STACK_COUNT * STACK_SLOT as u64 };
    manifest.utcbs = Range { address: layout::UTCBS, length: layout::UTCB_PAGES * PAGE };
    manifest.selectors = [own::FURTHER_END, selector::FIRST];
    manifest.free = Range { address: layout::FREE, length: layout::FREE_LENGTH };
    (manifest.wall_clock, manifest.wall_clock_stc) = clock::read();
    Ok(enough.then_some(manifest))
}

extern "C" fn late() -> ! {
    static MANIFEST: Mutex<Manifest> = Mutex::new(Manifest::EMPTY, selector::EVENTS);
    let Some(boot) = BOOT.lock().take() else { runtime::sync::park() };
    let mut manifest = MANIFEST.lock();
    *manifest = boot.manifest;
    // SAFETY: `late` never returns, so the guard and what it protects live for ever and nobody writes it again.
    let given = unsafe { &*core::ptr::from_ref::<Manifest>(&*manifest) };
    runtime::on_panic(service::own_panic);
    // SAFETY: this is the main EC on its first stack slot, with the reserve free.
    unsafe { runtime::init(given) };
    runtime::log::use_sink(console::write);
    system::run(boot)
}
