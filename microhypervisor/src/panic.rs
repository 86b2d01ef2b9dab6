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
    match info.location() {
        Some(place) => fatal(format_args!("{}:{}: {}", Words(place.file()), place.line() as u64, info.message())),
        None => fatal(format_args!("{}", info.message())),
    }
}
