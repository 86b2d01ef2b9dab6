//! Marks around what is measured, for an emulator that counts the instructions of the whole machine between them: NOPs that
//! no compiler emits.
#![allow(unsafe_code)] // NOPs.

use core::arch::asm;

/// What is measured.
#[derive(Clone, Copy)]
pub enum Window {
    /// Reads, one after the other.
    ReadAlone,
    /// Reads, many at a time.
    ReadMany,
    /// Writes, one after the other.
    WriteAlone,
    /// Writes, many at a time.
    WriteMany,
    /// Frames that come.
    FramesReceived,
    /// Frames that go.
    FramesSent,
}

fn mark<const NUMBER: u8, const WHAT: u8>() {
    // SAFETY: a NOP.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80, {}, {}, 0x4b, 0x4d", const NUMBER, const WHAT) }
}

impl Window {
    /// It begins.
    pub fn begin(&self) {
        self.say::<1>();
    }

    /// It ends.
    pub fn end(&self) {
        self.say::<2>();
    }

    fn say<const WHAT: u8>(self) {
        match self {
            Self::ReadAlone => mark::<1, WHAT>(),
            Self::ReadMany => mark::<2, WHAT>(),
            Self::WriteAlone => mark::<3, WHAT>(),
            Self::WriteMany => mark::<4, WHAT>(),
            Self::FramesReceived => mark::<5, WHAT>(),
            Self::FramesSent => mark::<6, WHAT>(),
        }
    }
}
