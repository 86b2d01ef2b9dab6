//! What programs do, measured by the TSC: in an emulator whose TSC counts instructions that is all that anybody executes
//! for it.
#![allow(unsafe_code)] // The TSC.

use core::arch::x86_64::_rdtsc;
use core::fmt::Write;
use core::hint::black_box;
use core::ptr;

use crate::linux::{self, Errno};
use crate::{Failure, StandardOutput};

/// Programs started.
const PROGRAMS: u64 = 100;
/// Rounds of the loop.
const ROUNDS: u64 = 20_000_000;

/// Measures, and says what it saw.
pub fn run() -> Result<u8, Failure> {
    // The first one has its files read, its pages made.
    start_program()?;
    let started = now();
    (0..PROGRAMS).try_for_each(|_| start_program())?;
    let programs = now() - started;
    let started = now();
    let sum = (0..ROUNDS).fold(0u64, |sum, round| black_box(sum.rotate_left(5) ^ round));
    let rounds = now() - started;
    let _ = writeln!(StandardOutput, "measure fork: {programs}");
    let _ = writeln!(StandardOutput, "measure loop: {rounds}");
    black_box(sum);
    Ok(0)
}

fn now() -> u64 {
    // SAFETY: every 64-bit CPU has it, and Linux lets programs use it.
    unsafe { _rdtsc() }
}

/// Forks, executes busybox' `true`, waits for its end.
fn start_program() -> Result<(), Failure> {
    let failed = |errno: Errno| Failure::Linux("start a program", errno);
    match linux::fork().map_err(failed)? {
        None => {
            linux::execute(c"/bin/true", &[c"true".as_ptr(), ptr::null()], &[ptr::null()]);
            linux::exit(1)
        }
        Some(child) => match linux::wait(child).map_err(failed)? {
            0 => Ok(()),
            status => Err(failed(Errno(status.into()))),
        },
    }
}
