//! The controller from reset to work.

use crate::receive::Receiver;
use crate::send::Transmitter;
use crate::spec::{self, Controller};
use core::fmt;
use device::registers::Registers;

/// Looks at the control register until a controller that does not finish its reset is given up.
const RESET_LOOKS: u32 = 1_000_000;

/// Why a controller does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It does not come back from a reset.
    Reset,
    /// Not enough memory for DMA.
    Memory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "it does not come back from a reset"),
            Self::Memory => write!(f, "there is not enough memory for DMA"),
        }
    }
}

/// A controller that works: both directions, each for a thread of its own.
pub struct Device<R> {
    /// Its address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Frames from the network.
    pub receiver: Receiver<R>,
    /// Frames to the network.
    pub transmitter: Transmitter<R>,
}

impl<R: Registers + Clone> Device<R> {
    /// Starts the controller (4.6). Received frames interrupt by the first MSI-X vector, sent ones by the second, as far
    /// as there are any. It takes all frames on its network, whatever their address.
    pub fn start(registers: R, vectors: [Option<u8>; 2]) -> Result<Self, Error> {
        let controller = Controller(registers);
        reset(&controller)?;
        let mac = address(&controller);
        let mut ivar = 0;
        for (vector, shift) in vectors.into_iter().zip([0, spec::IVAR_TXQ0]) {
            ivar |= vector.map_or(0, |vector| (u32::from(vector & 7) | spec::IVAR_VALID) << shift);
        }
        controller.write(spec::IVAR, ivar);
        // An interrupt takes its own cause, and its own bit of the mask, away (10.2.4.6).
        controller.write(spec::EIAC, spec::RXQ0 | spec::TXQ0);
        let receiver = Receiver::new(controller.clone()).ok_or(Error::Memory)?;
        let transmitter = Transmitter::new(controller.clone()).ok_or(Error::Memory)?;
        controller.write(spec::TCTL, spec::TCTL_EN | spec::TCTL_PSP | spec::TCTL_CT | spec::TCTL_COLD);
        let all = spec::RCTL_UPE | spec::RCTL_MPE | spec::RCTL_BAM;
        controller.write(spec::RCTL, spec::RCTL_EN | all | spec::RCTL_SECRC);
        receiver.offer_all();
        controller.write(spec::IMS, spec::RXQ0);
        Ok(Self { mac, receiver, transmitter })
    }
}

/// Resets the controller, which leaves it without interrupts and with the link up (4.6.1, 4.6.3).
fn reset<R: Registers>(controller: &Controller<R>) -> Result<(), Error> {
    controller.write(spec::IMC, u32::MAX);
    controller.write(spec::RCTL, 0);
    controller.write(spec::TCTL, 0);
    controller.write(spec::CTRL, controller.read(spec::CTRL) | spec::CTRL_RST);
    if !(0..RESET_LOOKS).any(|_| controller.read(spec::CTRL) & spec::CTRL_RST == 0) {
        return Err(Error::Reset);
    }
    controller.write(spec::IMC, u32::MAX);
    let _ = controller.read(spec::ICR);
    controller.write(spec::CTRL, controller.read(spec::CTRL) | spec::CTRL_SLU);
    Ok(())
}

fn address<R: Registers>(controller: &Controller<R>) -> Option<[u8; 6]> {
    let (low, high) = (controller.read(spec::RAL), controller.read(spec::RAH));
    let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
    (high & spec::RAH_VALID != 0).then_some([a, b, c, d, e, f])
}

/// Tells the controller where a queue of `count` descriptors is, which is empty.
pub(crate) fn set_queue<R: Registers>(controller: &Controller<R>, queue: u32, address: u64, count: usize) {
    controller.write(queue + spec::BASE_LOW, address as u32);
    controller.write(queue + spec::BASE_HIGH, (address >> 32) as u32);
    controller.write(queue + spec::LENGTH, (count * spec::DESCRIPTOR) as u32);
    controller.write(queue + spec::HEAD, 0);
    controller.write(queue + spec::TAIL, 0);
}
