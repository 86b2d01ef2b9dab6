//! Frames of the exec channel: a type, the payload's length (u32, little-endian), the payload.

/// The protocol's version.
const VERSION: u32 = 1;
const HEADER: usize = 5;
/// Most payload of one frame.
const LONGEST: usize = 64 << 10;

/// What a frame carries.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Kind {
    /// The agent runs: the protocol's version.
    Hello = 0,
    /// Bytes of the command's standard output.
    Output = 1,
    /// Bytes of its standard error.
    Error = 2,
    /// Its exit status.
    Status = 3,
}

/// One frame in contiguous memory.
pub struct Frame {
    bytes: [u8; HEADER + LONGEST],
}

impl Frame {
    /// Room for a frame.
    pub const fn new() -> Self {
        Self { bytes: [0; HEADER + LONGEST] }
    }

    /// Where the payload goes.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..]
    }

    /// The frame around the first `length` bytes of the payload.
    pub fn seal(&mut self, kind: Kind, length: usize) -> &[u8] {
        self.bytes[0] = kind as u8;
        self.bytes[1..HEADER].copy_from_slice(&(length as u32).to_le_bytes());
        &self.bytes[..HEADER + length]
    }

    fn word(&mut self, kind: Kind, word: u32) -> &[u8] {
        self.payload()[..4].copy_from_slice(&word.to_le_bytes());
        self.seal(kind, 4)
    }

    /// The first frame.
    pub fn hello(&mut self) -> &[u8] {
        self.word(Kind::Hello, VERSION)
    }

    /// The last frame.
    pub fn status(&mut self, status: u8) -> &[u8] {
        self.word(Kind::Status, status.into())
    }
}
