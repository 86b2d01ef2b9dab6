//! What a device did that it may not do, as the kernel tells it (VT-d specification 7.1.3).

use core::fmt;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Bus, device and function of the device.
    pub source: u16,
    reason: u8,
    read: bool,
    address: u64,
}

impl Fault {
    /// From the kernel's two words; `None`: there was none.
    pub fn read(what: u64, address: u64) -> Option<Self> {
        let reason = (what >> 16) as u8;
        (reason != 0).then_some(Self { source: what as u16, reason, read: what >> 24 & 1 != 0, address })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // From 0x20 on a fault is one of interrupts.
        if (0x20..0x30).contains(&self.reason) {
            return write!(f, "raised an interrupt that is not its own (entry {})", self.address >> 48);
        }
        let does = if self.read { "read" } else { "wrote" };
        write!(f, "{does} memory at {:#x} that it does not have (reason {})", self.address, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn faults_are_told() {
        assert_eq!(Fault::read(0x20, 0), None);
        let text = |what, address| Fault::read(what, address).map(|fault| fault.to_string());
        let write = text(0x05_0020, 0x1000);
        assert_eq!(write.as_deref(), Some("wrote memory at 0x1000 that it does not have (reason 5)"));
        let read = text(0x106_0020, 0x2000);
        assert_eq!(read.as_deref(), Some("read memory at 0x2000 that it does not have (reason 6)"));
        let interrupt = text(0x26_0020, 7 << 48);
        assert_eq!(interrupt.as_deref(), Some("raised an interrupt that is not its own (entry 7)"));
    }
}
