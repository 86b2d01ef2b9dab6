//! Access to the device's registers, which lie in its BARs.
#![allow(unsafe_code)]

use alloc::vec::Vec;

/// A register's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the BAR.
    pub bar: u8,
    /// Offset in it, in bytes.
    pub offset: u32,
}

impl Place {
    /// The place `distance` bytes further on.
    pub fn plus(self, distance: u32) -> Self {
        Self { offset: self.offset.saturating_add(distance), ..self }
    }
}

/// The device's registers. What lies outside of every BAR reads as ones and takes no writes.
pub trait Registers {
    /// Reads 1, 2 or 4 bytes.
    fn read(&self, place: Place, size: usize) -> u32;
    /// Writes 1, 2 or 4 bytes.
    fn write(&self, place: Place, size: usize, value: u32);
}

/// BARs mapped into the program.
#[derive(Clone, Default)]
pub struct Bars(Vec<(u8, usize, u32)>);

impl Bars {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds BAR `number`.
    ///
    /// # Safety
    /// It is mapped at `address`, uncached, for ever, with `length` bytes, and touching its registers harms no memory
    /// but what the device has been given.
    pub unsafe fn add(&mut self, number: u8, address: usize, length: u32) {
        self.0.push((number, address, length));
    }

    /// The address of `size` bytes at `place`, aligned to them.
    fn address(&self, place: Place, size: usize) -> Option<usize> {
        let (_, address, length) = self.0.iter().find(|(number, ..)| *number == place.bar)?;
        let end = place.offset.checked_add(size as u32)?;
        (end <= *length && place.offset.is_multiple_of(size as u32)).then(|| address + place.offset as usize)
    }
}

impl Registers for Bars {
    fn read(&self, place: Place, size: usize) -> u32 {
        let Some(address) = self.address(place, size) else { return u32::MAX };
        // SAFETY: inside a mapped BAR, see `Self::add`, and aligned.
        unsafe {
            match size {
                1 => (address as *const u8).read_volatile().into(),
                2 => (address as *const u16).read_volatile().into(),
                _ => (address as *const u32).read_volatile(),
            }
        }
    }

    fn write(&self, place: Place, size: usize, value: u32) {
        let Some(address) = self.address(place, size) else { return };
        // SAFETY: as in `read`.
        unsafe {
            match size {
                1 => (address as *mut u8).write_volatile(value as u8),
                2 => (address as *mut u16).write_volatile(value as u16),
                _ => (address as *mut u32).write_volatile(value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_of_a_bar_is_touched() {
        let memory = [0u32; 4];
        let mut bars = Bars::new();
        // SAFETY: stands for a BAR, and only this test uses it.
        unsafe { bars.add(4, memory.as_ptr() as usize, 16) };
        let place = |offset| Place { bar: 4, offset };
        bars.write(place(12), 4, 0x1234_5678);
        bars.write(place(2), 2, 0xabcd);
        assert_eq!(
            (bars.read(place(12), 4), bars.read(place(14), 2), bars.read(place(3), 1)),
            (0x1234_5678, 0x1234, 0xab)
        );
        for (bad, size) in [(13, 4), (16, 1), (15, 2), (14, 4), (u32::MAX, 2)] {
            bars.write(place(bad), size, 0);
            assert_eq!(bars.read(place(bad), size), u32::MAX, "{bad}");
        }
        assert_eq!(bars.read(Place { bar: 0, offset: 0 }, 4), u32::MAX);
        assert_eq!(bars.read(place(12), 4), 0x1234_5678);
    }
}
