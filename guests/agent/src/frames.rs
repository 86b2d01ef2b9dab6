//! Bursts of UDP datagrams that fill a frame each, to the network's host and from it.
#![allow(unsafe_code)] // Addresses.

use crate::linux::{self, Descriptor};
use crate::window::Window;
use crate::{Failure, number};
use core::ffi::CStr;

/// The host in QEMU's network for users.
const HOST: [u8; 4] = [10, 0, 2, 2];
/// Bytes of a datagram: with the headers of IP and UDP a packet of 1500.
const LENGTH: usize = 1472;
/// Datagrams that the host answers, or sends, at once.
const BURST: usize = 32;
/// Bursts that are counted, and before that.
const MEASURED: usize = 64;
const WARM: usize = 8;

/// Sends and receives, each once to warm up and once to be counted. At this port the host answers a burst of datagrams by a
/// short one, and a short one by a burst.
pub fn measure(port: &CStr) -> Result<u8, Failure> {
    let port = number(port)? as u16;
    let socket = linux::datagrams(HOST, port).map_err(|errno| Failure::Linux("open a socket", errno))?;
    for (work, window) in [(receive as Work, Window::FramesReceived), (send, Window::FramesSent)] {
        (0..WARM).try_for_each(|_| work(socket))?;
        window.begin();
        (0..MEASURED).try_for_each(|_| work(socket))?;
        window.end();
    }
    Ok(0)
}

type Work = fn(Descriptor) -> Result<(), Failure>;

fn send(socket: Descriptor) -> Result<(), Failure> {
    let failed = |errno| Failure::Linux("exchange datagrams", errno);
    (0..BURST).try_for_each(|_| linux::write_all(socket, &[0; LENGTH])).map_err(failed)?;
    linux::read(socket, &mut [0; 1]).map_err(failed).map(drop)
}

fn receive(socket: Descriptor) -> Result<(), Failure> {
    let failed = |errno| Failure::Linux("exchange datagrams", errno);
    linux::write_all(socket, &[0]).map_err(failed)?;
    (0..BURST).try_for_each(|_| linux::read(socket, &mut [0; LENGTH]).map(drop)).map_err(failed)
}
