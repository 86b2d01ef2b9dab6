//! Where the guest's output goes: the console ring, line by line, and the exec ring, at once.

use alloc::vec::Vec;

use machine::board::Board;
use runtime::channel::Sender;

/// Bytes of console output held back at most.
const HELD_MAX: usize = 512;
/// How long an unfinished line is held back, in milliseconds.
pub const HELD_MS: u64 = 5;
/// Bytes of console output kept for a crash report.
const TAIL: usize = 1024;

/// The outgoing rings of one machine; without one, output vanishes.
pub struct Output {
    console: Option<Sender>,
    exec: Option<Sender>,
    held: Vec<u8>,
    tail: Vec<u8>,
}

impl Output {
    /// The rings that the manifest names.
    pub fn open() -> Self {
        Self {
            console: Sender::open("console"),
            exec: Sender::open("exec"),
            held: Vec::with_capacity(HELD_MAX),
            tail: Vec::with_capacity(2 * TAIL),
        }
    }

    /// Takes what the devices put out. True if anything was taken: the devices may have raised an interrupt.
    pub fn take(&mut self, board: &mut Board) -> bool {
        let mut taken = false;
        let mut buffer = [0; 256];
        while board.serial_output_len() != 0 {
            let count = board.drain_serial(&mut buffer);
            taken = true;
            self.held.extend_from_slice(&buffer[..count]);
            if self.held.len() >= HELD_MAX || buffer[..count].contains(&b'\n') {
                self.flush();
            }
        }
        while board.exec_len() != 0 {
            let count = board.drain_exec(&mut buffer);
            taken = true;
            if let Some(exec) = &mut self.exec {
                // A ring that its peer broke swallows output; the serial program has said so.
                let _ = exec.send_all(&buffer[..count], 0);
            }
        }
        while board.drain_debug(&mut buffer) != 0 {}
        taken
    }

    /// Whether an unfinished line is held back.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Sends what was held back.
    pub fn flush(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if let Some(console) = &mut self.console {
            let _ = console.send_all(&self.held, 0);
        }
        if self.tail.len() + self.held.len() > 2 * TAIL {
            let excess = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..excess);
        }
        self.tail.extend_from_slice(&self.held);
        self.held.clear();
    }

    /// The last of the console's output.
    pub fn tail(&self) -> &[u8] {
        &self.tail[self.tail.len().saturating_sub(TAIL)..]
    }
}
