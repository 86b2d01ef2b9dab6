//! Many random 4 KiB requests to a disk at once, past the page cache, with content that tells which block and which turn
//! it is of.
#![allow(unsafe_code)] // Buffers that the kernel reads and writes meanwhile; the TSC.

use core::arch::x86_64::_rdtsc;
use core::ffi::CStr;
use core::fmt::Write;
use core::ptr;

use crate::linux::{self, Control, Event};
use crate::window::Window;
use crate::{Failure, StandardError, StandardOutput};

/// Bytes of a request.
const BLOCK: usize = 4096;
/// Most requests on their way.
pub const DEPTH_MAX: usize = 64;
/// Requests that are counted.
const MEASURED: u64 = 4096;
/// Words of a block.
const WORDS: usize = BLOCK / 8;

/// What is done with each block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It is written.
    Fill,
    /// It is read, and must be what was written.
    Check,
    /// It is read.
    Read,
    /// It is written, with whatever there is.
    Write,
}

#[repr(C, align(4096))]
struct Buffers([[u64; WORDS]; DEPTH_MAX]);

static mut BUFFERS: Buffers = Buffers([[0; WORDS]; DEPTH_MAX]);

/// Word `index` of block `block` in turn `turn`: different for all.
fn content(block: u64, turn: u64, index: u64) -> u64 {
    (block << 32 | turn << 16 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The block of request `number` among `count`, a power of two: each once, in no order.
fn place(number: u64, count: u64, turn: u64) -> u64 {
    let mixed = number.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(turn.wrapping_mul(0x9e37_79b9));
    mixed & (count - 1)
}

/// The job.
pub struct Job {
    /// What is done.
    pub work: Work,
    /// Requests on their way, 1 to [`DEPTH_MAX`].
    pub depth: usize,
    /// Blocks, a power of two: all of them in turn.
    pub blocks: u64,
    /// Which turn it is, below 2^16; part of the content.
    pub turn: u64,
    /// What whoever counts instructions knows it by.
    pub window: Option<Window>,
}

impl Job {
    fn control(&self, slot: usize, number: u64, descriptor: linux::Descriptor) -> Control {
        let block = place(number, self.blocks, self.turn);
        // SAFETY: one thread; the slot's last request has ended.
        let buffer = unsafe { &mut (*ptr::addr_of_mut!(BUFFERS)).0[slot] };
        if self.work == Work::Fill {
            let words = (0..).zip(buffer.iter_mut());
            words.for_each(|(index, word)| *word = content(block, self.turn, index));
        }
        let tag = (block << 8) | slot as u64;
        let write = matches!(self.work, Work::Fill | Work::Write);
        Control::new(tag, write, descriptor, buffer.as_mut_ptr() as u64, BLOCK, block * BLOCK as u64)
    }

    /// Whether the buffer of `slot` has what was written.
    fn is_right(&self, slot: usize, block: u64) -> bool {
        // SAFETY: as in `control`.
        let buffer = unsafe { &(*ptr::addr_of!(BUFFERS)).0[slot] };
        (0..).zip(buffer).all(|(index, word)| *word == content(block, self.turn, index))
    }

    /// Does it; the exit status, 1 if a block was not what it should be.
    pub fn run(&self, file: &CStr) -> Result<u8, Failure> {
        let failed = |what| move |errno| Failure::Linux(what, errno);
        let descriptor = linux::open_direct(file).map_err(failed("open the disk"))?;
        let queue = linux::io_setup(DEPTH_MAX).map_err(failed("set up the requests"))?;
        let started = now();
        let mut next = 0;
        let mut controls = [Control::NONE; DEPTH_MAX];
        let mut waiting = [ptr::null::<Control>(); DEPTH_MAX];
        let mut free = self.depth.min(DEPTH_MAX);
        let mut slots: [usize; DEPTH_MAX] = core::array::from_fn(|slot| slot);
        let mut ended = 0;
        self.window.iter().for_each(Window::begin);
        while ended < self.blocks {
            let mut count = 0;
            while free != 0 && next < self.blocks {
                free -= 1;
                let slot = slots[free];
                controls[slot] = self.control(slot, next, descriptor);
                waiting[count] = &raw const controls[slot];
                (next, count) = (next + 1, count + 1);
            }
            let mut sent = 0;
            while sent < count {
                // SAFETY: each has a buffer of its own until it ends.
                sent += unsafe { linux::io_submit(queue, &waiting[sent..count]) }.map_err(failed("send requests"))?;
            }
            let mut events = [Event::NONE; DEPTH_MAX];
            let came = linux::io_getevents(queue, &mut events).map_err(failed("wait for requests"))?;
            for event in &events[..came] {
                let (block, slot) = (event.tag >> 8, (event.tag & 0xff) as usize);
                let whole = event.result == BLOCK as i64;
                if !whole || (self.work == Work::Check && !self.is_right(slot, block)) {
                    let _ = writeln!(StandardError, "agent: block {block} is wrong (result {})", event.result);
                    return Ok(1);
                }
                slots[free] = slot;
                free += 1;
                ended += 1;
            }
        }
        self.window.iter().for_each(Window::end);
        if self.work == Work::Fill {
            linux::synchronize(descriptor).map_err(failed("flush the disk"))?;
        }
        let _ = writeln!(StandardOutput, "disk: {} requests, {} ticks", self.blocks, now() - started);
        Ok(0)
    }
}

/// Reads and writes, one request at a time and 32, each once to warm up and once to be counted.
pub fn measure(file: &CStr) -> Result<u8, Failure> {
    let jobs = [
        (Work::Read, 1, Window::ReadAlone),
        (Work::Read, 32, Window::ReadMany),
        (Work::Write, 1, Window::WriteAlone),
        (Work::Write, 32, Window::WriteMany),
    ];
    for (work, depth, window) in jobs {
        Job { work, depth, blocks: 256, turn: 0, window: None }.run(file)?;
        Job { work, depth, blocks: MEASURED, turn: 1, window: Some(window) }.run(file)?;
    }
    Ok(0)
}

fn now() -> u64 {
    // SAFETY: every 64-bit CPU has it, and Linux lets programs use it.
    unsafe { _rdtsc() }
}
