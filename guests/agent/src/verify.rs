//! Random reads and writes of random sizes, many at once, past the page cache. Every block tells of which write it is;
//! every read is compared with the last write that was acknowledged.
#![allow(unsafe_code)] // Buffers that the kernel reads and writes meanwhile.

use core::ffi::CStr;
use core::fmt::Write;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::linux::{self, Control, Descriptor, Event, Requests};
use crate::{Failure, Line, StandardError, StandardOutput};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Words of a block.
const WORDS: usize = BLOCK / 8;
/// Blocks of a mebibyte.
const MEBIBYTE: u64 = (1 << 20) / BLOCK as u64;
/// Most mebibytes that are looked after.
pub const MEBIBYTES_MAX: u64 = 1024;
/// Requests on their way.
const DEPTH: usize = 32;
/// Blocks of the longest request.
const LONGEST: usize = 32;
/// One in so many requests is a flush.
const FLUSHES: u64 = 128;
/// One in so many writes must be durable when it is acknowledged.
const DURABLE: u64 = 16;
/// In [`WRITES`]: the block is part of a request on its way.
const BUSY: u32 = 1 << 31;

#[repr(C, align(4096))]
struct Buffers([[[u64; WORDS]; LONGEST]; DEPTH]);

static mut BUFFERS: Buffers = Buffers([[[0; WORDS]; LONGEST]; DEPTH]);

/// The last acknowledged write of each block; 0: none, and the block is zeros.
static WRITES: [AtomicU32; (MEBIBYTES_MAX * MEBIBYTE) as usize] =
    [const { AtomicU32::new(0) }; (MEBIBYTES_MAX * MEBIBYTE) as usize];

