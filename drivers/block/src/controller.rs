//! A real controller: what the manifest gives of it.

use crate::hardware::{Hardware, Memory};
use device::dma::{self, Area};
use device::registers::{Bars, Place, Registers};
use runtime::sync::sleep_until;
use runtime::time;

/// Registers in one BAR, and all of the DMA memory.
pub struct Controller {
    bars: Bars,
    bar: u8,
    memory: Area,
}

impl Controller {
    /// The program's controller, whose registers lie in this BAR. Once.
    pub fn open(bar: u8) -> Self {
        let bars = match device::program::open() {
            Ok(bars) => bars,
            Err(why) => panic!("no device: {why}"),
        };
        let Some(memory) = Area::new(dma::left()) else { panic!("no memory for DMA is left") };
        Self { bars, bar, memory }
    }

    fn place(&self, register: u64) -> Place {
        Place { bar: self.bar, offset: u32::try_from(register).unwrap_or(u32::MAX) }
    }
}

impl Hardware for Controller {
    type Memory = Area;
    fn read(&mut self, register: u64) -> u32 {
        self.bars.read(self.place(register), 4)
    }
    fn write(&mut self, register: u64, value: u32) {
        // Stores before this one are seen first: the memory is cached, the registers are not, and x86 keeps the order.
        self.bars.write(self.place(register), 4, value);
    }
    fn memory(&self) -> &Area {
        &self.memory
    }
    fn pause(&mut self) {
        sleep_until(time::now() + time::ticks_from_ms(1));
    }
}

impl Memory for Area {
    fn load(&self, offset: u64) -> u64 {
        Area::load(self, offset as usize)
    }
    fn store(&self, offset: u64, value: u64) {
        Area::store(self, offset as usize, value);
    }
    fn address(&self) -> u64 {
        self.device(0)
    }
    fn length(&self) -> u64 {
        Area::length(self) as u64
    }
}
