//! The part of the disk and the window that a client may use, and the check of its requests.

use crate::device::Geometry;
use core::fmt;
use runtime::block::{Operation, Request, SECTOR, Status};

/// What a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First sector on the disk.
    pub first: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Address of the data window as the device sees it.
    pub window: u64,
    /// Length of the data window in bytes.
    pub window_length: u64,
}

/// Why a region cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It ends behind the disk, which has so many sectors.
    TooLarge(u64),
    /// Beginning or length is no multiple of the device's block of so many bytes.
    Alignment(u32),
    /// The window's address is no multiple of a page, or the window wraps around.
    Window(u64),
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(sectors) => write!(f, "the disk ends at sector {sectors}"),
            Self::Alignment(block) => write!(f, "the disk's blocks have {block} bytes"),
            Self::Window(address) => write!(f, "the data window at {address:#x} cannot be used"),
        }
    }
}

impl Region {
    /// The region as the plan names it (0 sectors: to the end of the disk) on this device.
    pub fn on(self, geometry: &Geometry) -> Result<Self, Misfit> {
        let end = match self.sectors {
            0 => Some(geometry.sectors).filter(|&end| end > self.first),
            sectors => self.first.checked_add(sectors),
        };
        let end = end.filter(|&end| end <= geometry.sectors).ok_or(Misfit::TooLarge(geometry.sectors))?;
        let block = geometry.block_sectors();
        if !self.first.is_multiple_of(block) || !end.is_multiple_of(block) {
            return Err(Misfit::Alignment(geometry.block));
        }
        let fits = self.window.is_multiple_of(4096) && self.window.checked_add(self.window_length).is_some();
        if !fits {
            return Err(Misfit::Window(self.window));
        }
        let read_only = self.read_only || geometry.read_only;
        Ok(Self { sectors: end - self.first, read_only, ..self })
    }

    /// Where a read or write lies: its first sector on the disk and its address for the device.
    pub fn check(&self, request: &Request, geometry: &Geometry) -> Result<(u64, u64), Status> {
        let length = u64::from(request.length);
        let inside = |start: u64, length: u64, limit: u64| start.checked_add(length).is_some_and(|end| end <= limit);
        let aligned = request.sector.is_multiple_of(geometry.block_sectors())
            && length.is_multiple_of(u64::from(geometry.block))
            && request.offset.is_multiple_of(SECTOR);
        let fits = length != 0
            && inside(request.sector, length / SECTOR, self.sectors)
            && inside(request.offset, length, self.window_length);
        if !aligned || !fits {
            return Err(Status::BadRequest);
        }
        if self.read_only && request.operation == Operation::Write {
            return Err(Status::ReadOnly);
        }
        Ok((self.first + request.sector, self.window + request.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        sectors: 1000,
        block: 4096,
        transfer: 8192,
        depth: 4,
        read_only: false,
        volatile_cache: true,
        force_unit_access: true,
    };
    const REGION: Region = Region { first: 16, sectors: 0, read_only: false, window: 0x1000, window_length: 0x4000 };

    #[test]
    fn regions_stay_on_the_disk() {
        let on = |first, sectors| Region { first, sectors, ..REGION }.on(&GEOMETRY).map(|r| r.sectors);
        assert_eq!(on(16, 0), Ok(984));
        assert_eq!(on(0, 1000), Ok(1000));
        assert_eq!(on(992, 8), Ok(8));
        assert_eq!(on(992, 16), Err(Misfit::TooLarge(1000)));
        assert_eq!(on(1000, 0), Err(Misfit::TooLarge(1000)));
        assert_eq!(on(8, u64::MAX), Err(Misfit::TooLarge(1000)));
        assert_eq!(on(4, 8), Err(Misfit::Alignment(4096)));
        assert_eq!(on(8, 4), Err(Misfit::Alignment(4096)));
        let read_only = |read_only| REGION.on(&Geometry { read_only, ..GEOMETRY }).map(|r| r.read_only);
        assert_eq!((read_only(false), read_only(true)), (Ok(false), Ok(true)), "a disk that cannot be written");
        let window = |window| Region { window, ..REGION }.on(&GEOMETRY).is_ok();
        assert!(window(0x1000) && !window(0x1200) && !window(u64::MAX - 0xfff));
    }

    proptest! {
        #[test]
        fn nothing_leaves_region_or_window(
            sector in prop_oneof![0u64..1100, any::<u64>()],
            offset in prop_oneof![0u64..0x5000, any::<u64>()],
            length in prop_oneof![0u32..0x5000, any::<u32>()],
            fine in any::<[bool; 3]>(),
            write: bool,
            read_only: bool,
        ) {
            let align = |value: u64, unit: u64, fine: bool| if fine { value / unit * unit } else { value };
            let request = Request {
                tag: 1,
                operation: if write { Operation::Write } else { Operation::Read },
                force_unit_access: false,
                sector: align(sector, 8, fine[0]),
                offset: align(offset, 512, fine[1]),
                length: align(length.into(), 4096, fine[2]) as u32,
            };
            let region = Region { read_only, ..REGION }.on(&GEOMETRY).unwrap();
            // In numbers that cannot overflow.
            let (first, at, bytes) = (request.sector as u128, request.offset as u128, request.length as u128);
            let good = first % 8 == 0 && at % 512 == 0 && bytes % 4096 == 0 && bytes != 0
                && first * 512 + bytes <= 984 * 512 && at + bytes <= 0x4000;
            let expected = match (good, write && read_only) {
                (false, _) => Err(Status::BadRequest),
                (true, true) => Err(Status::ReadOnly),
                (true, false) => Ok((16 + request.sector, 0x1000 + request.offset)),
            };
            prop_assert_eq!(region.check(&request, &GEOMETRY), expected);
        }
    }
}
