//! Port and memory-mapped dispatch: which device answers at an address, and with which access widths.
//!
//! The ports are a table sorted by address, so that a reader sees the whole machine on one screen. An access that no
//! entry takes behaves as on a PC whose bus nobody drives: reads give all ones, writes vanish; both are counted.

/// Width of one access in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
    /// 64 bits; memory only, no port is that wide.
    Qword = 8,
}

impl Width {
    /// The width of `bytes` bytes, if an access can be that wide.
    pub const fn from_bytes(bytes: usize) -> Option<Width> {
        match bytes {
            1 => Some(Width::Byte),
            2 => Some(Width::Word),
            4 => Some(Width::Dword),
            8 => Some(Width::Qword),
            _ => None,
        }
    }

    /// Number of bytes.
    pub const fn bytes(self) -> usize {
        self as usize
    }

    /// All ones, as wide as the access: what a read of an undriven bus gives.
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - 8 * self as u32)
    }
}

/// The devices that answer at ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortDevice {
    /// First 8259A.
    PicMaster,
    /// Second 8259A.
    PicSlave,
    /// Edge/level control registers of both 8259A.
    PicTrigger,
    /// 8254 timer.
    Pit,
    /// Port B: speaker gate and timer 2 output.
    PortB,
    /// Keyboard controller: data.
    KeyboardData,
    /// Keyboard controller: status and command.
    KeyboardCommand,
    /// System control port A: fast reset, A20.
    PortA,
    /// Real-time clock and CMOS memory.
    Rtc,
    /// Power-on self-test code and I/O delay: takes writes, means nothing.
    Delay,
    /// First serial port.
    Serial,
    /// PCI configuration address.
    PciAddress,
    /// Reset control register, in the middle of the PCI configuration address.
    ResetControl,
    /// PCI configuration data.
    PciData,
    /// ACPI power management.
    Pm,
    /// Execution channel.
    Exec,
    /// Debug console.
    Debug,
}

/// Which widths a device takes in one piece. Wider accesses are cut into bytes, as the ISA bus does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Widths {
    /// Bytes only.
    Byte,
    /// Bytes, words and double words that lie inside the range.
    UpToDword,
    /// Double words only; narrower accesses pass by.
    DwordOnly,
}

/// One line of the port table.
#[derive(Clone, Copy, Debug)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Who answers.
    pub device: PortDevice,
    /// How wide.
    pub widths: Widths,
}

const fn range(first: u16, last: u16, device: PortDevice, widths: Widths) -> PortRange {
    PortRange { first, last, device, widths }
}

/// The machine's ports, sorted by address. Overlaps do not exist except through [`Widths::DwordOnly`] at 0xcf8.
pub const PORTS: &[PortRange] = &[
    range(0x0020, 0x0021, PortDevice::PicMaster, Widths::Byte),
    range(0x0040, 0x0043, PortDevice::Pit, Widths::Byte),
    range(0x0060, 0x0060, PortDevice::KeyboardData, Widths::Byte),
    range(0x0061, 0x0061, PortDevice::PortB, Widths::Byte),
    range(0x0064, 0x0064, PortDevice::KeyboardCommand, Widths::Byte),
    range(0x0070, 0x0071, PortDevice::Rtc, Widths::Byte),
    range(0x0080, 0x0080, PortDevice::Delay, Widths::Byte),
    range(0x0092, 0x0092, PortDevice::PortA, Widths::Byte),
    range(0x00a0, 0x00a1, PortDevice::PicSlave, Widths::Byte),
    range(0x00ed, 0x00ed, PortDevice::Delay, Widths::Byte),
    range(0x03f8, 0x03ff, PortDevice::Serial, Widths::Byte),
    range(0x0402, 0x0402, PortDevice::Debug, Widths::Byte),
    range(0x04d0, 0x04d1, PortDevice::PicTrigger, Widths::Byte),
    range(0x0600, 0x060b, PortDevice::Pm, Widths::UpToDword),
    range(0x0cf8, 0x0cf8, PortDevice::PciAddress, Widths::DwordOnly),
    range(0x0cf9, 0x0cf9, PortDevice::ResetControl, Widths::Byte),
    range(0x0cfc, 0x0cff, PortDevice::PciData, Widths::UpToDword),
    range(0x0e90, 0x0e9b, PortDevice::Exec, Widths::UpToDword),
];

/// What one access becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The device takes it in one piece, at this offset from its range's first port.
    Whole(PortDevice, u16),
    /// Byte by byte, each routed on its own.
    Split,
    /// Nobody.
    Unclaimed,
}

/// Ports that [`PORTS`] may name.
const INDEXED: usize = 0x1000;
/// No range.
const NONE: u8 = u8::MAX;
/// The range of each port in [`PORTS`], or [`NONE`].
static INDEX: [u8; INDEXED] = index();

