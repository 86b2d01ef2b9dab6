//! The Linux system calls that the agent makes (x86-64 numbers; man-pages section 2).
#![allow(unsafe_code)] // System calls take addresses.

use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr;
use core::sync::atomic::AtomicU32;

/// A file descriptor.
pub type Descriptor = i32;
/// A process.
pub type Process = i32;

/// Standard input.
pub const STANDARD_INPUT: Descriptor = 0;
/// Standard output.
pub const STANDARD_OUTPUT: Descriptor = 1;
/// Standard error.
pub const STANDARD_ERROR: Descriptor = 2;

/// `O_CLOEXEC`.
const CLOSE_ON_EXEC: usize = 0o2000000;

/// `POLLIN`.
pub const READABLE: i16 = 1;

/// An error of a system call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// A signal came before anything happened.
    pub const INTERRUPTED: Self = Self(4);
    /// Nothing there now.
    pub const AGAIN: Self = Self(11);
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            1 => formatter.write_str("operation not permitted"),
            2 => formatter.write_str("no such file"),
            8 => formatter.write_str("not executable"),
            12 => formatter.write_str("out of memory"),
            13 => formatter.write_str("permission denied"),
            38 => formatter.write_str("not in this Linux"),
            number => write!(formatter, "error {number}"),
        }
    }
}

/// What [`poll`] waits for, and what came: `struct pollfd`.
#[repr(C)]
pub struct Poll {
    /// Whose; negative: nobody's.
    pub descriptor: Descriptor,
    /// What to wait for.
    pub events: i16,
    /// What came, also when nobody asked: hang-up, error.
    pub came: i16,
}

/// Makes a system call.
///
/// # Safety
/// Addresses among the arguments must be valid for what the call does with them.
unsafe fn call(number: usize, [a, b, c, d]: [usize; 4]) -> Result<usize, Errno> {
    // SAFETY: the caller answers for the addresses.
    unsafe { call_with_six(number, [a, b, c, d, 0, 0]) }
}

/// Makes a system call.
///
/// # Safety
/// See [`call`].
unsafe fn call_with_six(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the caller answers for the addresses; Linux keeps all registers but these.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, out("rcx") _, out("r11") _, options(nostack));
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Makes a call again as long as signals interrupt it.
fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTERRUPTED) => {}
            result => return result,
        }
    }
}

/// Reads what is there; no bytes: the end.
pub fn read(from: Descriptor, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the call writes into the buffer only.
    uninterrupted(|| unsafe { call(0, [from as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0]) })
}

/// Writes all bytes.
pub fn write_all(to: Descriptor, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: the call reads these bytes only.
        let written = uninterrupted(|| unsafe { call(1, [to as usize, bytes.as_ptr() as usize, bytes.len(), 0]) })?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Opens a file for reading.
pub fn open(path: &CStr) -> Result<Descriptor, Errno> {
    // SAFETY: the path ends in NUL.
    unsafe { call(2, [path.as_ptr() as usize, CLOSE_ON_EXEC, 0, 0]) }.map(|descriptor| descriptor as Descriptor)
}

/// Closes a descriptor, which is gone even if this fails.
pub fn close(descriptor: Descriptor) {
    // SAFETY: no addresses.
    let _ = unsafe { call(3, [descriptor as usize, 0, 0, 0]) };
}

/// Waits until something comes, without end or not at all.
pub fn poll(of: &mut [Poll], wait: bool) -> Result<usize, Errno> {
    let timeout = if wait { -1isize } else { 0 } as usize;
    // SAFETY: the call reads and writes these entries only.
    uninterrupted(|| unsafe { call(7, [of.as_mut_ptr() as usize, of.len(), timeout, 0]) })
}

/// Makes one descriptor a copy of another that survives `execve`.
pub fn duplicate(from: Descriptor, to: Descriptor) -> Result<(), Errno> {
    // SAFETY: no addresses.
    uninterrupted(|| unsafe { call(33, [from as usize, to as usize, 0, 0]) }).map(|_| ())
}

/// A child that goes on from here (`None`), and its number.
pub fn fork() -> Result<Option<Process>, Errno> {
    // SAFETY: the child has memory of its own, and there is one thread.
    unsafe { call(57, [0; 4]) }.map(|child| (child != 0).then_some(child as Process))
}

/// Turns the process into a program; returns when that fails. Both lists end in null.
pub fn execute(path: &CStr, arguments: &[*const c_char], environment: &[*const c_char]) -> Errno {
    debug_assert!([arguments, environment].iter().all(|list| list.last() == Some(&ptr::null())));
    // SAFETY: path and strings end in NUL, the lists in null.
    let result =
        unsafe { call(59, [path.as_ptr() as usize, arguments.as_ptr() as usize, environment.as_ptr() as usize, 0]) };
    result.err().unwrap_or(Errno(0))
}

/// Ends the process.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: no addresses.
        let _ = unsafe { call(60, [status.into(), 0, 0, 0]) };
    }
}

