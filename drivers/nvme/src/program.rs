//! The program around the logic.

use block::controller::Controller;
use nvme::disk::Disk;
use runtime::log;

/// Failed commands that are logged; a broken disk must not fill the log.
const ERRORS: u32 = 16;

/// The program.
pub fn run() -> ! {
    let disk = match Disk::new(Controller::open(0)) {
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
