//! From the boot code to Rust. Multiboot Specification 0.6.96, 3.3 (boot information).
#![allow(unsafe_code)] // The boot information is only known by its address.

use core::arch::global_asm;
use core::ffi::{CStr, c_char};
use core::panic::PanicInfo;

use crate::{ending, say};

global_asm!(include_str!("boot.S"), options(att_syntax));

/// What EAX holds after a multiboot loader.
const BOOT_MAGIC: u32 = 0x2bad_b002;
const FLAG_COMMAND_LINE: u32 = 1 << 2;

#[unsafe(no_mangle)]
extern "C" fn enter(magic: u32, information: u32) -> ! {
    if magic != BOOT_MAGIC {
        crate::main("")
    }
    let field = |index: usize| {
        // SAFETY: a multiboot loader leaves the information below 4 GiB, which is mapped, and outside the image.
        unsafe { (information as usize as *const u32).add(index).read() }
    };
    let line = if field(0) & FLAG_COMMAND_LINE == 0 {
        c""
    } else {
        // SAFETY: as above; it ends in NUL.
        unsafe { CStr::from_ptr(field(4) as usize as *const c_char) }
    };
    crate::main(line.to_str().unwrap_or(""))
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    say!("failed: {info}");
    ending::finish(false)
}
