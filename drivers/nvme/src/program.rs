//! The program around the logic: real registers and memory.

use block::memory::Mapping;
use nvme::Hardware;
use nvme::disk::Disk;
use runtime::sync::sleep_until;
use runtime::{log, time};

/// Failed commands that are logged; a broken disk must not fill the log.
const ERRORS: u32 = 16;

struct Controller {
    registers: Mapping,
    memory: Mapping,
}

impl Hardware for Controller {
    fn read(&mut self, register: u64) -> u32 {
        self.registers.read(register)
    }
    fn write(&mut self, register: u64, value: u32) {
        // Stores before this one are seen first: the memory is cached, the registers are not, and x86 keeps the order.
        self.registers.write(register, value);
    }
    fn load(&self, offset: u64) -> u64 {
        self.memory.read(offset)
    }
    fn store(&mut self, offset: u64, value: u64) {
        self.memory.write(offset, value);
    }
    fn address(&self) -> u64 {
        self.memory.device()
    }
    fn length(&self) -> u64 {
        self.memory.length()
    }
    fn pause(&mut self) {
        sleep_until(time::now() + time::ticks_from_ms(1));
    }
}

/// The program.
pub fn run() -> ! {
    let (Some(registers), Some(memory)) = (Mapping::open("bar0"), Mapping::open("dma")) else {
        panic!("no registers or no DMA memory in the manifest")
    };
    let disk = match Disk::new(Controller { registers, memory }) {
        Ok(disk) => disk,
        Err(error) => panic!("{error}"),
    };
    let identity = disk.identity();
    let cache = if identity.volatile_cache { "a write cache" } else { "no write cache" };
    log!(
        "{}, serial number {}: {} sectors, blocks of {} bytes, {cache}, {} commands at once",
        identity.model,
        identity.serial,
        identity.sectors,
        identity.block,
        identity.depth
    );
    let mut errors = 0;
    block::program::serve(disk, move |disk| {
        if errors < ERRORS
            && let Some((opcode, sector, status)) = disk.take_error()
        {
            errors += 1;
            log!("command {opcode:#x} at sector {sector} failed, status {status:#x}");
        }
    })
}
