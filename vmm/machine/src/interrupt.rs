//! Interrupt messages: what travels between IOAPIC, MSI-capable devices and LAPICs.
//!
//! Intel SDM vol. 3A, 11.6 (IPIs), 11.11 (message signalled interrupts); Intel 82093AA, 3.2.4.

/// How a message is delivered (SDM vol. 3A, 11.6.1, delivery mode).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// To the vector.
    Fixed,
    /// To the vector, at the destination that runs at the lowest priority.
    LowestPriority,
    /// System-management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI; the vector is the page to start at.
    Startup,
    /// As from an 8259A: the vector comes from its acknowledge cycle.
    ExtInt,
    /// An encoding that the architecture reserves.
    Reserved,
}

impl Delivery {
    /// Decodes the three-bit field.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::Startup,
            7 => Delivery::ExtInt,
            _ => Delivery::Reserved,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// One LAPIC by its id.
    Physical(u32),
    /// A set of LAPICs by their logical ids.
    Logical(u32),
    /// The sender.
    Own,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

impl Destination {
    /// An eight-bit destination as in the IOAPIC, in MSI addresses and in xAPIC mode, where 0xff is everyone.
    pub const fn from_byte(logical: bool, id: u8) -> Self {
        match (logical, id) {
            (true, id) => Destination::Logical(id as u32),
            (false, 0xff) => Destination::All,
            (false, id) => Destination::Physical(id as u32),
        }
    }
}

/// One interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// Vector, or the start-up page.
    pub vector: u8,
    /// Level-triggered: its end of interrupt goes back to the IOAPIC.
    pub level: bool,
}

impl Message {
    /// Decodes a message-signalled interrupt; `None` when the address does not lie in 0xfeexxxxx.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        Some(Self {
            destination: Destination::from_byte(address & 4 != 0, (address >> 12) as u8),
            delivery: Delivery::from_bits(data >> 8),
            vector: data as u8,
            level: data & 1 << 15 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi() {
        let message = Message::from_msi(0xfee0_3000, 0x41).unwrap();
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!((message.delivery, message.vector, message.level), (Delivery::Fixed, 0x41, false));
        assert_eq!(Message::from_msi(0xfeef_f000, 0).unwrap().destination, Destination::All);
        assert_eq!(Message::from_msi(0xfee0_1004, 0xc130).unwrap().destination, Destination::Logical(1));
        assert_eq!(Message::from_msi(0xfed0_0000, 0), None);
    }
}
