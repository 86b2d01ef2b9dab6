//! Guest-physical memory: where RAM lies, and checked copies from and to it.
//!
//! Nothing in this crate ever holds a reference into guest memory: the guest may change it at any time. The monitor
//! implements [`GuestMemory`] by raw volatile copies; tests use `VecMemory`.

use core::fmt;

/// End of the RAM below 4 GiB at most: the PCI hole and the interrupt controllers follow.
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM_BASE: u64 = 1 << 32;

/// Where a virtual machine's RAM lies. The host keeps it in one piece, low part first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ram {
    size: u64,
}

impl Ram {
    /// RAM of `size` bytes.
    pub const fn new(size: u64) -> Self {
        Self { size }
    }

    /// Bytes in all.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Bytes from address 0.
    pub const fn below_4g(self) -> u64 {
        if self.size < LOW_RAM_MAX { self.size } else { LOW_RAM_MAX }
    }

    /// Bytes from [`HIGH_RAM_BASE`].
    pub const fn above_4g(self) -> u64 {
        self.size - self.below_4g()
    }

    /// Whether a byte of RAM is at `gpa`.
    pub const fn contains(self, gpa: u64) -> bool {
        gpa < self.below_4g() || (gpa >= HIGH_RAM_BASE && gpa - HIGH_RAM_BASE < self.above_4g())
    }

    /// Offset in the host's piece of `length` bytes at `gpa`; `None` unless all of them are RAM without a gap.
    #[inline]
    pub const fn offset(self, gpa: u64, length: u64) -> Option<u64> {
        let (base, part, skipped) = if gpa >= HIGH_RAM_BASE {
            (HIGH_RAM_BASE, self.above_4g(), self.below_4g())
        } else {
            (0, self.below_4g(), 0)
        };
        let at = gpa - base;
        if at > part || length > part - at { None } else { Some(at + skipped) }
    }
}

/// An access that is not all in RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotRam {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
}

impl fmt::Display for NotRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no RAM at guest-physical address {:#x}", self.gpa)
    }
}

/// Access to the RAM of a virtual machine.
pub trait GuestMemory {
    /// Where the RAM lies.
    fn ram(&self) -> Ram;

    /// Copies from the host's piece at `offset`. Called only with ranges that [`Ram::offset`] returned.
    fn load(&self, offset: u64, bytes: &mut [u8]);

    /// Copies to the host's piece at `offset`. Called only with ranges that [`Ram::offset`] returned.
    fn store(&self, offset: u64, bytes: &[u8]);

    /// Loads 16 bits, in one access. Called only with ranges that [`Ram::offset`] returned, at even addresses.
    fn load_u16(&self, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        self.load(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Stores 16 bits, in one access; as [`GuestMemory::load_u16`].
    fn store_u16(&self, offset: u64, value: u16) {
        self.store(offset, &value.to_le_bytes());
    }

    /// Copies from the guest.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), NotRam> {
        let offset = self.ram().offset(gpa, bytes.len() as u64).ok_or(NotRam { gpa })?;
        self.load(offset, bytes);
        Ok(())
    }

    /// Copies to the guest.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), NotRam> {
        let offset = self.ram().offset(gpa, bytes.len() as u64).ok_or(NotRam { gpa })?;
        self.store(offset, bytes);
        Ok(())
    }

    /// Reads 32 bits, little-endian.
    fn read_u32(&self, gpa: u64) -> Result<u32, NotRam> {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads 64 bits, little-endian.
    fn read_u64(&self, gpa: u64) -> Result<u64, NotRam> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// As [`GuestMemory::read_u64`], where that takes next to nothing; None where it takes more.
    #[inline]
    fn near_u64(&self, gpa: u64) -> Option<u64> {
        self.read_u64(gpa).ok()
    }

    /// Clears a range.
    fn clear(&self, gpa: u64, length: u64) -> Result<(), NotRam> {
        let mut offset = self.ram().offset(gpa, length).ok_or(NotRam { gpa })?;
        let end = offset + length;
        let zeros = [0; 4096];
        while offset < end {
            let step = (end - offset).min(zeros.len() as u64);
            self.store(offset, &zeros[..step as usize]);
            offset += step;
        }
        Ok(())
    }
}

#[cfg(test)]
extern crate std;

/// RAM in a vector, for tests.
#[cfg(test)]
pub struct VecMemory(std::sync::Mutex<alloc::vec::Vec<u8>>, Ram);

#[cfg(test)]
impl VecMemory {
    /// Zeroed RAM of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self(std::sync::Mutex::new(alloc::vec![0; size as usize]), Ram::new(size))
    }
}

#[cfg(test)]
impl GuestMemory for VecMemory {
    fn ram(&self) -> Ram {
        self.1
    }

    fn load(&self, offset: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..bytes.len()]);
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
impl<M: GuestMemory> GuestMemory for alloc::sync::Arc<M> {
    fn ram(&self) -> Ram {
        M::ram(self)
    }

    fn load(&self, offset: u64, bytes: &mut [u8]) {
        M::load(self, offset, bytes);
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        M::store(self, offset, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_large_ram_has_a_hole() {
        let ram = Ram::new(4 << 30);
        assert_eq!((ram.below_4g(), ram.above_4g()), (3 << 30, 1 << 30));
        assert_eq!(ram.offset(HIGH_RAM_BASE, 1 << 30), Some(3 << 30));
        assert_eq!(ram.offset(HIGH_RAM_BASE, (1 << 30) + 1), None);
        assert_eq!(ram.offset(LOW_RAM_MAX - 1, 2), None);
        assert!(ram.contains(LOW_RAM_MAX - 1) && !ram.contains(LOW_RAM_MAX));
    }

    #[test]
    fn copies_stop_at_the_end() {
        let memory = VecMemory::new(0x2000);
        assert_eq!(memory.write(0x1ff8, &[7; 8]), Ok(()));
        assert_eq!(memory.read_u64(0x1ff8), Ok(0x0707_0707_0707_0707));
        assert_eq!(memory.read_u64(0x1ff9), Err(NotRam { gpa: 0x1ff9 }));
        assert_eq!(memory.clear(0xfff, 0x1001), Ok(()));
        assert_eq!(memory.read_u32(0x1ffc), Ok(0));
    }

    proptest! {
        #[test]
        fn offsets_stay_inside(size in 0u64..8 << 30, gpa: u64, length: u64) {
            if let Some(offset) = Ram::new(size).offset(gpa, length) {
                prop_assert!(offset.checked_add(length).is_some_and(|end| end <= size));
            }
        }
    }
}