/// Waits for a child's end; gives its exit status, 128 + number when a signal ended it.
pub fn wait(child: Process) -> Result<u8, Errno> {
    let mut status = 0u32;
    // SAFETY: the call writes the status only.
    uninterrupted(|| unsafe { call(61, [child as usize, &raw mut status as usize, 0, 0]) })?;
    let signal = status as u8 & 0x7f;
    Ok(if signal == 0 { (status >> 8) as u8 } else { 128 + signal })
}

/// Sets the I/O privilege level of this process.
pub fn iopl(level: u8) -> Result<(), Errno> {
    // SAFETY: no addresses.
    unsafe { call(172, [level.into(), 0, 0, 0]) }.map(|_| ())
}

/// A page of zeros that this process shares with the children it will fork, for ever.
pub fn shared_page<T>() -> Result<&'static T, Errno> {
    const {
        assert!(size_of::<T>() <= 4096);
    }
    const READ_WRITE: usize = 3;
    const SHARED_ANONYMOUS: usize = 0x21;
    // SAFETY: Linux chooses the address.
    let page = unsafe { call_with_six(9, [0, 4096, READ_WRITE, SHARED_ANONYMOUS, usize::MAX, 0]) }?;
    // SAFETY: it is never unmapped; the types it is made for consist of atomic integers, for which zero is a value.
    Ok(unsafe { &*(page as *const T) })
}

/// Reads at an offset; all of it, or an error.
pub fn read_at(from: Descriptor, buffer: &mut [u8], offset: u64) -> Result<(), Errno> {
    let (place, length) = (buffer.as_mut_ptr() as usize, buffer.len());
    // SAFETY: the call writes into the buffer only.
    let read = uninterrupted(|| unsafe { call(17, [from as usize, place, length, offset as usize]) })?;
    if read == length { Ok(()) } else { Err(Errno(0)) }
}

/// Maps the first `length` bytes of a file or a device, to be read and written, for ever.
pub fn map(file: Descriptor, length: u64) -> Result<*mut u8, Errno> {
    const READ_WRITE: usize = 3;
    const SHARED: usize = 1;
    // SAFETY: Linux chooses the address.
    let place = unsafe { call_with_six(9, [0, length as usize, READ_WRITE, SHARED, file as usize, 0]) }?;
    Ok(place as *mut u8)
}

/// Seconds of the monotonic clock.
pub fn seconds() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the call writes both words only.
    let _ = unsafe { call(228, [1, time.as_mut_ptr() as usize, 0, 0]) };
    time[0]
}

/// Has this process run on one CPU.
pub fn run_on(cpu: usize) -> Result<(), Errno> {
    let mask = 1u64 << cpu;
    // SAFETY: the call reads the mask only.
    unsafe { call(203, [0, 8, &raw const mask as usize, 0]) }.map(|_| ())
}

/// Sleeps until someone wakes those who wait at `word`, unless it is no longer `value`.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    // SAFETY: the call reads the word only.
    let _ = unsafe { call(202, [word.as_ptr() as usize, 0, value as usize, 0]) };
}

/// Wakes all who wait at `word`.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the address only names the word.
    let _ = unsafe { call(202, [word.as_ptr() as usize, 1, i32::MAX as usize, 0]) };
}

/// A pipe's reading and writing end, both closed by `execve`.
pub fn pipe() -> Result<[Descriptor; 2], Errno> {
    let mut ends = [-1; 2];
    // SAFETY: the call writes both ends only.
    unsafe { call(293, [ends.as_mut_ptr() as usize, CLOSE_ON_EXEC, 0, 0]) }?;
    Ok(ends)
}

/// A descriptor that is readable when a child has ended (Linux 5.3).
pub fn process_descriptor(child: Process) -> Result<Descriptor, Errno> {
    // SAFETY: no addresses.
    unsafe { call(434, [child as usize, 0, 0, 0]) }.map(|descriptor| descriptor as Descriptor)
}

