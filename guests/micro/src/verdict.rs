//! The end of a test.

use crate::console::{Frame, send};
use crate::cpu::{out8, out16};
use crate::{endings, println};

/// What a test returns: nothing, or what is wrong.
pub type Check = Result<(), &'static str>;

/// QEMU's isa-debug-exit.
const DEBUG_EXIT: u16 = 0xf4;
/// PM1a control: sleep enable with the sleep types that S5 has here (5) and in QEMU and Bochs (0).
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPES: [u16; 2] = [5 << 10, 0];

/// Fails with `why` unless `condition`.
pub fn check(condition: bool, why: &'static str) -> Check {
    if condition { Ok(()) } else { Err(why) }
}

/// Says how test `word` ended, every way there is, and switches the machine off.
pub fn verdict(word: &str, result: Check) -> ! {
    match result {
        Ok(()) => println!("micro: {word}: passed"),
        Err(why) => println!("micro: {word}: FAILED: {why}"),
    }
    send(Frame::Status, &i32::from(result.is_err()).to_le_bytes());
    out8(DEBUG_EXIT, if result.is_ok() { 0x10 } else { 0x11 });
    for sleep_type in SLEEP_TYPES {
        out16(PM1A_CONTROL, sleep_type | SLEEP_ENABLE);
    }
    endings::halt()
}
