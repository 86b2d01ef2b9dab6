//! The kernel's memory-buffer console (NOVA C.1): what the kernel says after the root task took COM1 goes to the log.
#![allow(unsafe_code)]

use crate::authority::selector;
use crate::window;
use abi::Status;
use abi::capability::Permissions;
use abi::scd::Scd;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use roottask::frames::PhysRange;
use runtime::sync::Semaphore;
use runtime::thread;

/// Bytes before the characters: read index, write index.
const HEADER: usize = 8;
const LINE_MAX: usize = 200;

struct Buffer {
    read: &'static AtomicU32,
    write: &'static AtomicU32,
    characters: &'static [AtomicU8],
    next: usize,
    line: [u8; LINE_MAX],
    length: usize,
}

/// Starts a thread that copies further kernel lines to the log. What is in the buffer already was on COM1.
pub fn start(memory: PhysRange) -> Result<(), Status> {
    if memory.length() as usize <= HEADER {
        return Ok(());
    }
    let address = window::map(memory, Permissions::READ | Permissions::WRITE)?;
    // SAFETY: mapped for ever; the kernel and this program access it by atomics only.
    let mut buffer = unsafe {
        Buffer {
            read: &*address.cast(),
            write: &*address.add(4).cast(),
            characters: core::slice::from_raw_parts(address.add(HEADER).cast(), memory.length() as usize - HEADER),
            next: 0,
            line: [0; LINE_MAX],
            length: 0,
        }
    };
    buffer.next = buffer.write.load(Ordering::Acquire) as usize;
    let signal = Semaphore::from_selector(selector::KERNEL_CONSOLE);
    thread::spawn(Scd { budget: 10, priority: 90, cos: 0 }, move || {
        while signal.wait(0).is_ok() {
            buffer.drain();
        }
    })?;
    Ok(())
}

impl Buffer {
    fn drain(&mut self) {
        let end = self.write.load(Ordering::Acquire) as usize;
        while self.next != end && end < self.characters.len() {
            let byte = self.characters[self.next].load(Ordering::Relaxed);
            self.next = (self.next + 1) % self.characters.len();
            match byte {
                b'\n' => self.flush(),
                b'\r' => {}
                _ => {
                    self.line[self.length] = byte;
                    self.length += 1;
                    if self.length == LINE_MAX {
                        self.flush();
                    }
                }
            }
        }
        self.read.store(self.next as u32, Ordering::Release);
    }

    fn flush(&mut self) {
        let text = core::str::from_utf8(&self.line[..self.length]).unwrap_or("(not text)");
        runtime::log!("{text}");
        self.length = 0;
    }
}
