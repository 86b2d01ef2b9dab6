//! The hypervisor information page (6.3, 8.7.1, 8.7.2), and the memory-buffer console that it names (C.1).

use lab::entry::{argument, hip, hip_address, hip_bytes};
use lab::memory::{self, PAGE, map_physical, peek};
use lab::portal::Local;
use lab::probe::{self, PRESENT, USER, WRITE};
use lab::report::{Outcome, Stop};
use lab::spec::{BAD_CPU, SUCCESS, cache, feature, hip, perm, words};
use lab::{acpi, check, equal, root, selector, tests};

tests! {
    "information page::signature, length and checksum" => checksum,
    "information page::it is read-only" => read_only,
    "information page::the kernel and the root image lie in memory" => images,
    "information page::the ACPI pointer" => rsdp,
    "information page::without UEFI there is no UEFI memory map" => uefi,
    "information page::selectors for events" => selectors,
    "information page::as many CPUs as the machine has" => cpus,
    "information page::the root EC runs on the CPU that it names" => bsp,
    "information page::orders that never fail in part are orders" => orders,
    "information page::platform features" => features,
    "information page::without a TPM there is no event log" => event_log,
    "information page::the console buffer holds the kernel's lines" => console,
    "information page::the console semaphore is upped at the end of a line" => console_signal,
}

fn checksum() -> Outcome {
    equal!(hip(hip::SIGNATURE), hip::MAGIC);
    let bytes = hip_bytes();
    check!(bytes.len() >= hip::END && bytes.len() <= 4096 && bytes.len().is_multiple_of(2), "length {:#x}", bytes.len());
    let sum = bytes.chunks_exact(2).fold(0u16, |sum, pair| sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]])));
    equal!(sum, 0);
    Ok(())
}

fn read_only() -> Outcome {
    for offset in [0, 8, PAGE - 8] {
        let fault = probe::root()?.write(hip_address() + offset, 0)?;
        equal!(fault.map(|fault| fault.error), Some(PRESENT | USER | WRITE));
    }
    check!(probe::root()?.execute(hip_address())?.is_some(), "it is executable");
    Ok(())
}

fn images() -> Outcome {
    let (nova, root) = ((hip(hip::NOVA_START), hip(hip::NOVA_END)), (hip(hip::ROOT_START), hip(hip::ROOT_END)));
    check!(nova.0 < nova.1 && root.0 < root.1, "{nova:x?}, {root:x?}");
    check!(nova.1 <= root.0 || root.1 <= nova.0, "the images overlap: {nova:x?}, {root:x?}");
    // An ELF file is where the root image begins.
    let head = acpi::read(root.0, 4).unwrap_or_default();
    equal!(head[..], b"\x7fELF"[..]);
    Ok(())
}

