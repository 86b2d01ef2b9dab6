//! Scheduling context descriptors (NOVA 4.5).

/// Scheduling parameters of an SC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scd {
    /// Time in milliseconds after which an SC of the same priority may run; 1 to 65535.
    pub budget: u16,
    /// 1 to [`PRIORITY_MAX`]; higher numbers preempt lower ones.
    pub priority: u8,
    /// Class of service.
    pub cos: u16,
}

/// Highest priority.
pub const PRIORITY_MAX: u8 = 127;

impl Scd {
    /// The descriptor as create_sc takes it.
    pub const fn to_raw(self) -> u64 {
        self.budget as u64 | (self.priority as u64) << 16 | (self.cos as u64) << 23
    }

    /// Decodes `raw`, whose upper bits are ignored; `None` if budget or priority is zero.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        let budget = raw as u16;
        let priority = (raw >> 16) as u8 & 0x7f;
        let cos = (raw >> 23) as u16;
        if budget == 0 || priority == 0 {
            return None;
        }
        Some(Self { budget, priority, cos })
    }
}
