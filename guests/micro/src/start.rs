//! From the entry stub to the test that the command line names.
//!
//! Unsafe: includes the entry stub, reads the loader's boot information.
#![allow(unsafe_code)]

use core::arch::global_asm;
use core::str::SplitAsciiWhitespace;

use crate::console::{Frame, send};
use crate::verdict::{Check, verdict};
use crate::{basic, endings, fpu, interrupts, measure, println};

global_asm!(include_str!("entry.S"), options(att_syntax));

const LOADER_MAGIC: u32 = 0x2bad_b002;
/// Boot information: the command line is valid.
const HAS_CMDLINE: u32 = 1 << 2;
/// Version of the exec channel's protocol.
const PROTOCOL: u32 = 1;
const CMDLINE_MAX: usize = 256;

/// Parameters behind the first word.
pub type Parameters<'a> = SplitAsciiWhitespace<'a>;

/// The next parameter as a number, or `default`.
pub fn number(parameters: &mut Parameters<'_>, default: u64) -> u64 {
    parameters.next().and_then(|word| word.parse().ok()).unwrap_or(default)
}

/// Copies the command line; QEMU puts the file's name in front of it.
///
/// # Safety
/// `info` must be a multiboot loader's boot information.
unsafe fn command_line(info: u32, buffer: &mut [u8; CMDLINE_MAX]) -> &str {
    let info = info as *const u32;
    // SAFETY: the caller's promise: seven words at least.
    let (flags, mut text) = unsafe { (info.read(), info.add(4).read() as *const u8) };
    let mut length = 0;
    while flags & HAS_CMDLINE != 0 && length < buffer.len() {
        // SAFETY: the text ends with a zero, and nothing behind it is read.
        let byte = unsafe { text.read() };
        if byte == 0 {
            break;
        }
        buffer[length] = byte;
        length += 1;
        // SAFETY: still inside the text.
        text = unsafe { text.add(1) };
    }
    core::str::from_utf8(&buffer[..length]).unwrap_or("")
}

/// Called by the entry stub.
#[unsafe(no_mangle)]
extern "C" fn main(magic: u32, info: u32) -> ! {
    interrupts::install();
    send(Frame::Ready, &PROTOCOL.to_le_bytes());
    let mut buffer = [0; CMDLINE_MAX];
    let line = match magic {
        // SAFETY: the magic says so.
        LOADER_MAGIC => unsafe { command_line(info, &mut buffer) },
        _ => "",
    };
    let mut words = line.split_ascii_whitespace();
    let mut word = words.next().unwrap_or("basic");
    if word.contains('/') || word.ends_with("micro") {
        word = words.next().unwrap_or("basic");
    }
    let result = match word {
        "basic" => basic::run(),
        "hello" => hello(),
        "exits" => measure::exits(&mut words),
        "work" => measure::work(&mut words),
        "fpu" => fpu::run(&mut words),
        "fault" => interrupts::faults(),
        "spin" => endings::spin(),
        "triple" => endings::triple(),
        "jump" => endings::jump(),
        "halt" => endings::halt(),
        "reset" => endings::reset(),
        _ => Err("unknown word on the command line"),
    };
    verdict(word, result)
}

fn hello() -> Check {
    println!("hello from the micro guest");
    Ok(())
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("micro: panic: {info}");
    verdict("panic", Err("panicked"))
}