/// Word `index` of block `block` after write number `write`. The test on the host knows this formula, too.
fn content(seed: u64, block: u64, write: u32, index: u64) -> u64 {
    match (write, index) {
        (0, _) => 0,
        (_, 0) => u64::from(write) << 32 | block,
        (_, 1) => seed,
        _ => (seed << 56 ^ u64::from(write) << 32 ^ block << 10 ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// What is to be done.
pub struct Job {
    /// Part of the content, and where the random numbers begin; below 256.
    pub seed: u64,
    /// How much of the disk, from its beginning on: 1 to [`MEBIBYTES_MAX`].
    pub mebibytes: u64,
    /// Mebibytes to write at least, at random places, with as much read meanwhile.
    pub written: u64,
    /// Seconds that this takes at least.
    pub seconds: u64,
    /// Whether each acknowledged write is told on standard output: `w NUMBER BLOCK BLOCKS`.
    pub log: bool,
}

impl Job {
    /// Does it, and then reads everything in random order; the exit status, 1 if a block was not what it should be.
    pub fn run(&self, file: &CStr) -> Result<u8, Failure> {
        let failed = |what| move |errno| Failure::Linux(what, errno);
        let descriptor = linux::open_direct(file).map_err(failed("open the disk"))?;
        let queue = linux::io_setup(DEPTH).map_err(failed("set up the requests"))?;
        let mut state = State::new(self, descriptor, queue);
        let started = linux::seconds();
        while state.written < self.written * MEBIBYTE || linux::seconds() - started < self.seconds {
            state.fill(State::random_request)?;
            state.reap()?;
        }
        while state.on_their_way() != 0 {
            state.reap()?;
        }
        linux::synchronize(descriptor).map_err(failed("flush the disk"))?;
        let loaded = linux::seconds();
        while state.checked < state.blocks || state.on_their_way() != 0 {
            state.fill(State::next_check)?;
            state.reap()?;
        }
        let ended = linux::seconds();
        let _ = writeln!(
            StandardOutput,
            "verify: {} MiB written and {} MiB read by {} requests and {} flushes in {} s, all {} MiB read again in {} s, {}",
            state.written / MEBIBYTE,
            (state.read - state.checked) / MEBIBYTE,
            state.requests,
            state.flushes,
            loaded - started,
            self.mebibytes,
            ended - loaded,
            if state.wrong == 0 { "nothing is wrong" } else { "WRONG" },
        );
        Ok((state.wrong != 0).into())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Read,
    Write(u32),
    Flush,
}

/// A request: blocks that nothing else touches meanwhile.
#[derive(Clone, Copy)]
struct Request {
    work: Work,
    block: u64,
    count: usize,
}

struct State<'a> {
    job: &'a Job,
    descriptor: Descriptor,
    queue: Requests,
    blocks: u64,
    random: u64,
    slots: [Option<Request>; DEPTH],
    controls: [Control; DEPTH],
    /// Number of the last write.
    write: u32,
    /// Blocks that were written, read, and, of those, read at the end.
    written: u64,
    read: u64,
    checked: u64,
    requests: u64,
    flushes: u64,
    wrong: u64,
}

impl<'a> State<'a> {
    fn new(job: &'a Job, descriptor: Descriptor, queue: Requests) -> Self {
        let (slots, controls) = ([None; DEPTH], [Control::NONE; DEPTH]);
        let (blocks, random) = (job.mebibytes * MEBIBYTE, job.seed);
        let (write, written, read, checked, requests, flushes, wrong) = (0, 0, 0, 0, 0, 0, 0);
        Self {
            job,
            descriptor,
            queue,
            blocks,
            random,
            slots,
            controls,
            write,
            written,
            read,
            checked,
            requests,
            flushes,
            wrong,
        }
    }

    /// A random number below `bound` (splitmix64).
    fn random(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }

    fn on_their_way(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// A read or write of 1 to [`LONGEST`] blocks, short ones more often, or a flush; none if there is no room.
    fn random_request(&mut self) -> Option<Request> {
        if self.random(FLUSHES) == 0 {
            return Some(Request { work: Work::Flush, block: 0, count: 0 });
        }
        let most = 1 << self.random(LONGEST.ilog2() as u64 + 1);
        let count = 1 + self.random(most);
        let mut places = (0..16).map(|_| self.random(self.blocks - count + 1));
        let block = places.find(|&block| table(block, count as usize).all(|write| write & BUSY == 0))?;
        let work = if self.random(2) == 0 {
            Work::Read
        } else {
            self.write += 1;
            Work::Write(self.write)
        };
        Some(Request { work, block, count: count as usize })
    }

    /// The next read of the last pass: stretches of [`LONGEST`] blocks in no order.
    fn next_check(&mut self) -> Option<Request> {
        let stretches = self.blocks / LONGEST as u64;
        let number = self.checked / LONGEST as u64;
        // Prime, and so without a common divisor with the number of stretches.
        let block = number * 1_000_003 % stretches * LONGEST as u64;
        (number < stretches).then(|| {
            self.checked += LONGEST as u64;
            Request { work: Work::Read, block, count: LONGEST }
        })
    }

    /// Sends as many requests as there is room for.
    fn fill(&mut self, next: impl Fn(&mut Self) -> Option<Request>) -> Result<(), Failure> {
        let mut waiting = [ptr::null::<Control>(); DEPTH];
        let mut count = 0;
        while let Some(slot) = self.slots.iter().position(Option::is_none)
            && let Some(request) = next(self)
        {
            self.controls[slot] = self.control(slot, &request);
            self.slots[slot] = Some(request);
            waiting[count] = &raw const self.controls[slot];
            count += 1;
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: each has a buffer of its own until it ends.
            sent += unsafe { linux::io_submit(self.queue, &waiting[sent..count]) }
                .map_err(|errno| Failure::Linux("send requests", errno))?;
        }
        Ok(())
    }

    fn control(&mut self, slot: usize, request: &Request) -> Control {
        let Request { work, block, count } = *request;
        for place in cells(block, count) {
            place.fetch_or(BUSY, Ordering::Relaxed);
        }
        // SAFETY: one thread; the slot's last request has ended.
        let buffer = unsafe { &mut (*ptr::addr_of_mut!(BUFFERS)).0[slot] };
        if let Work::Write(write) = work {
            for (block, words) in (block..).zip(&mut buffer[..count]) {
                (0..).zip(words).for_each(|(index, word)| *word = content(self.job.seed, block, write, index));
            }
        }
        if work == Work::Flush {
            return Control::flush(slot as u64, self.descriptor);
        }
        let (address, length, offset) = (buffer.as_mut_ptr() as u64, count * BLOCK, block * BLOCK as u64);
        let control = Control::new(slot as u64, work != Work::Read, self.descriptor, address, length, offset);
        if work != Work::Read && self.random(DURABLE) == 0 { control.durable() } else { control }
    }

    /// Waits for requests that end, and looks at what they brought.
    fn reap(&mut self) -> Result<(), Failure> {
        let mut events = [Event::NONE; DEPTH];
        let came =
            linux::io_getevents(self.queue, &mut events).map_err(|errno| Failure::Linux("wait for requests", errno))?;
        for event in &events[..came] {
            let slot = event.tag as usize;
            let Some(request) = self.slots[slot].take() else { continue };
            self.requests += 1;
            if event.result != (request.count * BLOCK) as i64 {
                let (block, result) = (request.block, event.result);
                let _ = writeln!(StandardError, "verify: a request at block {block} ended with {result}");
                self.wrong += 1;
            }
            self.end(slot, &request);
        }
        Ok(())
    }

    fn end(&mut self, slot: usize, request: &Request) {
        let Request { work, block, count } = *request;
        match work {
            Work::Flush => self.flushes += 1,
            Work::Write(write) => {
                self.written += count as u64;
                cells(block, count).iter().for_each(|place| place.store(write, Ordering::Relaxed));
                if self.job.log {
                    let mut line = Line { bytes: [0; 32], length: 0 };
                    let _ = writeln!(line, "w {write} {block} {count}");
                    let _ = linux::write_all(linux::STANDARD_OUTPUT, &line.bytes[..line.length]);
                }
            }
            Work::Read => {
                self.read += count as u64;
                for index in 0..count {
                    let write = cells(block, count)[index].fetch_and(!BUSY, Ordering::Relaxed) & !BUSY;
                    self.compare(slot, index, block + index as u64, write);
                }
            }
        }
    }

    /// Compares block `index` of a buffer with what write number `write` left in block `block`.
    fn compare(&mut self, slot: usize, index: usize, block: u64, write: u32) {
        // SAFETY: one thread; the slot's request has ended.
        let words = unsafe { &(*ptr::addr_of!(BUFFERS)).0[slot][index] };
        let wrong = (0..).zip(words).position(|(index, word)| *word != content(self.job.seed, block, write, index));
        if let Some(at) = wrong {
            let _ = writeln!(
                StandardError,
                "verify: block {block} is not that of write {write}, from word {at} on: block {}, write {}, seed {}",
                words[0] as u32,
                words[0] >> 32,
                words[1],
            );
            self.wrong += 1;
        }
    }
}

fn cells(block: u64, count: usize) -> &'static [AtomicU32] {
    &WRITES[block as usize..][..count]
}

fn table(block: u64, count: usize) -> impl Iterator<Item = u32> {
    cells(block, count).iter().map(|place| place.load(Ordering::Relaxed))
}
