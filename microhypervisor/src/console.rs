#![allow(unsafe_code)]
//! The kernel's log: the memory-buffer console (NOVA C.1), and COM1 until user space takes its ports.
//!
//! Unsafe: writes the shared buffer, whose reader is user code that is not trusted.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use x86_64::instructions::port::Port;

use crate::cpu::Cpu;
use crate::memory::{KERNEL, Shared};
use crate::registers;

/// First I/O port of COM1.
pub const UART: u16 = 0x3f8;
/// Frames of the memory-buffer console.
const FRAMES: usize = 4;
const HEADER: usize = 8;
const SIZE: u32 = (FRAMES * 4096 - HEADER) as u32;

static BUFFER: Shared<[u8; FRAMES * 4096]> = Shared::new([0; FRAMES * 4096]);
static WRITER: Mutex<u32> = Mutex::new(0);
/// As long as user space has not taken the UART. After that the kernel writes to memory only, but for a fatal report.
pub static UART_OURS: AtomicBool = AtomicBool::new(true);
static UART_PRESENT: AtomicBool = AtomicBool::new(false);

/// Physical range of the memory-buffer console.
pub fn range() -> (u64, u64) {
    let start = BUFFER.get() as u64 - KERNEL;
    (start, start + (FRAMES * 4096) as u64)
}

/// Programs the UART for 115200 baud, 8N1, if there is one.
pub fn init() {
    let port = |offset| Port::<u8>::new(UART + offset);
    // SAFETY: COM1's registers, PC16550D section 8; nobody else uses them yet.
    unsafe {
        port(7).write(0x5a);
        if port(7).read() != 0x5a {
            return;
        }
        for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
            port(offset).write(value);
        }
    }
    UART_PRESENT.store(true, Ordering::Relaxed);
}

/// Waits for a bit of the line status; not for ever: a dead UART must not hang the kernel.
fn wait_for(status: u8) {
    // SAFETY: reads the line status register of COM1.
    let ready = |_: &u32| unsafe { Port::<u8>::new(UART + 5).read() } & status != 0;
    let _ = (0..1_000_000).find(ready);
}

/// Waits until the UART has sent everything, so that a machine that stops now has shown it.
pub fn drain() {
    if UART_PRESENT.load(Ordering::Relaxed) {
        wait_for(0x40);
    }
}

/// Where it writes next, and whether it looks at pending interrupts meanwhile: a line takes time.
struct Writer<'a>(&'a mut u32, bool);

impl Writer<'_> {
    fn put(&mut self, byte: u8) {
        let base = BUFFER.get().cast::<u8>();
        // SAFETY: indices stay below SIZE: ours because we keep it, the reader's is only compared and replaced.
        unsafe {
            let (read, write) = (base.cast::<u32>(), base.cast::<u32>().add(1));
            base.add(HEADER + *self.0 as usize).write_volatile(byte);
            *self.0 = (*self.0 + 1) % SIZE;
            if read.read_volatile() == *self.0 {
                read.write_volatile((*self.0 + 1) % SIZE);
            }
            write.write_volatile(*self.0);
        }
        if UART_OURS.load(Ordering::Relaxed) && UART_PRESENT.load(Ordering::Relaxed) {
            wait_for(0x20);
            // SAFETY: the transmit holding register is empty.
            unsafe { Port::<u8>::new(UART).write(byte) };
        }
    }
}

impl Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        if self.1 {
            registers::interrupt_window();
        }
        Ok(())
    }

    /// ASCII only, which all messages are.
    fn write_char(&mut self, character: char) -> fmt::Result {
        self.put(character as u8);
        Ok(())
    }
}

/// Writes one line and signals it.
pub fn line(arguments: fmt::Arguments) {
    let busy = Cpu::this().sc.get().is_some();
    let _ = Writer(&mut WRITER.lock(), busy).write_fmt(format_args!("kilonova: {arguments}\r\n"));
    crate::interrupt::signal_console();
}

/// Like [`line()`], for the last words: takes the UART, ignores who holds the lock, signals nobody.
pub fn last_words(arguments: fmt::Arguments) {
    UART_OURS.store(true, Ordering::Relaxed);
    let mut position = WRITER.try_lock().map_or(0, |guard| *guard);
    let _ = Writer(&mut position, false).write_fmt(format_args!("\r\nkilonova: fatal: {arguments}\r\n"));
    drain();
}

/// Writes a line to the kernel's log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}