const fn index() -> [u8; INDEXED] {
    let mut index = [NONE; INDEXED];
    let mut range = 0;
    while range < PORTS.len() {
        let mut port = PORTS[range].first as usize;
        while port <= PORTS[range].last as usize {
            index[port] = range as u8;
            port += 1;
        }
        range += 1;
    }
    index
}

/// Finds who takes an access of `width` at `port`.
#[inline]
pub fn route(port: u16, width: Width) -> Route {
    let range = INDEX.get(port as usize).and_then(|&range| PORTS.get(range as usize));
    match range {
        Some(range) if width == Width::Byte && range.widths != Widths::DwordOnly => {
            Route::Whole(range.device, port - range.first)
        }
        range => wide_route(port, width, range),
    }
}

fn wide_route(port: u16, width: Width, range: Option<&PortRange>) -> Route {
    if width == Width::Qword {
        return Route::Unclaimed;
    }
    let last = port as u32 + width.bytes() as u32 - 1;
    if let Some(range) = range {
        let offset = port - range.first;
        return match (range.widths, width) {
            (Widths::DwordOnly, Width::Dword) => Route::Whole(range.device, offset),
            (Widths::DwordOnly, Width::Byte) => Route::Unclaimed,
            (_, Width::Byte) => Route::Whole(range.device, offset),
            (Widths::UpToDword, _) if last <= range.last as u32 => Route::Whole(range.device, offset),
            _ => Route::Split,
        };
    }
    // Nothing at the first port; a wider access may still reach into a range.
    match PORTS.iter().find(|range| range.first > port) {
        Some(next) if next.first as u32 <= last => Route::Split,
        _ => Route::Unclaimed,
    }
}

/// Counts of accesses that nobody took, with the first distinct addresses for the report.
#[derive(Clone, Debug, Default)]
pub struct Unclaimed {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    seen: [(u64, u64); Self::REMEMBERED],
    len: usize,
}

impl Unclaimed {
    /// How many distinct addresses are remembered.
    pub const REMEMBERED: usize = 32;

    /// Counts one access.
    pub fn count(&mut self, address: u64, write: bool) {
        if write {
            self.writes += 1;
        } else {
            self.reads += 1;
        }
        match self.seen[..self.len].iter_mut().find(|(seen, _)| *seen == address) {
            Some((_, count)) => *count += 1,
            None if self.len < Self::REMEMBERED => {
                self.seen[self.len] = (address, 1);
                self.len += 1;
            }
            None => {}
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        for &(address, more) in other.addresses() {
            match self.seen[..self.len].iter_mut().find(|(seen, _)| *seen == address) {
                Some((_, count)) => *count += more,
                None if self.len < Self::REMEMBERED => {
                    self.seen[self.len] = (address, more);
                    self.len += 1;
                }
                None => {}
            }
        }
    }

    /// The first distinct addresses, each with its number of accesses.
    pub fn addresses(&self) -> &[(u64, u64)] {
        &self.seen[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_disjoint() {
        for pair in PORTS.windows(2) {
            assert!(pair[0].first <= pair[0].last && pair[0].last < pair[1].first, "{pair:x?}");
        }
    }

    #[test]
    fn widths() {
        assert_eq!(route(0x3f8, Width::Byte), Route::Whole(PortDevice::Serial, 0));
        assert_eq!(route(0x3f8, Width::Word), Route::Split);
        assert_eq!(route(0x608, Width::Dword), Route::Whole(PortDevice::Pm, 8));
        assert_eq!(route(0x60a, Width::Dword), Route::Split);
        assert_eq!(route(0xcf8, Width::Dword), Route::Whole(PortDevice::PciAddress, 0));
        assert_eq!(route(0xcf8, Width::Byte), Route::Unclaimed);
        assert_eq!(route(0xcf9, Width::Byte), Route::Whole(PortDevice::ResetControl, 0));
        assert_eq!(route(0xcfe, Width::Word), Route::Whole(PortDevice::PciData, 2));
        assert_eq!(route(0x1f, Width::Word), Route::Split);
        assert_eq!(route(0x1f, Width::Qword), Route::Unclaimed);
        assert_eq!(route(0x3c0, Width::Byte), Route::Unclaimed);
        assert_eq!(route(0xffff, Width::Dword), Route::Unclaimed);
    }

    #[test]
    fn ones_are_as_wide_as_the_access() {
        assert_eq!(Width::Byte.ones(), 0xff);
        assert_eq!(Width::Word.ones(), 0xffff);
        assert_eq!(Width::Dword.ones(), 0xffff_ffff);
        assert_eq!(Width::Qword.ones(), u64::MAX);
    }

    #[test]
    fn unclaimed_counts() {
        let mut unclaimed = Unclaimed::default();
        for port in 0..40 {
            unclaimed.count(port, false);
            unclaimed.count(port, true);
        }
        assert_eq!((unclaimed.reads, unclaimed.writes), (40, 40));
        assert_eq!(unclaimed.addresses().len(), Unclaimed::REMEMBERED);
        assert!(unclaimed.addresses().iter().all(|&(_, count)| count == 2));
    }
}
