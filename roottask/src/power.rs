//! The end of the machine: everything written arrives, then sleep state S5.

use crate::{console, window};
use core::sync::atomic::{AtomicU32, Ordering};
use roottask::acpi;
use runtime::syscall;

/// ctrl_hw: S-state transition (NOVA 5.5.1).
const SLEEP: u8 = 0;
const S5: u64 = 5;
/// In [`VALUES`]: the values are known.
const KNOWN: u32 = 1 << 16;

static VALUES: AtomicU32 = AtomicU32::new(0);

/// Finds out, by the ACPI tables at `rsdp`, how to switch the machine off.
pub fn learn(rsdp: u64) {
    if rsdp != abi::hip::NOT_PRESENT
        && let Some((a, b)) = acpi::sleep_values(&mut window::Tables, rsdp)
    {
        VALUES.store(KNOWN | (b as u32) << 8 | a as u32, Ordering::Relaxed);
    }
}

/// Says `reason` on the console and switches the machine off.
pub fn fatal(reason: core::fmt::Arguments<'_>) -> ! {
    let line = runtime::text::Line::<400>::format(format_args!("root: fatal: {reason}"));
    console::write_last(line.as_str());
    off()
}

/// Switches the machine off, or stops if that is impossible.
pub fn off() -> ! {
    console::drain_uart(console::COM1, 1000);
    let values = VALUES.load(Ordering::Relaxed);
    if values & KNOWN == 0 {
        console::write_regardless("root: halted: the firmware does not tell how to switch the machine off");
    } else {
        let (a, b) = ((values & 7) as u64, (values >> 8 & 7) as u64);
        if let Err(status) = syscall::ctrl_hw(SLEEP, b << 6 | a << 3 | S5) {
            let text = format_args!("root: halted: cannot switch the machine off: {status:?}");
            console::write_regardless(runtime::text::Line::<120>::format(text).as_str());
        }
    }
    runtime::sync::park()
}
