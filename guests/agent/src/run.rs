//! What the arguments ask for.

use core::ffi::CStr;

use crate::channel::{Channel, Frame, mark};
use crate::linux::{self, Arguments, EINTR, POLLIN, PollEntry};

/// Version of the frames.
const VERSION: u32 = 1;
/// Exit status of a command that could not be started.
const NOT_STARTED: i32 = 127;

/// The program: its exit status.
pub fn run(arguments: Arguments) -> i32 {
    match arguments.get(1) {
        Some(word) if word == c"mark" => milestone(arguments),
        Some(file) => command(file, arguments),
        None => {
            linux::write(2, b"agent: usage: agent FILE | agent mark N\n");
            2
        }
    }
}

fn milestone(arguments: Arguments) -> i32 {
    let number = arguments.get(2).and_then(|word| word.to_str().ok()).and_then(|word| word.parse().ok());
    match number {
        Some(number) if mark(number) => 0,
        Some(_) => 1,
        None => 2,
    }
}

/// Where the frames go: the channel, or without one this program's own descriptors.
fn send(channel: &Option<Channel>, kind: Frame, bytes: &[u8]) {
    match (channel, kind) {
        (Some(channel), kind) => channel.send(kind, bytes),
        (None, Frame::Output) => linux::write(1, bytes),
        (None, Frame::Error) => linux::write(2, bytes),
        (None, _) => {}
    }
}

fn command(file: &CStr, arguments: Arguments) -> i32 {
    let channel = Channel::open();
    send(&channel, Frame::Ready, &VERSION.to_le_bytes());
    let status = start(file, arguments, &channel).unwrap_or(NOT_STARTED);
    send(&channel, Frame::Status, &status.to_le_bytes());
    status
}

/// Runs the shell; its status as shells count.
fn start(file: &CStr, arguments: Arguments, channel: &Option<Channel>) -> Option<i32> {
    let (output, error) = (linux::pipe()?, linux::pipe()?);
    let child = linux::fork();
    if child < 0 {
        return None;
    }
    if child == 0 {
        linux::duplicate(output[1], 1);
        linux::duplicate(error[1], 2);
        for end in output.into_iter().chain(error) {
            linux::close(end);
        }
        linux::execute(c"/bin/sh", &[Some(c"sh"), Some(file), None], arguments.environment());
        linux::write(2, b"agent: cannot start /bin/sh\n");
        linux::exit(NOT_STARTED);
    }
    linux::close(output[1]);
    linux::close(error[1]);
    forward(output[0], error[0], channel);
    let status = linux::wait(child)?;
    Some(match status & 0x7f {
        0 => (status >> 8 & 0xff) as i32,
        signal => 128 + signal as i32,
    })
}

/// Sends what comes out of both pipes until both have ended.
fn forward(output: i32, error: i32, channel: &Option<Channel>) {
    let mut buffer = [0; 32768];
    let entry = |descriptor| PollEntry { descriptor, events: POLLIN, happened: 0 };
    let mut entries = [entry(output), entry(error)];
    while entries.iter().any(|entry| entry.descriptor >= 0) {
        match linux::poll(&mut entries) {
            EINTR => continue,
            result if result < 0 => return,
            _ => {}
        }
        for (entry, kind) in entries.iter_mut().zip([Frame::Output, Frame::Error]) {
            if entry.descriptor < 0 || entry.happened == 0 {
                continue;
            }
            match linux::read(entry.descriptor, &mut buffer) {
                EINTR => {}
                count if count > 0 => send(channel, kind, &buffer[..count as usize]),
                _ => {
                    linux::close(entry.descriptor);
                    entry.descriptor = -1;
                }
            }
        }
    }
}