/// A socket for UDP datagrams to and from `port` of `host`.
pub fn datagrams(host: [u8; 4], port: u16) -> Result<Descriptor, Errno> {
    const INTERNET: usize = 2;
    const DATAGRAMS: usize = 2;
    let [high, low] = port.to_be_bytes();
    // `struct sockaddr_in`.
    let mut address = [INTERNET as u8, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    address[4..8].copy_from_slice(&host);
    // SAFETY: no addresses.
    let socket = unsafe { call(41, [INTERNET, DATAGRAMS, 0, 0]) }?;
    // SAFETY: the call reads these bytes only.
    unsafe { call(42, [socket, address.as_ptr() as usize, address.len(), 0]) }?;
    Ok(socket as Descriptor)
}

/// `O_RDWR`, `O_DIRECT`.
const READ_WRITE_DIRECT: usize = 0o2 | 0o40000;

/// A request of [`io_submit`]: `struct iocb`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Control {
    tag: u64,
    key: u32,
    flags: u32,
    operation: u16,
    priority: u16,
    descriptor: Descriptor,
    buffer: u64,
    length: u64,
    offset: u64,
    reserved: [u64; 2],
}

impl Control {
    /// None.
    pub const NONE: Self = Self::new(0, false, 0, 0, 0, 0);

    /// Reads or writes `length` bytes at `offset`; `tag` comes back with the answer.
    pub const fn new(tag: u64, write: bool, descriptor: Descriptor, buffer: u64, length: usize, offset: u64) -> Self {
        let (operation, length) = (write as u16, length as u64);
        Self { tag, key: 0, flags: 0, operation, priority: 0, descriptor, buffer, length, offset, reserved: [0; 2] }
    }

    /// Makes durable what was written: `IOCB_CMD_FDSYNC`.
    pub const fn flush(tag: u64, descriptor: Descriptor) -> Self {
        Self { operation: 3, ..Self::new(tag, false, descriptor, 0, 0, 0) }
    }

    /// A write that has ended only when it is durable: `RWF_DSYNC`.
    pub const fn durable(self) -> Self {
        Self { flags: 2, ..self }
    }
}

/// An answer: `struct io_event`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Event {
    /// The request's.
    pub tag: u64,
    control: u64,
    /// Bytes, or minus the error's number.
    pub result: i64,
    more: i64,
}

impl Event {
    /// None.
    pub const NONE: Self = Self { tag: 0, control: 0, result: 0, more: 0 };
}

/// A set of requests on their way.
#[derive(Clone, Copy)]
pub struct Requests(usize);

/// Opens a file for reading and writing past the page cache.
pub fn open_direct(path: &CStr) -> Result<Descriptor, Errno> {
    // SAFETY: the path ends in NUL.
    unsafe { call(2, [path.as_ptr() as usize, CLOSE_ON_EXEC | READ_WRITE_DIRECT, 0, 0]) }.map(|one| one as Descriptor)
}

/// Opens a file for reading and writing, by others, too.
pub fn open_shared(path: &CStr) -> Result<Descriptor, Errno> {
    // SAFETY: the path ends in NUL.
    unsafe { call(2, [path.as_ptr() as usize, CLOSE_ON_EXEC | 2, 0, 0]) }.map(|one| one as Descriptor)
}

/// Makes what was written durable.
pub fn synchronize(descriptor: Descriptor) -> Result<(), Errno> {
    // SAFETY: no addresses.
    uninterrupted(|| unsafe { call(74, [descriptor as usize, 0, 0, 0]) }).map(|_| ())
}

/// Room for requests on their way.
pub fn io_setup(most: usize) -> Result<Requests, Errno> {
    let mut set = 0usize;
    // SAFETY: the call writes the set's name.
    unsafe { call(206, [most, &raw mut set as usize, 0, 0]) }.map(|_| Requests(set))
}

/// Sends requests; returns how many it took.
///
/// # Safety
/// The pointers must be valid, and the requests' buffers until they have ended.
pub unsafe fn io_submit(set: Requests, requests: &[*const Control]) -> Result<usize, Errno> {
    // SAFETY: the caller's promise.
    uninterrupted(|| unsafe { call(209, [set.0, requests.len(), requests.as_ptr() as usize, 0]) })
}

/// Waits until at least one request has ended; returns how many have.
pub fn io_getevents(set: Requests, events: &mut [Event]) -> Result<usize, Errno> {
    // SAFETY: the call writes these events only.
    uninterrupted(|| unsafe { call_with_six(208, [set.0, 1, events.len(), events.as_mut_ptr() as usize, 0, 0]) })
}
