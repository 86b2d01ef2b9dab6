#![allow(unsafe_code)]
//! Starting the further CPUs (Intel SDM vol. 3A, 9.4).
//!
//! Unsafe: writes the trampoline below 1 MiB, and the entry stubs before they are write-protected.
//!
//! One CPU after the other gets a block and an offer. A CPU that has woken up claims the offer by one atomic exchange;
//! an offer that nobody claimed in time is withdrawn the same way, so a CPU that comes too late finds nothing and
//! sleeps, and its number goes to the next.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel_core::reason::Words;

use crate::cpu::{self, CPUS_MAX, CpuBlock, CpuNumber, now};
use crate::memory::Shared;
use crate::{fast, lapic, log, space, timer};

/// [`TICKET`]: a CPU may start.
pub const OFFERED: u32 = 1;
/// [`TICKET`]: it does.
pub const CLAIMED: u32 = 2;
const NOTHING: u32 = 0;
const STARTED: u32 = 3;

/// What becomes of the offer to the CPU that is to start.
pub static TICKET: AtomicU32 = AtomicU32::new(NOTHING);
/// Page tables for it.
pub static TABLES: AtomicU64 = AtomicU64::new(0);
/// Stack for it.
pub static STACK: AtomicU64 = AtomicU64::new(0);

const STUB: usize = 16;

/// Where SYSCALL enters on each CPU: loads RSP from an address that is the CPU's own. Written before the kernel runs on
/// its own page tables, which map this without the right to write.
#[unsafe(link_section = ".stubs")]
static STUBS: Shared<[[u64; STUB / 8]; CPUS_MAX]> = Shared::new([[0; STUB / 8]; CPUS_MAX]);

/// Address of the entry of CPU `number`.
pub fn stub(number: CpuNumber) -> u64 {
    STUBS.get() as u64 + number as u64 * STUB as u64
}

/// Writes the entries of all CPUs. Once, on the boot page tables.
pub fn fill_stubs() {
    // SAFETY: nobody executes the stubs yet.
    let stubs = unsafe { &mut *STUBS.get() };
    for (number, code) in (0..).zip(stubs) {
        let current = cpu::block(number) as u64 + CpuBlock::STACK_TOP as u64;
        let next = stub(number) + STUB as u64;
        let distance = (&raw const fast::syscall_entry as u64).wrapping_sub(next);
        // mov %rsp, %r11; mov current, %rsp; jmp syscall_entry
        *code = [0x25_248b_48e3_8949 | current << 56, current >> 8 & 0xff_ffff | 0xe9 << 24 | distance << 32];
    }
}

/// Page below 1 MiB at which further CPUs start. Conventional memory on every PC.
const TRAMPOLINE: u64 = 0x8000;
/// Slot of the device window at which the kernel sees that page meanwhile.
const TRAMPOLINE_SLOT: usize = 511;

/// Bytes of the code there.
pub const TRAMPOLINE_SIZE: usize = 32;

unsafe extern "C" {
    static trampoline: [u8; TRAMPOLINE_SIZE];
}

/// The code with which further CPUs start.
pub struct Trampoline([u8; TRAMPOLINE_SIZE]);

impl Trampoline {
    /// Reads the code, which only the boot page tables map.
    pub fn read() -> Self {
        // SAFETY: the code in the boot section, which nobody writes.
        Self(unsafe { trampoline })
    }

    /// Exchanges it with what lies on the page: puts it there, or back what was there before.
    fn exchange(&mut self) {
        let page = space::map_device(TRAMPOLINE_SLOT, TRAMPOLINE);
        for (offset, byte) in self.0.iter_mut().enumerate() {
            // SAFETY: mapped just now; nothing of Rust's lies there, and the root image does not run yet.
            unsafe {
                let place = page.add(offset);
                let old = place.read_volatile();
                place.write_volatile(*byte);
                *byte = old;
            }
        }
        space::unmap_device(TRAMPOLINE_SLOT);
    }
}

/// Starts the CPUs with these local APICs, but for the one that executes this.
pub fn start_all(apic_ids: &[u32], code: &mut Trampoline) {
    let own = lapic::id();
    code.exchange();
    TABLES.store(space::master(), Ordering::Relaxed);
    for (index, &id) in apic_ids.iter().enumerate() {
        if id == own || apic_ids.iter().take(index).any(|before| *before == id) {
            continue;
        }
        let number = cpu::count();
        let room = lapic::reaches(id) && (number as usize) < CPUS_MAX && space::map_cpu(number);
        if room && start(id, number) {
            cpu::add();
        } else {
            let reason = Words(if room { "it does not answer" } else { "no room for it" });
            log!("the CPU with APIC id {} is left out: {reason}", id as u64);
        }
    }
    code.exchange();
}

/// Milliseconds that a CPU has to claim its offer, and to be ready after that.
const PATIENCE: (u64, u64) = (100, 1000);

/// Starts one CPU, whose block is mapped; false if it did not answer.
fn start(id: u32, number: CpuNumber) -> bool {
    let block = cpu::block(number);
    // SAFETY: mapped just now; a number is used again only if nobody claimed the block.
    unsafe { CpuBlock::prepare(block, number) };
    STACK.store(block as u64 + CpuBlock::STACK_TOP as u64, Ordering::Relaxed);
    TICKET.store(OFFERED, Ordering::Release);
    lapic::send(id, lapic::INIT);
    wait_until(10, || false);
    for _ in 0..2 {
        lapic::send(id, lapic::START_UP | (TRAMPOLINE as u32) >> 12);
        if wait_until(1, || TICKET.load(Ordering::Relaxed) != OFFERED) {
            break;
        }
    }
    wait_until(PATIENCE.0, || TICKET.load(Ordering::Relaxed) != OFFERED);
    if TICKET.compare_exchange(OFFERED, NOTHING, Ordering::Acquire, Ordering::Acquire).is_ok() {
        return false;
    }
    if !wait_until(PATIENCE.1, || TICKET.load(Ordering::Acquire) == STARTED) {
        crate::panic::fatal(format_args!("the CPU with APIC id {} hung at its start", id as u64));
    }
    true
}

/// Waits for `done`, at most `milliseconds`; whether it came about.
pub fn wait_until(milliseconds: u64, done: impl Fn() -> bool) -> bool {
    let end = now() + timer::frequency() / 1000 * milliseconds;
    while now() < end {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    done()
}

/// The CPU that executes this is ready.
pub fn started() {
    TICKET.store(STARTED, Ordering::Release);
}