fn rsdp() -> Outcome {
    check!(hip(hip::ACPI_RSDP) != hip::NOT_PRESENT, "no ACPI pointer");
    let pointer = acpi::read(hip(hip::ACPI_RSDP), 20).unwrap_or_default();
    equal!(pointer[..8], b"RSD PTR "[..]);
    equal!(pointer.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    check!(acpi::find(b"FACP").is_some() && acpi::find(b"APIC").is_some(), "tables are missing");
    Ok(())
}

fn uefi() -> Outcome {
    if hip(hip::UEFI_MAP) != hip::NOT_PRESENT {
        return Err(Stop::Skipped("booted by UEFI"));
    }
    equal!((hip(hip::UEFI_MAP_SIZE), hip(hip::UEFI_DESC_SIZE), hip(hip::UEFI_DESC_VERSION)), (0, 0, 0));
    Ok(())
}

fn selectors() -> Outcome {
    check!(hip(hip::SEL_NUM) > 1 << 16, "{} selectors", hip(hip::SEL_NUM));
    // #CP is the last exception, URDMSR and UWRMSR the last intercepts; STARTUP and RECALL.
    check!(hip(hip::SEL_HST_ARCH) >= 0x16 && hip(hip::SEL_HST_NOVA) >= 2);
    if lab::capability::guests() {
        check!(hip(hip::SEL_GST_ARCH) >= 0x52 && hip(hip::SEL_GST_NOVA) >= 2);
    }
    Ok(())
}

fn cpus() -> Outcome {
    let Some(expected) = argument("cpus").and_then(|number| number.parse::<u64>().ok()) else {
        return Err(Stop::Skipped("nobody told how many there are"));
    };
    equal!(root::cpus(), expected);
    Ok(())
}

fn bsp() -> Outcome {
    check!(root::cpu() < root::cpus());
    for cpu in 0..root::cpus() {
        let pt = Local::on(cpu)?.portal(|_| words(1))?;
        let expected = if cpu == root::cpu() { SUCCESS } else { BAD_CPU };
        equal!(lab::hypercall::ipc_call(pt, words(1), 0).0, expected);
    }
    Ok(())
}

fn orders() -> Outcome {
    for order in [hip::MCO_OBJ, hip::MCO_HST, hip::MCO_GST, hip::MCO_DMA, hip::MCO_PIO, hip::MCO_MSR] {
        check!(hip(order) < 32, "order {}", hip(order));
    }
    let first = lab::aligned_selectors(hip(hip::MCO_OBJ) as u32);
    let (order, src, mask) = (hip(hip::MCO_OBJ), root::obj(), perm::ALL);
    let all = lab::hypercall::Delegation { src, dst: src, ssb: first, dsb: first, order, mask, mad: 0 };
    equal!(lab::hypercall::ctrl_pd(&all), SUCCESS);
    let _ = selector();
    Ok(())
}

fn features() -> Outcome {
    let features = hip(hip::PLATFORM_FEATURES);
    // CPUID leaf 1, ECX bit 5; leaf 0x80000001, ECX bit 2.
    let vmx = core::arch::x86_64::__cpuid(1).ecx & 1 << 5 != 0;
    let svm = core::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    check!(features & feature::VMX == 0 || vmx, "VMX without VMX");
    check!(features & feature::SVM == 0 || svm, "SVM without SVM");
    equal!(features & !(feature::IOMMU | feature::VMX | feature::SVM), 0);
    Ok(())
}

fn event_log() -> Outcome {
    if acpi::find(b"TPM2").is_some() {
        return Err(Stop::Skipped("there is a TPM"));
    }
    equal!(hip(hip::EVENT_LOG_SIZE), 0);
    Ok(())
}

/// Maps the console buffer; its header's address and its size in characters.
fn buffer() -> Result<(u64, u64), Stop> {
    let (start, end) = (hip(hip::MBUF_START), hip(hip::MBUF_END));
    check!(start.is_multiple_of(PAGE) && start + 8 < end, "{start:#x} to {end:#x}");
    let count = (end - start).div_ceil(PAGE);
    let window = memory::address(count.next_power_of_two().trailing_zeros());
    for page in 0..count {
        map_physical(start + page * PAGE, window + page * PAGE, 0, perm::R | perm::W, cache::WB)?;
    }
    Ok((window, end - start - 8))
}

fn indices(header: u64) -> (u64, u64) {
    let word = peek(header);
    (word & 0xffff_ffff, word >> 32)
}

fn console() -> Outcome {
    let (header, size) = buffer()?;
    let (read, write) = indices(header);
    check!(read < size && write < size && read != write, "indices {read} and {write} of {size}");
    // Lines of printable characters.
    let mut at = read;
    let mut lines = 0;
    while at != write {
        let character = memory::peek_byte(header + 8 + at);
        check!((0x20..0x7f).contains(&character) || b"\r\n".contains(&character), "character {character:#x} at {at}");
        lines += u32::from(character == b'\n');
        at = (at + 1) % size;
    }
    check!(lines > 0, "no line");
    Ok(())
}

/// An EC without portals dies, of which any kernel says something. If it does not, nothing is found out.
fn console_signal() -> Outcome {
    let (header, size) = buffer()?;
    let sm = lab::semaphore::Semaphore(root::CONSOLE);
    lab::hypercall::ctrl_sm(sm.0, lab::hypercall::flag::SM_DOWN | lab::hypercall::flag::SM_ZERO, 1);
    let (_, before) = indices(header);
    let pt = Local::new()?.portal(|_| {
        lab::provoke::undefined();
        words(1)
    })?;
    lab::hypercall::ipc_call(pt, words(1), 0);
    let (_, after) = indices(header);
    if before == after {
        return Err(Stop::Skipped("the kernel says nothing"));
    }
    equal!(memory::peek_byte(header + 8 + (after + size - 1) % size), b'\n');
    equal!(sm.down_until(1), SUCCESS);
    Ok(())
}
