//! Lines of text on COM1 and, where the machine has an execution channel, as its output frames, too.
//!
//! NS16550A: transmit at offset 0, line control at offset 3 (bits 1:0: length of characters), line status at offset 5
//! (bit 5: transmit register empty, bit 6: transmitter empty).

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::cpu::{in8, in32, out_bytes, out8};

const COM1: u16 = 0x3f8;
const LINE_CONTROL: u16 = COM1 + 3;
const EIGHT_BITS: u8 = 3;
const LINE_STATUS: u16 = COM1 + 5;
const EMPTY: u8 = 1 << 5;
const ALL_SENT: u8 = 1 << 6;

const EXEC: u16 = 0xe90;
const EXEC_MAGIC_PORT: u16 = 0xe94;
const EXEC_MAGIC: u32 = u32::from_le_bytes(*b"KNVX");
const FRAME_HELLO: u8 = 0;
const FRAME_OUTPUT: u8 = 1;
const FRAME_STATUS: u8 = 3;

static CHANNEL: AtomicBool = AtomicBool::new(false);

/// Text of bounded length; what does not fit is cut off.
pub struct Text<const SIZE: usize = 120> {
    bytes: [u8; SIZE],
    length: u16,
}

impl<const SIZE: usize> Text<SIZE> {
    /// No text.
    pub const fn new() -> Self {
        Self { bytes: [0; SIZE], length: 0 }
    }

    /// What the arguments say.
    pub fn of(arguments: fmt::Arguments) -> Self {
        let mut text = Self::new();
        let _ = text.write_fmt(arguments);
        text
    }

    /// The bytes, for ports.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length.into()]
    }
}

impl<const SIZE: usize> Write for Text<SIZE> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays for the end of the line.
        let free = &mut self.bytes[self.length.into()..SIZE - 1];
        let taken = &text.as_bytes()[..text.len().min(free.len())];
        free[..taken.len()].copy_from_slice(taken);
        self.length += taken.len() as u16;
        Ok(())
    }
}

impl<const SIZE: usize> fmt::Display for Text<SIZE> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(core::str::from_utf8(self.bytes()).unwrap_or("(text cut within a character)"))
    }
}

/// Sets the length of characters, which is five bits after a reset; looks for an execution channel and opens it.
pub fn open() {
    out8(LINE_CONTROL, EIGHT_BITS);
    if in32(EXEC_MAGIC_PORT) == EXEC_MAGIC {
        CHANNEL.store(true, Ordering::Relaxed);
        frame(FRAME_HELLO, &1u32.to_le_bytes());
    }
}

/// Writes a line that begins with the program's name.
pub fn line(arguments: fmt::Arguments) {
    let mut text = Text::<240>::of(format_args!("micro: {arguments}"));
    text.bytes[usize::from(text.length)] = b'\n';
    text.length += 1;
    for &byte in text.bytes() {
        while in8(LINE_STATUS) & EMPTY == 0 {}
        out8(COM1, byte);
    }
    frame(FRAME_OUTPUT, text.bytes());
}

/// Tells the verdict and waits until everything is out.
pub fn close(passed: bool) {
    line(format_args!("{}", if passed { "passed" } else { "failed" }));
    frame(FRAME_STATUS, &i32::from(!passed).to_le_bytes());
    while in8(LINE_STATUS) & ALL_SENT == 0 {}
}

fn frame(kind: u8, payload: &[u8]) {
    if CHANNEL.load(Ordering::Relaxed) {
        let length = (payload.len() as u32).to_le_bytes();
        out_bytes(EXEC, &[kind, length[0], length[1], length[2], length[3]]);
        out_bytes(EXEC, payload);
    }
}

/// Writes a line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}
