#![allow(unsafe_code)]
//! I/O APICs (Intel 82093AA datasheet, section 3).
//!
//! Unsafe: memory-mapped registers.

use kernel_core::boot::acpi::{IOAPICS_MAX, IoApic};
use spin::Mutex;

/// Most pins that the kernel serves, over all I/O APICs: each has a vector.
pub const MAX_PINS: u32 = 0x78;

const VERSION: u32 = 1;
const REDIRECTION: u32 = 0x10;

/// Redirection entry: masked.
pub const MASKED: u32 = 1 << 16;
/// Redirection entry: level-triggered.
pub const LEVEL: u32 = 1 << 15;
/// Redirection entry: active low.
pub const LOW: u32 = 1 << 13;

#[derive(Clone, Copy)]
struct Chip {
    registers: u64,
    first_gsi: u32,
    pins: u32,
    id: u8,
}

type Chips = [Option<Chip>; IOAPICS_MAX];

/// The lock also keeps the pairs of index and data accesses together.
static CHIPS: Mutex<Chips> = Mutex::new([None; IOAPICS_MAX]);

fn access(registers: u64, register: u32) -> *mut u32 {
    // SAFETY: `init` was told that the page of every chip in the list is mapped.
    unsafe {
        (registers as *mut u32).write_volatile(register);
        (registers as *mut u32).byte_add(0x10)
    }
}

fn read(registers: u64, register: u32) -> u32 {
    // SAFETY: see `access`.
    unsafe { access(registers, register).read_volatile() }
}

fn write(registers: u64, register: u32, value: u32) {
    // SAFETY: see `access`.
    unsafe { access(registers, register).write_volatile(value) }
}

/// Masks all pins of the I/O APIC in slot `index`, whose page is mapped. Returns the end of its global interrupts.
pub fn init(index: usize, found: &IoApic) -> u32 {
    let mut chips = CHIPS.lock();
    let Some(slot) = chips.get_mut(index) else { return 0 };
    let registers = crate::space::DEVICES + (1 + index as u64) * 4096 + (found.address & 0xff0);
    let pins = (read(registers, VERSION) >> 16 & 0xff) + 1;
    let pins = pins.min(MAX_PINS.saturating_sub(found.gsi_base));
    *slot = Some(Chip { registers, first_gsi: found.gsi_base, pins, id: found.id });
    for pin in 0..pins {
        write(registers, REDIRECTION + 2 * pin, MASKED);
    }
    if pins == 0 { 0 } else { found.gsi_base + pins }
}

/// The firmware's number for the I/O APIC of `gsi`.
pub fn id(gsi: u32) -> Option<u8> {
    find(&CHIPS.lock(), gsi).map(|(chip, _)| chip.id)
}

fn find(chips: &Chips, gsi: u32) -> Option<(Chip, u32)> {
    chips.iter().flatten().find_map(|chip| {
        let pin = gsi.checked_sub(chip.first_gsi)?;
        (pin < chip.pins).then_some((*chip, REDIRECTION + 2 * pin))
    })
}

/// Routes `gsi` to `destination`, the high half of its entry, with `vector` and the given mode bits.
pub fn route(gsi: u32, vector: u8, destination: u32, mode: u32) {
    let chips = CHIPS.lock();
    if let Some((Chip { registers: chip, .. }, register)) = find(&chips, gsi) {
        write(chip, register, MASKED);
        write(chip, register + 1, destination);
        write(chip, register, vector as u32 | mode);
    }
}

/// Masks or unmasks `gsi`.
pub fn mask(gsi: u32, masked: bool) {
    let chips = CHIPS.lock();
    if let Some((Chip { registers: chip, .. }, register)) = find(&chips, gsi) {
        let value = read(chip, register) & !MASKED;
        write(chip, register, value | if masked { MASKED } else { 0 });
    }
}
