#![allow(unsafe_code)]
//! I/O APICs (Intel 82093AA datasheet, section 3).
//!
//! Unsafe: memory-mapped registers.

use kernel_core::boot::acpi::IoApic;
use spin::Mutex;

/// Most pins that the kernel serves, over all I/O APICs: each has a vector.
pub const MAX_PINS: u32 = 0x78;
/// Most I/O APICs.
pub const MAX: usize = 8;

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
    first_gsi: u32,
    pins: u32,
}

type Chips = [Option<Chip>; MAX];

/// The lock also keeps the pairs of index and data accesses together.
static CHIPS: Mutex<Chips> = Mutex::new([None; MAX]);

fn access(chip: usize, register: u32) -> *mut u32 {
    let base = crate::space::DEVICES + (1 + chip as u64) * 4096;
    // SAFETY: `init` has mapped the page of every chip in the list.
    unsafe {
        (base as *mut u32).write_volatile(register);
        (base as *mut u32).byte_add(0x10)
    }
}

fn read(chip: usize, register: u32) -> u32 {
    // SAFETY: see `access`.
    unsafe { access(chip, register).read_volatile() }
}

fn write(chip: usize, register: u32, value: u32) {
    // SAFETY: see `access`.
    unsafe { access(chip, register).write_volatile(value) }
}

/// Masks all pins of the I/O APIC in slot `index`, whose page is mapped. Returns the end of its global interrupts.
pub fn init(index: usize, found: &IoApic) -> u32 {
    let mut chips = CHIPS.lock();
    let Some(slot) = chips.get_mut(index) else { return 0 };
    let pins = (read(index, VERSION) >> 16 & 0xff) + 1;
    let pins = pins.min(MAX_PINS.saturating_sub(found.gsi_base));
    *slot = Some(Chip { first_gsi: found.gsi_base, pins });
    for pin in 0..pins {
        write(index, REDIRECTION + 2 * pin, MASKED);
    }
    found.gsi_base + pins
}

fn find(chips: &Chips, gsi: u32) -> Option<(usize, u32)> {
    chips.iter().enumerate().find_map(|(index, chip)| {
        let chip = (*chip)?;
        let pin = gsi.checked_sub(chip.first_gsi)?;
        (pin < chip.pins).then_some((index, pin))
    })
}

/// Routes `gsi` to the LAPIC `destination` with `vector` and the given mode bits.
pub fn route(gsi: u32, vector: u8, destination: u32, mode: u32) {
    let chips = CHIPS.lock();
    if let Some((chip, pin)) = find(&chips, gsi) {
        write(chip, REDIRECTION + 2 * pin, MASKED);
        write(chip, REDIRECTION + 2 * pin + 1, destination << 24);
        write(chip, REDIRECTION + 2 * pin, vector as u32 | mode);
    }
}

/// Masks or unmasks `gsi`.
pub fn mask(gsi: u32, masked: bool) {
    let chips = CHIPS.lock();
    if let Some((chip, pin)) = find(&chips, gsi) {
        let register = REDIRECTION + 2 * pin;
        let value = read(chip, register) & !MASKED;
        write(chip, register, value | if masked { MASKED } else { 0 });
    }
}
