//! An NVMe controller that no driver of Linux' has, told to read and write memory at physical addresses, whosever they are.
//!
//! NVM Express 1.4: 3.1 (registers), 4.2, 4.6 (queue entries), 5.15 (Identify), 5.21 (Set Features).
#![allow(unsafe_code)] // The registers.

use core::ffi::CStr;
use core::fmt::Write;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::linux;
use crate::{Failure, StandardOutput};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Entries of each queue.
const ENTRIES: usize = 64;
/// Looks at something that should come.
const PATIENCE: u32 = 1 << 28;

/// Registers.
mod register {
    pub const CONFIGURATION: usize = 0x14;
    pub const STATUS: usize = 0x1c;
    pub const QUEUE_SIZES: usize = 0x24;
    pub const SUBMISSIONS: usize = 0x28;
    pub const COMPLETIONS: usize = 0x30;
    pub const SUBMITTED: usize = 0x1000;
    pub const COMPLETED: usize = 0x1004;
}

/// Admin commands: the operation, and its first own word.
const IDENTIFY_CONTROLLER: (u32, u32) = (0x06, 1);
const SET_TIMESTAMP: (u32, u32) = (0x09, 0x0e);

#[repr(C)]
struct Words([AtomicU32; 1024]);

/// The controller and its queue of admin commands.
struct Controller {
    registers: *mut u8,
    submissions: &'static Words,
    completions: &'static Words,
    /// Commands sent.
    count: usize,
}

fn page() -> Result<(&'static Words, u64), Failure> {
    let page = linux::shared_page::<Words>().map_err(|errno| Failure::Linux("get memory", errno))?;
    // Written, it has a frame.
    page.0[0].store(0, Ordering::SeqCst);
    let mut entry = [0; 8];
    let at = page as *const Words as u64 / PAGE * 8;
    let map = linux::open(c"/proc/self/pagemap").map_err(|errno| Failure::Linux("open the page map", errno))?;
    linux::read_at(map, &mut entry, at).map_err(|errno| Failure::Linux("read the page map", errno))?;
    linux::close(map);
    // Bits 54:0: the frame's number.
    Ok((page, (u64::from_le_bytes(entry) & ((1 << 55) - 1)) * PAGE))
}

impl Controller {
    fn open(file: &CStr) -> Result<Self, Failure> {
        let file = linux::open_shared(file).map_err(|errno| Failure::Linux("open the registers", errno))?;
        let registers = linux::map(file, 2 * PAGE).map_err(|errno| Failure::Linux("map the registers", errno))?;
        let ((submissions, first), (completions, second)) = (page()?, page()?);
        let controller = Self { registers, submissions, completions, count: 0 };
        controller.enable(false)?;
        let size = ENTRIES as u32 - 1;
        controller.set(register::QUEUE_SIZES, size << 16 | size);
        for (at, address) in [(register::SUBMISSIONS, first), (register::COMPLETIONS, second)] {
            controller.set(at, address as u32);
            controller.set(at + 4, (address >> 32) as u32);
        }
        controller.enable(true)?;
        Ok(controller)
    }

    fn set(&self, at: usize, value: u32) {
        // SAFETY: a register, inside of the mapping.
        unsafe { write_volatile(self.registers.add(at).cast(), value) };
    }

    fn enable(&self, on: bool) -> Result<(), Failure> {
        /// Entries of 64 and 16 bytes.
        const SIZES: u32 = 6 << 16 | 4 << 20;
        self.set(register::CONFIGURATION, SIZES | u32::from(on));
        // SAFETY: a register, inside of the mapping.
        let ready = || unsafe { read_volatile(self.registers.add(register::STATUS).cast::<u32>()) } & 1 != 0;
        (0..PATIENCE).find(|_| ready() == on).map(drop).ok_or(Failure::Device)
    }

    /// Has it do a command with `address`; the status, 0: success.
    fn run(&mut self, (operation, word): (u32, u32), address: u64) -> Result<u32, Failure> {
        let (slot, turn) = (self.count % ENTRIES, self.count / ENTRIES);
        let mut command = [0u32; 16];
        (command[0], command[10]) = (operation | (slot as u32) << 16, word);
        (command[6], command[7]) = (address as u32, (address >> 32) as u32);
        for (index, word) in command.into_iter().enumerate() {
            self.submissions.0[16 * slot + index].store(word, Ordering::SeqCst);
        }
        self.count += 1;
        let next = (self.count % ENTRIES) as u32;
        self.set(register::SUBMITTED, next);
        // The phase bit is 1 in the first turn.
        let phase = 1 - (turn & 1) as u32;
        let mut status = (0..PATIENCE).map(|_| self.completions.0[4 * slot + 3].load(Ordering::SeqCst));
        let status = status.find(|status| status >> 16 & 1 == phase).ok_or(Failure::Device)?;
        self.set(register::COMPLETED, next);
        Ok(status >> 17)
    }
}

/// Lets the controller whose registers are `file` write to, or read from, `count` addresses, `step` bytes apart, from `first`
/// on, after a page of this process' own, which shows that it can. What it says of the others means nothing: emulated
/// ones say that all went well.
pub fn run(write: bool, file: &CStr, first: u64, step: u64, count: u64) -> Result<u8, Failure> {
    let mut controller = Controller::open(file)?;
    let (own, address) = page()?;
    let status = controller.run(IDENTIFY_CONTROLLER, address)?;
    // Words 1 to 5 are the serial number, 6 and up the model.
    let model = own.0[6..8].iter().map(|word| word.load(Ordering::SeqCst));
    let _ = write!(StandardOutput, "own memory: status {status}, model ");
    for byte in model.flat_map(u32::to_le_bytes) {
        let _ = write!(StandardOutput, "{}", char::from(byte));
    }
    let command = if write { IDENTIFY_CONTROLLER } else { SET_TIMESTAMP };
    for index in 0..count {
        controller.run(command, first + index * step)?;
    }
    let _ = writeln!(StandardOutput, "; {count} commands");
    Ok(0)
}
