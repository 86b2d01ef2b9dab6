//! The program around the logic.

use ahci::disk::Disk;
use block::controller::Controller;
use runtime::log;

/// Failed commands that are logged; a broken disk must not fill the log.
const ERRORS: u32 = 16;

/// The program.
pub fn run() -> ! {
    let disk = match Disk::new(Controller::open(5)) {
        Ok(disk) => disk,
        Err(error) => panic!("{error}"),
    };
    let (identity, port) = (disk.identity(), disk.port());
    let cache = if identity.volatile_cache { "a write cache" } else { "no write cache" };
    log!(
        "port {port}: {}, serial number {}: {} sectors, blocks of {} bytes, {cache}",
        identity.model,
        identity.serial,
        identity.sectors,
        identity.block
    );
    let mut errors = 0;
    block::program::serve(disk, move |disk| {
        if errors < ERRORS
            && let Some(status) = disk.take_error()
        {
            errors += 1;
            log!("a command failed, PxTFD {status:#x}");
        }
    })
}
