//! A network device's service: a port of a switch, two rings of frames by the protocol `runtime::net`.

use alloc::format;
use alloc::string::String;

use machine::virtio::net::{FRAME_MAX, Network};
use plan::NicConfig;
use runtime::channel::{Receiver, Sender};
use runtime::net::{Output, Record};

/// One port.
pub struct Nic {
    out: Sender,
    inward: Receiver,
    record: Record,
    /// Frames up to here have been looked at.
    seen: u32,
}

impl Nic {
    /// The port of this configuration.
    pub fn open(config: &NicConfig) -> Result<Self, String> {
        let name = &config.name;
        let missing = |what: &str| format!("network device {name} has no ring {what:?}");
        let out = Sender::open(&format!("nic.{name}.out")).ok_or_else(|| missing("out"))?;
        let inward = Receiver::open(&format!("nic.{name}.in")).ok_or_else(|| missing("in"))?;
        let seen = inward.position();
        Ok(Self { out, inward, record: Record::new(), seen })
    }
}

impl Network for Nic {
    fn send(&mut self, frame: &[u8]) -> bool {
        // A ring that its peer broke is like one that is full: the switch's successor finds it in order again.
        self.record.set(frame) && self.record.send(&mut self.out) == Ok(true)
    }

    fn flush(&mut self) {
        Output::notify(&mut self.out);
    }

    fn receive(&mut self, frame: &mut [u8; FRAME_MAX]) -> Option<usize> {
        // Before the look, so that what comes meanwhile is not overlooked.
        self.seen = self.inward.position();
        if self.record.receive(&mut self.inward) != Ok(true) {
            return None;
        }
        let received = self.record.frame();
        frame[..received.len()].copy_from_slice(received);
        Some(received.len())
    }

    fn idle(&mut self) -> bool {
        // Frames for which the guest has no buffer stay in the ring: they are no news the next time.
        let position = self.inward.position();
        self.inward.prepare_wait_since(core::mem::replace(&mut self.seen, position))
    }
}
