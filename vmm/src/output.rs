//! Where the guest's output goes: the console ring, line by line, and the exec ring, at once.

use alloc::sync::Arc;
use alloc::vec::Vec;

use machine::board::Board;
use runtime::channel::Sender;
use runtime::sync::Mutex;

/// Bytes of console output held back at most.
const HELD_MAX: usize = 512;
/// How long an unfinished line is held back, in milliseconds.
pub const HELD_MS: u64 = 5;
/// Bytes of console output kept for a crash report.
const TAIL: usize = 1024;

/// The system's console, which a machine's serial port and its virtio console share; without a ring, output vanishes.
pub struct Console {
    ring: Option<Sender>,
    tail: Vec<u8>,
}

/// The console and its lock, behind which nobody takes another one.
pub type Shared = Arc<Mutex<Console>>;

impl Console {
    /// The one that the manifest names.
    pub fn open() -> Self {
        Self { ring: Sender::open("console"), tail: Vec::with_capacity(2 * TAIL) }
    }

    /// Sends all of `bytes`, and waits for as long as that takes: the guest stops meanwhile, it loses nothing.
    fn send(&mut self, bytes: &[u8]) {
        if let Some(ring) = &mut self.ring {
            // A ring that its peer broke swallows output; the serial program has said so.
            let _ = ring.send_all(bytes, 0);
        }
        if self.tail.len() + bytes.len() > 2 * TAIL {
            let excess = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..excess);
        }
        self.tail.extend_from_slice(bytes);
    }

    /// The last of the console's output.
    pub fn tail(&self) -> &[u8] {
        &self.tail[self.tail.len().saturating_sub(TAIL)..]
    }
}

/// One device's output to the console, line by line: so lines of several stay whole.
pub struct Lines {
    console: Shared,
    held: Vec<u8>,
}

impl Lines {
    /// Those of one device.
    pub fn new(console: Shared) -> Self {
        Self { console, held: Vec::with_capacity(HELD_MAX) }
    }

    /// Takes output, at most half of what is held back.
    pub fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= HELD_MAX || bytes.contains(&b'\n') {
            self.flush();
        }
    }

    /// Whether an unfinished line is held back.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Sends what was held back.
    pub fn flush(&mut self) {
        if self.holds() {
            self.console.lock().send(&self.held);
            self.held.clear();
        }
    }
}

/// The output of a board; without an exec ring, what goes there vanishes.
pub struct Output {
    /// That of its serial port.
    pub serial: Lines,
    exec: Option<Sender>,
}

impl Output {
    /// To the rings that the manifest names.
    pub fn open(console: Shared) -> Self {
        Self { serial: Lines::new(console), exec: Sender::open("exec") }
    }

    /// Takes what the devices put out. True if anything was taken: the devices may have raised an interrupt.
    pub fn take(&mut self, board: &mut Board) -> bool {
        let mut taken = false;
        let mut buffer = [0; 256];
        while board.serial_output_len() != 0 {
            let count = board.drain_serial(&mut buffer);
            taken = true;
            self.serial.take(&buffer[..count]);
        }
        while board.exec_len() != 0 {
            let count = board.drain_exec(&mut buffer);
            taken = true;
            if let Some(exec) = &mut self.exec {
                // As for the console.
                let _ = exec.send_all(&buffer[..count], 0);
            }
        }
        while board.drain_debug(&mut buffer) != 0 {}
        taken
    }
}
