//! What units read in memory, and what they record: formats of 128 bits, the low half first.

/// An entry of a table, or a descriptor in the queue.
pub type Entry = [u64; 2];

const PRESENT: u64 = 1;

/// Root entry (9.1): the context table of a bus.
pub const fn root(table: u64) -> Entry {
    [table | PRESENT, 0]
}

/// Context entry (9.3): a device's requests go by second-level tables of `levels` levels, in `domain`. Requests that claim
/// to be translated already are refused.
pub const fn context(table: u64, levels: u8, domain: u16) -> Entry {
    [table | PRESENT, levels.saturating_sub(2) as u64 | (domain as u64) << 8]
}

/// The domain of a context entry; 0, which is no device's, if it is not present.
pub const fn domain([low, high]: Entry) -> u16 {
    if low & PRESENT != 0 { (high >> 8) as u16 } else { 0 }
}

/// An interrupt, to one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its vector.
    pub vector: u8,
    /// The local APIC.
    pub destination: u32,
    /// Who alone may send it; `None`: everybody.
    pub source: Option<u16>,
    /// Level-triggered.
    pub level: bool,
}

impl Interrupt {
    /// Interrupt-remapping table entry (9.9): physical destination, fixed delivery, all 16 bits of the source id are
    /// compared. `wide`: for local APICs in x2APIC mode.
    pub fn entry(&self, wide: bool) -> Entry {
        let destination = u64::from(self.destination) << if wide { 32 } else { 40 };
        let low = PRESENT | u64::from(self.level) << 4 | u64::from(self.vector) << 16 | destination;
        [low, self.source.map_or(0, |source| 1 << 18 | u64::from(source))]
    }

    /// The message without remapping, address and data (Intel SDM vol. 3A, 11.11), for a local APIC with an id of 8 bits.
    pub fn plain_message(&self) -> (u32, u32) {
        (0xfee0_0000 | (self.destination & 0xff) << 12, self.vector.into())
    }
}

/// The message by which a device raises the interrupt of entry `index` (5.1.2.2): address and data.
pub const fn message(index: u16) -> (u32, u32) {
    (0xfee0_0010 | (index as u32 & 0x7fff) << 5 | (index as u32 >> 15) << 2, 0)
}

/// High half of an I/O APIC's redirection entry that is remapped by entry `index`, below 2^15 (5.1.5.1).
pub const fn redirection(index: u16) -> u32 {
    (index as u32) << 17 | 1 << 16
}

/// Descriptor: forget all context entries (6.5.2.1).
pub const FORGET_CONTEXTS: Entry = [1 | 1 << 4, 0];
/// Descriptor: forget all translations, reads and writes under way are over then (6.5.2.3).
pub const FORGET_TRANSLATIONS: Entry = [2 | 1 << 4 | 1 << 6 | 1 << 7, 0];
/// Descriptor: forget all interrupt entries (6.5.2.7).
pub const FORGET_INTERRUPTS: Entry = [4, 0];

/// Descriptor: forget a domain's translations.
pub const fn forget_domain(domain: u16) -> Entry {
    [2 | 2 << 4 | 1 << 6 | 1 << 7 | (domain as u64) << 16, 0]
}

/// Descriptor (6.5.2.8): when all before it is done write 0 to the 32 bits at `address`.
pub const fn wait(address: u64) -> Entry {
    [5 | 1 << 5, address]
}

/// What a device did that it may not do, as a fault recording register (11.4.14.6) tells in 32-bit words; `None` if
/// nothing is recorded. Source id (bits 15:0), reason (23:16, see 7.1.3), read (24); and the page's address, or of an
/// interrupt the index of its entry in bits 63:48.
pub const fn fault([low, high, source, status]: [u32; 4]) -> Option<(u64, u64)> {
    if status & 1 << 31 == 0 {
        return None;
    }
    let told = source & 0xffff | (status & 0xff) << 16 | (status >> 30 & 1) << 24;
    Some((told as u64, (high as u64) << 32 | (low & !0xfff) as u64))
}
