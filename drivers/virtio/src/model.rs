//! A virtio device as its driver sees it, for host tests: registers of the PCI transport, and split queues in the
//! region for DMA. It checks what a driver owes a device, and panics where it is not done.
#![allow(unsafe_code)]

use crate::capability::Structures;
use core::cell::RefCell;
use device::dma;
use device::registers::{Place, Registers};
use std::rc::Rc;
use std::vec::Vec;

/// Bytes between bells.
const MULTIPLIER: u32 = 4;

/// Bytes of the device's own configuration.
const CONFIG: usize = 24;

const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// The structures of the model.
pub const STRUCTURES: Structures = Structures {
    common: Place { bar: 4, offset: 0 },
    notify: Place { bar: 4, offset: 0x3000 },
    notify_multiplier: MULTIPLIER,
    isr: Place { bar: 4, offset: 0x1000 },
    device: Some((Place { bar: 4, offset: 0x2000 }, CONFIG as u32)),
};

/// A queue of the device.
#[derive(Clone, Default)]
struct Queue {
    size: u16,
    vector: u16,
    enabled: bool,
    /// Descriptors, available ring, used ring: addresses of the device.
    areas: [u64; 3],
    /// Next entry of the available ring.
    next: u16,
    used: u16,
    rings: u32,
}

/// What there is of the device.
pub struct State {
    /// Features that it offers.
    pub offered: u64,
    /// Features that the driver accepted.
    pub accepted: u64,
    /// Its own configuration.
    pub config: [u8; CONFIG],
    /// Number of its MSI-X vectors.
    pub vectors: u16,
    /// Entries that its queues can have, from the next reset on.
    pub entries: u16,
    /// Whether it never finishes a reset.
    pub stuck: bool,
    /// Whether it refuses all features.
    pub stubborn: bool,
    /// Its status.
    pub status: u8,
    selects: [u32; 2],
    queue: u16,
    queues: Vec<Queue>,
}

/// A device that several users share.
#[derive(Clone)]
pub struct Model(Rc<RefCell<State>>);

/// Buffers that the driver has made available.
pub struct Chain {
    /// Its first descriptor.
    pub head: u16,
    /// What the driver wrote.
    pub readable: Vec<u8>,
    /// Device addresses and lengths of what the device may write.
    pub writable: Vec<(u64, u32)>,
}

impl Model {
    /// A device with `queues` queues of 256 entries.
    pub fn new(offered: u64, queues: usize) -> Self {
        dma::init_for_tests();
        Self(Rc::new(RefCell::new(State {
            offered,
            accepted: 0,
            config: [0; CONFIG],
            vectors: 4,
            entries: 256,
            stuck: false,
            stubborn: false,
            status: 0,
            selects: [0; 2],
            queue: 0,
            queues: std::vec![Queue::default(); queues],
        })))
    }

    /// Changes the device.
    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.borrow_mut())
    }

    /// How often `queue`'s bell has rung.
    pub fn rings(&self, queue: usize) -> u32 {
        self.0.borrow().queues[queue].rings
    }

    /// The vector of `queue`.
    pub fn vector(&self, queue: usize) -> u16 {
        self.0.borrow().queues[queue].vector
    }

    /// Takes the next buffers of `queue`.
    pub fn take(&self, queue: usize) -> Option<Chain> {
        let state = &mut *self.0.borrow_mut();
        assert!(state.status & DRIVER_OK != 0, "the device does not run yet");
        let queue = &mut state.queues[queue];
        assert!(queue.enabled);
        let [descriptors, available, _] = queue.areas;
        if load::<2>(available + 2) == queue.next.to_le_bytes() {
            return None;
        }
        let slot = u64::from(queue.next % queue.size);
        queue.next = queue.next.wrapping_add(1);
        let head = u16::from_le_bytes(load(available + 4 + slot * 2));
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut index = head;
        loop {
            let at = descriptors + u64::from(index) * 16;
            let (address, length) = (u64::from_le_bytes(load(at)), u32::from_le_bytes(load(at + 8)));
            let (flags, next) = (u16::from_le_bytes(load(at + 12)), u16::from_le_bytes(load(at + 14)));
            match flags & 2 {
                0 => chain.readable.extend(read(address, length as usize)),
                _ => chain.writable.push((address, length)),
            }
            if flags & 1 == 0 {
                return Some(chain);
            }
            index = next;
        }
    }

    /// Gives the buffers that begin at `head` back, with `length` bytes written.
    pub fn complete(&self, queue: usize, head: u32, length: u32) {
        let queue = &mut self.0.borrow_mut().queues[queue];
        let used = queue.areas[2];
        let at = used + 4 + u64::from(queue.used % queue.size) * 8;
        store(at, &head.to_le_bytes());
        store(at + 4, &length.to_le_bytes());
        queue.used = queue.used.wrapping_add(1);
        store(used + 2, &queue.used.to_le_bytes());
    }

    /// Writes `bytes` into the buffers of `queue` that come next; false if there are none.
    pub fn deliver(&self, queue: usize, bytes: &[u8]) -> bool {
        let Some(chain) = self.take(queue) else { return false };
        let mut rest = bytes;
        for (address, length) in chain.writable {
            let (now, later) = rest.split_at(rest.len().min(length as usize));
            store(address, now);
            rest = later;
        }
        assert!(rest.is_empty(), "the buffers are too small");
        self.complete(queue, chain.head.into(), bytes.len() as u32);
        true
    }

    /// Asks for a bell only when the driver has gone beyond what the device has taken (2.7.10).
    pub fn want_bell(&self, queue: usize) {
        let queue = &self.0.borrow().queues[queue];
        store(queue.areas[2] + 4 + u64::from(queue.size) * 8, &queue.next.to_le_bytes());
    }
}

