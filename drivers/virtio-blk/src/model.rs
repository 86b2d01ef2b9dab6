//! A model of a virtio disk, behind the model of a virtio device.

use std::vec::Vec;
use virtio::model::{Chain, Model as Device, STRUCTURES, store};
use virtio::transport::{ACCESS_PLATFORM, PciTransport, VERSION_1};
use virtio_drivers::transport::DeviceType;

pub const SIZE_MAX: u64 = 1 << 1;
pub const READ_ONLY: u64 = 1 << 5;
pub const BLOCK_SIZE: u64 = 1 << 6;
pub const FLUSH: u64 = 1 << 9;
pub const EVENT_IDX: u64 = 1 << 29;
/// What no driver of one queue needs: several queues, discarding, a switch for the cache.
pub const OTHERS: u64 = 1 << 11 | 1 << 12 | 1 << 13;

pub const QUEUE: usize = 0;

/// A request that the device has taken from its queue.
pub struct Request {
    pub kind: u32,
    pub sector: u64,
    /// What is to be written.
    pub data: Vec<u8>,
    /// Where what is read belongs, and how much.
    pub to: Option<(u64, u32)>,
    status: u64,
    head: u16,
}

pub struct Model {
    pub device: Device,
    pub disk: Vec<u8>,
    /// Taken and not ended.
    pub running: Vec<Request>,
    pub flushes: u32,
}

impl Model {
    pub fn new(features: u64, sectors: u64) -> Self {
        let device = Device::new(VERSION_1 | ACCESS_PLATFORM | features, 1);
        device.with(|state| state.config[..8].copy_from_slice(&sectors.to_le_bytes()));
        Self { device, disk: std::vec![0; sectors as usize * 512], running: Vec::new(), flushes: 0 }
    }

    pub fn set(&self, offset: usize, value: u32) {
        self.device.with(|state| state.config[offset..offset + 4].copy_from_slice(&value.to_le_bytes()));
    }

    pub fn transport(&self) -> PciTransport<Device> {
        PciTransport::new(self.device.clone(), STRUCTURES, DeviceType::Block, [0].into())
    }

    /// Takes all new requests from the queue, and asks to hear of the next one.
    pub fn take(&mut self) {
        while let Some(chain) = self.device.take(QUEUE) {
            self.running.push(Request::new(chain));
        }
        self.device.want_bell(QUEUE);
    }

    /// Does what the request at this place of [`Self::running`] asks for.
    pub fn execute(&mut self, place: usize) {
        let Request { kind, sector, ref data, to, .. } = self.running[place];
        let at = sector as usize * 512;
        match kind {
            0 => {
                let (address, length) = to.unwrap();
                store(address, &self.disk[at..at + length as usize]);
            }
            1 => self.disk[at..at + data.len()].copy_from_slice(data),
            _ => self.flushes += 1,
        }
        let written = to.map_or(1, |(_, length)| length + 1);
        self.end(place, Some(0), written);
    }

    /// Ends a request with this status, or none, and so many bytes written.
    pub fn end(&mut self, place: usize, status: Option<u8>, written: u32) {
        let request = self.running.swap_remove(place);
        if let Some(status) = status {
            store(request.status, &[status]);
        }
        self.device.complete(QUEUE, request.head.into(), written);
    }
}

impl Request {
    /// Checks that the chain is what the standard says (5.2.6).
    fn new(chain: Chain) -> Self {
        let (header, data) = chain.readable.split_at(16);
        let kind = u32::from_le_bytes(*header.first_chunk().unwrap());
        assert_eq!(header[4..8], [0; 4]);
        let sector = u64::from_le_bytes(*header[8..].first_chunk().unwrap());
        let (&(status, length), to) = chain.writable.split_last().unwrap();
        assert_eq!(length, 1);
        match kind {
            0 => assert!(data.is_empty() && to.len() == 1),
            1 => assert!(!data.is_empty() && to.is_empty()),
            4 => assert!(data.is_empty() && to.is_empty() && sector == 0),
            _ => panic!("a request of kind {kind}"),
        }
        Self { kind, sector, data: data.to_vec(), to: to.first().copied(), status, head: chain.head }
    }
}
