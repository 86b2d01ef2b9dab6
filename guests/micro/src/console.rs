//! Text on COM1 and, where it exists, on the exec channel.

use core::fmt::{self, Write};

use crate::cpu::{in8, in32, out_string, out8};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// The exec channel: data, magic.
const EXEC: u16 = 0xe90;
const EXEC_MAGIC: u16 = 0xe94;
const MAGIC: u32 = u32::from_le_bytes(*b"KNVX");

/// Types of frames on the exec channel.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Frame {
    /// The sender is ready: protocol version.
    Ready = 0,
    /// Standard output.
    Output = 1,
    /// Exit status.
    Status = 3,
}

/// Whether the exec channel exists.
pub fn has_exec() -> bool {
    in32(EXEC_MAGIC) == MAGIC
}

/// Sends a frame on the exec channel.
pub fn send(kind: Frame, payload: &[u8]) {
    if has_exec() {
        let mut header = [kind as u8; 5];
        header[1..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out_string(EXEC, &header);
        out_string(EXEC, payload);
    }
}

/// COM1 and the exec channel together.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {}
            out8(COM1, byte);
        }
        send(Frame::Output, text.as_bytes());
        Ok(())
    }
}

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}