fn pointer(address: u64, length: usize) -> *mut u8 {
    dma::program_address(address, length).expect("the device reaches beyond its memory")
}

fn load<const N: usize>(address: u64) -> [u8; N] {
    // SAFETY: inside the region.
    unsafe { pointer(address, N).cast::<[u8; N]>().read_volatile() }
}

/// The device reads.
pub fn read(address: u64, length: usize) -> Vec<u8> {
    let start = pointer(address, length);
    // SAFETY: inside the region or a window.
    (0..length).map(|i| unsafe { start.add(i).read_volatile() }).collect()
}

/// The device writes.
pub fn store(address: u64, bytes: &[u8]) {
    let start = pointer(address, bytes.len());
    // SAFETY: inside the region or a window.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) }
}

impl State {
    fn common_read(&mut self, offset: u32) -> u32 {
        let half = |features: u64, select: u32| (features >> (32 * select)) as u32;
        let selected = self.queues.get(usize::from(self.queue)).cloned().unwrap_or_default();
        match offset {
            0x04 => half(self.offered, self.selects[0]),
            0x14 => self.status.into(),
            0x15 => 0,
            0x18 => selected.size.into(),
            0x1a => selected.vector.into(),
            0x1c => selected.enabled.into(),
            0x1e => self.queue.into(),
            _ => panic!("no driver reads register {offset:#x}"),
        }
    }

    fn common_write(&mut self, offset: u32, value: u32) {
        let vectors = self.vectors;
        match offset {
            0x00 => self.selects[0] = value,
            0x08 => self.selects[1] = value,
            0x0c => {
                let keep = self.accepted & (0xffff_ffff << (32 * (1 - self.selects[1])));
                self.accepted = keep | u64::from(value) << (32 * self.selects[1]);
            }
            0x10 => assert_eq!(value, 0xffff),
            0x14 => self.set_status(value as u8),
            0x16 => self.queue = value as u16,
            _ => {
                assert_eq!(self.status & (FEATURES_OK | DRIVER_OK), FEATURES_OK, "queues are set up in between");
                let queue = &mut self.queues[usize::from(self.queue)];
                assert!(!queue.enabled, "an enabled queue stays as it is");
                match offset {
                    0x18 => queue.size = value as u16,
                    0x1a => queue.vector = if value < vectors.into() { value as u16 } else { 0xffff },
                    0x1c => queue.enabled = true,
                    0x20..0x38 => {
                        let area = &mut queue.areas[(offset as usize - 0x20) / 8];
                        let shift = (offset & 4) * 8;
                        *area = *area & !(0xffff_ffff << shift) | u64::from(value) << shift;
                    }
                    _ => panic!("no driver writes register {offset:#x}"),
                }
            }
        }
    }

    fn set_status(&mut self, status: u8) {
        assert!(status == 0 || status & self.status == self.status, "the driver takes no bits back");
        if status == 0 && !self.stuck {
            let fresh = Queue { size: self.entries, vector: 0xffff, ..Queue::default() };
            self.queues.fill(fresh);
        }
        self.status = match self.stuck {
            true => status | 1,
            false => status,
        };
        if self.stubborn || self.accepted & !self.offered != 0 {
            self.status &= !FEATURES_OK;
        }
    }
}

impl Registers for Model {
    fn read(&self, place: Place, size: usize) -> u32 {
        let mut state = self.0.borrow_mut();
        match place.offset {
            0..0x1000 => state.common_read(place.offset),
            0x2000..0x3000 => {
                assert_eq!(size, 1);
                state.config[place.offset as usize - 0x2000].into()
            }
            _ => panic!("no driver reads {place:?}"),
        }
    }

    fn write(&self, place: Place, size: usize, value: u32) {
        let mut state = self.0.borrow_mut();
        match place.offset {
            0..0x1000 => state.common_write(place.offset, value),
            0x3000.. => {
                let queue = (place.offset - 0x3000) / MULTIPLIER;
                assert_eq!((size, value), (2, queue), "a bell takes its queue's number");
                state.queues[queue as usize].rings += 1;
            }
            _ => panic!("no driver writes {place:?}"),
        }
    }
}
