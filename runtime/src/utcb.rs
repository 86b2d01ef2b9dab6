//! Access to user thread control blocks (NOVA 4.3).
//!
//! A UTCB belongs to one EC, and the kernel changes it only while that EC is inside ipc_call or ipc_reply. So the
//! EC's own code may hold references into it between its hypercalls, but not across them.
#![allow(unsafe_code)]

use abi::utcb::{Architectural, WORDS};

/// The UTCB of the execution context that runs this code.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Utcb(*mut u64);

impl Utcb {
    /// The UTCB at `address`.
    ///
    /// # Safety
    /// It must be the UTCB of the EC that uses the value, which must not leave that EC.
    pub const unsafe fn new(address: u64) -> Self {
        Self(address as *mut u64)
    }

    /// Word `index` of a regular message; 0 if there is no such word.
    pub fn word(&self, index: usize) -> u64 {
        if index >= WORDS {
            return 0;
        }
        // SAFETY: inside the page, by the check; this EC's own, by construction.
        unsafe { self.0.add(index).read_volatile() }
    }

    /// Sets word `index` of a regular message, if there is such a word.
    pub fn set_word(&mut self, index: usize, value: u64) {
        if index < WORDS {
            // SAFETY: inside the page, by the check; this EC's own, by construction.
            unsafe { self.0.add(index).write_volatile(value) }
        }
    }

    /// Copies `bytes` into the words from `index`, as many as fit; returns how many bytes.
    pub fn put_bytes(&mut self, index: usize, bytes: &[u8]) -> usize {
        let room = WORDS.saturating_sub(index) * 8;
        let bytes = &bytes[..bytes.len().min(room)];
        for (i, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.set_word(index + i, u64::from_le_bytes(word));
        }
        bytes.len()
    }

    /// Copies bytes from the words from `index` into `buffer`, as many as there are; returns how many.
    pub fn get_bytes(&self, index: usize, buffer: &mut [u8]) -> usize {
        let room = WORDS.saturating_sub(index) * 8;
        let count = buffer.len().min(room);
        for (i, chunk) in buffer[..count].chunks_mut(8).enumerate() {
            chunk.copy_from_slice(&self.word(index + i).to_le_bytes()[..chunk.len()]);
        }
        count
    }

    /// The state of an event, in the architectural layout. Only what the message transfer descriptor names is
    /// meaningful. The reference must be given up before this EC's next ipc_call (logging through the parent portal
    /// saves and restores the words that it uses).
    pub fn architectural(&mut self) -> &mut Architectural {
        // SAFETY: the page is this EC's own, aligned and larger than the structure, every bit pattern is valid, and
        // the kernel writes it only inside this EC's IPC.
        unsafe { &mut *self.0.cast::<Architectural>() }
    }
}
