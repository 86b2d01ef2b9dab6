//! What a driver of a disk controller has: registers, and memory that the device reaches, too.

/// The controller's registers, and memory that both it and the driver reach. Tests put a model of the controller here.
pub trait Hardware {
    /// Reads the 32-bit register at this offset.
    fn read(&mut self, register: u64) -> u32;
    /// Writes it, after all stores before.
    fn write(&mut self, register: u64, value: u32);
    /// Loads 8 bytes of the DMA memory; the controller may write them at any time.
    fn load(&self, offset: u64) -> u64;
    /// Stores 8 bytes there.
    fn store(&mut self, offset: u64, value: u64);
    /// Address of the DMA memory, as the controller sees it; a multiple of a page.
    fn address(&self) -> u64;
    /// Length of the DMA memory in bytes.
    fn length(&self) -> u64;
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
