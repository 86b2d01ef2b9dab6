//! What a driver of a disk controller has: registers, and memory that the device reaches, too.

/// Memory that both a controller and its driver reach; the controller may write it at any time.
pub trait Memory {
    /// Loads the 8 bytes at `offset`, a multiple of 8.
    fn load(&self, offset: u64) -> u64;
    /// Stores 8 bytes there.
    fn store(&self, offset: u64, value: u64);
    /// Its address, as the controller sees it; a multiple of a page.
    fn address(&self) -> u64;
    /// Its length in bytes.
    fn length(&self) -> u64;
}

/// The controller's registers, and its memory. Tests put a model of the controller here.
pub trait Hardware {
    /// What the memory is.
    type Memory: Memory;
    /// Reads the 32-bit register at this offset.
    fn read(&mut self, register: u64) -> u32;
    /// Writes it, after all stores before.
    fn write(&mut self, register: u64, value: u32);
    /// The memory.
    fn memory(&self) -> &Self::Memory;
    /// Lets a millisecond pass.
    fn pause(&mut self);
}

/// Looks at the health that a running command may live to see: so many seconds, see [`crate::Device::check`].
const PATIENCE: u8 = 30;

/// How long each running command has been running.
pub struct Ages<const N: usize>([Option<u8>; N]);

impl<const N: usize> Default for Ages<N> {
    fn default() -> Self {
        Self([None; N])
    }
}

impl<const N: usize> Ages<N> {
    /// The command `id` starts.
    pub fn start(&mut self, id: u16) {
        self.0[usize::from(id)] = Some(0);
    }

    /// The command `id` has ended; false if it did not run.
    pub fn end(&mut self, id: u16) -> bool {
        self.0.get_mut(usize::from(id)).is_some_and(|age| age.take().is_some())
    }

    /// One more look; the command that has run for too long, if there is one.
    pub fn look(&mut self) -> Option<u16> {
        let aged = |(id, age): (usize, &mut Option<u8>)| {
            let age = age.as_mut()?;
            *age += 1;
            (*age > PATIENCE).then_some(id as u16)
        };
        self.0.iter_mut().enumerate().find_map(aged)
    }
}
