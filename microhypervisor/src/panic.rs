//! The end: a broken invariant of the kernel stops the machine with a readable report.

use core::panic::PanicInfo;

use kernel_core::reason::Words;

/// Reports and stops.
pub fn fatal(arguments: core::fmt::Arguments) -> ! {
    crate::console::last_words(arguments);
    crate::lapic::stop_others();
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let (file, line) = info.location().map_or(("", 0), |place| (place.file(), place.line()));
    fatal(format_args!("{}:{}: {}", Words(file), line as u64, info.message()))
}
