//! What drivers of network devices share: the two directions of a device, and the threads that join them to a switch.
#![no_std]

#[cfg(target_os = "none")]
mod program;

#[cfg(target_os = "none")]
pub use program::{interrupts, serve};

/// The device did what no device may: a buffer given back that it does not have, or more written than fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misbehaviour;

/// Frames from the network.
pub trait Receive {
    /// Hands the next frame to `deliver`, and its buffer to the device again; false if there is none.
    fn next(&mut self, deliver: impl FnOnce(&[u8])) -> Result<bool, Misbehaviour>;
    /// After the last frame: tells the device of the buffers, and asks for an interrupt when a frame comes. True if
    /// there are frames already.
    fn look_again(&mut self) -> bool;
}

/// Frames to the network.
pub trait Transmit {
    /// Whether there is a buffer for a frame.
    fn can_send(&mut self) -> Result<bool, Misbehaviour>;
    /// Sends the frame that `fill` provides, after [`Self::can_send`]: `fill` gets the space for a record
    /// (`runtime::net`), puts the frame behind the record's header, and returns the frame's length, or that there is
    /// none; then this returns false. The device is told by [`Self::ring`] only.
    fn send<E>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<Option<usize>, E>) -> Result<bool, E>;
    /// Tells the device of what has been sent since.
    fn ring(&mut self);
    /// Asks for an interrupt when there is a buffer again. True if there is one already.
    fn await_buffer(&mut self) -> Result<bool, Misbehaviour>;
}
