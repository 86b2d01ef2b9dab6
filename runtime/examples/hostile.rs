//! Stands in for a driver and has its device attack: for tests of what keeps devices in their place.
//!
//! With QEMU's `edu` device it reads and writes memory all over the machine and raises interrupts of others; with Intel's
//! 82574 it causes a storm of faults. Then it does nothing any more.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use runtime::sync::{park, sleep_until};
use runtime::{log, manifest, time};

runtime::main!(main);

/// Vendor in bits 15:0, device in bits 31:16.
const EDU: u32 = 0x11e8_1234;
const NETWORK: u32 = 0x10d3_8086;

fn main() {
    match read(region("config").0, 0) {
        EDU => Edu::attack(),
        NETWORK => storm(),
        other => panic!("no attack is known by a device {other:#x}"),
    }
    park()
}

/// Address of a region, and the device's address of it.
fn region(name: &str) -> (u64, u64) {
    let Some(region) = manifest().region(name) else { panic!("no region {name}") };
    (region.memory.address, region.device)
}

fn read(base: u64, offset: u64) -> u32 {
    // SAFETY: offsets are those of registers in a region of the manifest, which is mapped for ever.
    unsafe { ((base + offset) as *const u32).read_volatile() }
}

fn write(base: u64, offset: u64, value: u32) {
    // SAFETY: as in `read`. What the device does then is what the test is about.
    unsafe { ((base + offset) as *mut u32).write_volatile(value) };
}

fn word(address: u64) -> u64 {
    // SAFETY: inside the region `dma`.
    unsafe { (address as *const u64).read_volatile() }
}

fn set_word(address: u64, value: u64) {
    // SAFETY: inside the region `dma`, which only the device uses beside this.
    unsafe { (address as *mut u64).write_volatile(value) };
}

fn pause(ms: u64) {
    sleep_until(time::now() + time::ticks_from_ms(ms));
}

/// What the micro guest's word `guard` keeps in its memory, in the upper half of each word.
const GUARDED: u64 = 0x6a6d_0000;
/// What the attacker writes.
const ATTACK: u64 = 0xa77a_c000_a77a_c000;
/// Probes are this far apart, in bytes; the machine has this much memory; there is none at the last address.
const STEP: u64 = 8 << 20;
const MEMORY: u64 = 256 << 20;
const NOTHING: u64 = 0xc000_0000;
const PAGE: u64 = 4096;

/// QEMU's documentation, "EDU device".
struct Edu {
    registers: u64,
    /// Two pages that are its own.
    own: (u64, u64),
}

impl Edu {
    const BUFFER: u64 = 0x4_0000;
    const TO_MEMORY: u32 = 2;

    fn attack() {
        let edu = Self { registers: region("bar0").0, own: region("dma") };
        set_word(edu.own.0, ATTACK);
        edu.take(edu.own.1);
        assert_eq!(edu.taken(), ATTACK, "the device does not work");
        log!("the device reads and writes its own memory");
        let probes = || (0..MEMORY / STEP).map(|step| step * STEP + PAGE).chain([NOTHING]);
        let (mut count, mut foreign, mut found) = (0, 0, None);
        for address in probes() {
            // The kernel's image and page 1, where the firmware's data is, have something in them.
            edu.take(edu.own.1);
            edu.take(address);
            let taken = edu.taken();
            count += 1;
            foreign += u32::from(!matches!(taken, 0 | ATTACK | u64::MAX));
            if taken >> 32 == GUARDED {
                found = Some(address);
            }
        }
        log!("read at {count} addresses, and found something at {foreign}");
        edu.take(edu.own.1);
        if let Some(address) = found {
            edu.give(address, PAGE as u32);
            log!("wrote into guarded memory at {address:#x}");
            return;
        }
        probes().for_each(|address| edu.give(address, PAGE as u32));
        log!("wrote at {count} addresses");
        // Messages by the entries of others: VT-d specification 5.1.2.2.
        set_word(edu.own.0, 0);
        edu.take(edu.own.1);
        (0..40).for_each(|entry| edu.give(0xfee0_0010 | entry << 5, 4));
        edu.take(edu.own.1);
        assert_eq!(edu.taken(), 0, "the device does not work any more");
        log!("raised 40 interrupts, and the device still works");
    }

    fn transfer(&self, from: u64, to: u64, bytes: u32, command: u32) {
        for (register, value) in [(0x80, from), (0x88, to), (0x90, bytes.into()), (0x98, (1 | command).into())] {
            write(self.registers, register, value as u32);
            write(self.registers, register + 4, (value >> 32) as u32);
        }
        while read(self.registers, 0x98) & 1 != 0 {
            pause(1);
        }
    }

    /// It reads memory at `address` into its buffer.
    fn take(&self, address: u64) {
        self.transfer(address, Self::BUFFER, PAGE as u32, 0);
    }

    /// It writes its buffer to memory at `address`.
    fn give(&self, address: u64, bytes: u32) {
        self.transfer(Self::BUFFER, address, bytes, Self::TO_MEMORY);
    }

    /// What its buffer begins with.
    fn taken(&self) -> u64 {
        let (address, device) = (self.own.0 + PAGE, self.own.1 + PAGE);
        self.give(device, PAGE as u32);
        word(address)
    }
}

/// Each descriptor of the ring is one fault, as what it names cannot be read.
const DESCRIPTORS: u64 = 4096;
/// As often the ring is gone through, with pauses of so many milliseconds, first quickly, then slowly.
const ROUNDS: u64 = 50;
const PAUSES: (u64, u64) = (20, 200);

/// Intel 82574 datasheet, 7.2 (transmission) and 10.2.6 (its registers).
fn storm() {
    let (registers, (ring, device)) = (region("bar0").0, region("dma"));
    for descriptor in 0..DESCRIPTORS {
        // 4 bytes, a whole frame (EOP), with a checksum (IFCS).
        set_word(ring + 16 * descriptor, NOTHING + PAGE * descriptor);
        set_word(ring + 16 * descriptor + 8, 4 | 3 << 24);
    }
    let (head, tail) = (0x3810, 0x3818);
    for (register, value) in [
        (0x3800, device as u32),
        (0x3804, (device >> 32) as u32),
        (0x3808, 16 * DESCRIPTORS as u32),
        (head, 0),
        (tail, 0),
    ] {
        write(registers, register, value);
    }
    const ENABLE: u32 = 1 << 1 | 1 << 3;
    write(registers, 0x400, ENABLE);
    log!("a storm begins");
    for round in 0..ROUNDS {
        write(registers, tail, (read(registers, head) + DESCRIPTORS as u32 - 1) % DESCRIPTORS as u32);
        while read(registers, head) != read(registers, tail) {
            pause(1);
        }
        pause(if round < ROUNDS / 2 { PAUSES.0 } else { PAUSES.1 });
    }
    log!("the storm is over: {} requests", ROUNDS * (DESCRIPTORS - 1));
}
