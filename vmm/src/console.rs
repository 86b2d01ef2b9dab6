//! The virtio console's other side: two pipes, and a thread that brings output to the system's console.
//!
//! The vCPU that notifies the device only fills a pipe. The thread empties it, waits for the console as long as it takes,
//! and has the device served when that has output for which there was no room.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use machine::virtio::console::Terminal;
use runtime::sync::{Mutex, Semaphore};
use runtime::syscall::Result;
use runtime::time;

use crate::input;
use crate::output::{HELD_MS, Lines, Shared};
use crate::pipe::Pipe;
use crate::vm;

/// Bytes of output on their way.
const OUTPUT: usize = 1024;

/// What device and threads share.
pub struct Line {
    output: Pipe<OUTPUT>,
    input: Pipe<{ input::CAPACITY }>,
    /// Where output goes; who holds this empties the pipe.
    lines: Mutex<Lines>,
    /// There is output.
    news: Semaphore,
    /// The device has output for which there was no room.
    stalled: AtomicBool,
    /// A driver attends to the device.
    attended: AtomicBool,
}

impl Line {
    /// To this console.
    pub fn new(console: Shared) -> Result<Self> {
        Ok(Self {
            output: Pipe::new(),
            input: Pipe::new(),
            lines: vm::mutex(Lines::new(console))?,
            news: Semaphore::new(0)?,
            stalled: AtomicBool::new(false),
            attended: AtomicBool::new(false),
        })
    }

    /// Whether what is typed is for this device.
    pub fn attended(&self) -> bool {
        self.attended.load(Ordering::Acquire)
    }

    /// Takes what was typed; returns how many bytes. The device is to be served then.
    pub fn give(&self, bytes: &[u8]) -> usize {
        self.input.put(bytes)
    }

    /// Sends all that the device has put out, unfinished lines, too, if `finish` says so. Returns whether one is held
    /// back.
    pub fn drain(&self, finish: bool) -> bool {
        let mut lines = self.lines.lock();
        let mut bytes = [0; 256];
        loop {
            let count = self.output.peek(&mut bytes);
            if count == 0 {
                break;
            }
            // Not out of the pipe before it is in the lines: a driver that gets its buffer back may look for its output.
            lines.take(&bytes[..count]);
            self.output.consume(count);
        }
        if finish {
            lines.flush();
        }
        lines.holds()
    }

    /// The thread; `serve` serves the device.
    pub fn pass(&self, serve: impl Fn()) -> ! {
        // STC value at which an unfinished line goes out; 0: there is none.
        let mut flush_at = 0;
        loop {
            let due = self.news.wait(flush_at) == Ok(false) || flush_at != 0 && time::now() >= flush_at;
            let holds = self.drain(due);
            flush_at = match (holds, flush_at) {
                (false, _) => 0,
                (true, 0) => time::now() + time::ticks_from_ms(HELD_MS),
                (true, at) => at,
            };
            if self.stalled.swap(false, Ordering::SeqCst) {
                serve();
            }
        }
    }
}

/// The device's end.
pub struct End(pub Arc<Line>);

impl Terminal for End {
    fn attend(&mut self, present: bool) {
        self.0.attended.store(present, Ordering::Release);
    }

    fn room(&mut self) -> usize {
        self.0.output.room()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.output.put(bytes);
    }

    fn flush(&mut self, more: bool) {
        if more {
            self.0.stalled.store(true, Ordering::SeqCst);
        }
        if more || self.0.output.waits() {
            self.0.news.up();
        }
    }

    fn get(&mut self, bytes: &mut [u8]) -> usize {
        let count = self.0.input.peek(bytes);
        self.0.input.consume(count);
        count
    }
}
