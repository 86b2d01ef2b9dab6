//! The program around the logic.

use runtime::log;
use virtio_blk::disk::Disk;
use virtio_drivers::transport::DeviceType;

/// Failed commands that are logged; a broken disk must not fill the log.
const ERRORS: u32 = 16;

/// The program.
pub fn run() -> ! {
    let vectors = device::program::interrupt(0).map(|_| 0).into_iter().collect();
    let transport = match virtio::program::open(DeviceType::Block, vectors) {
        Ok(transport) => transport,
        Err(why) => panic!("no device: {why}"),
    };
    let disk = match Disk::new(transport) {
        Ok(disk) => disk,
        Err(error) => panic!("{error}"),
    };
    let identity = disk.identity();
    let cache = if identity.volatile_cache { "a write cache" } else { "no write cache" };
    let access = if identity.read_only { ", read only" } else { "" };
    log!(
        "{} sectors, blocks of {} bytes, {cache}, {} commands at once{access}",
        identity.sectors,
        identity.block,
        virtio_blk::disk::DEPTH
    );
    let mut errors = 0;
    block::program::serve(disk, move |disk| {
        if let Err(failure) = disk.rules() {
            panic!("{failure}: a successor begins anew");
        }
        if errors < ERRORS
            && let Some((action, sector, status)) = disk.take_error()
        {
            errors += 1;
            log!("{action:?} at sector {sector} failed, status {status:#x}");
        }
    })
}
