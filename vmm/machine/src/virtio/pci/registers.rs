//! The common configuration structure (4.1.4.3).
//!
//! Fields are accessed by their own width; those of 64 bits also by halves (4.1.3.1). Other accesses read what is there and
//! write nothing.

use super::{VirtioPci, status};
use crate::bus::Width;
use crate::memory::GuestMemory;
use crate::virtio::Model;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const END: u64 = super::COMMON_SIZE as u64;

/// The 32 bits of a 64-bit set that a selector selects: 0, 1; nothing beyond.
fn word(bits: u64, select: u32) -> u64 {
    match select {
        0 => bits & 0xffff_ffff,
        1 => bits >> 32,
        _ => 0,
    }
}

impl<D: Model<M>, M: GuestMemory> VirtioPci<D, M> {
    pub(super) fn read_common(&self, offset: u64, width: Width) -> u64 {
        let start = offset & !7;
        if offset - start + width.bytes() as u64 > 8 {
            return 0;
        }
        self.common_qword(start) >> (8 * (offset - start)) & width.ones()
    }

    /// The eight bytes at `offset`, which is a multiple of that.
    fn common_qword(&self, offset: u64) -> u64 {
        let field = |at: u64, value: u64| value << (8 * (at - offset));
        match offset {
            DEVICE_FEATURE_SELECT => {
                field(DEVICE_FEATURE_SELECT, self.device_select.into())
                    | field(DEVICE_FEATURE, word(self.features(), self.device_select))
            }
            DRIVER_FEATURE_SELECT => {
                field(DRIVER_FEATURE_SELECT, self.driver_select.into())
                    | field(DRIVER_FEATURE, word(self.driver_features, self.driver_select))
            }
            CONFIG_VECTOR => {
                field(CONFIG_VECTOR, self.interrupts.config_vector.into())
                    | field(NUM_QUEUES, self.queues.len() as u64)
                    | field(DEVICE_STATUS, self.status.into())
                    | field(CONFIG_GENERATION, self.generation.into())
                    | field(QUEUE_SELECT, self.queue_select.into())
            }
            QUEUE_SIZE..END => self.queue_qword(offset),
            _ => 0,
        }
    }

    /// The same of the selected queue; of one that does not exist all reads as zero, its size above all (4.1.4.3.1).
    fn queue_qword(&self, offset: u64) -> u64 {
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else { return 0 };
        match offset {
            QUEUE_SIZE => {
                let field = |at: u64, value: u16| u64::from(value) << (8 * (at - offset));
                field(QUEUE_SIZE, queue.size())
                    | field(QUEUE_VECTOR, queue.vector())
                    | field(QUEUE_ENABLE, queue.enabled().into())
                    | field(QUEUE_NOTIFY_OFFSET, self.queue_select)
            }
            QUEUE_DESCRIPTORS => queue.addresses.descriptors,
            QUEUE_DRIVER => queue.addresses.available,
            QUEUE_DEVICE => queue.addresses.used,
            _ => 0,
        }
    }

    pub(super) fn write_common(&mut self, offset: u64, width: Width, value: u64) {
        match (offset, width) {
            (DEVICE_FEATURE_SELECT, Width::Dword) => self.device_select = value as u32,
            (DRIVER_FEATURE_SELECT, Width::Dword) => self.driver_select = value as u32,
            (DRIVER_FEATURE, Width::Dword) => self.set_driver_features(value),
            (CONFIG_VECTOR, Width::Word) => {
                self.interrupts.config_vector = self.interrupts.checked(value as u16);
            }
            (DEVICE_STATUS, Width::Byte) => self.set_status(value as u8),
            (QUEUE_SELECT, Width::Word) => self.queue_select = value as u16,
            (QUEUE_SIZE..END, _) => self.write_queue(offset, width, value),
            _ => {}
        }
    }

    /// Once agreed on they stay.
    fn set_driver_features(&mut self, value: u64) {
        let shift = match self.driver_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & status::FEATURES_OK == 0 {
            self.driver_features = self.driver_features & !(0xffff_ffff << shift) | value << shift;
        }
    }

    /// A queue that is enabled takes another message, and nothing else.
    fn write_queue(&mut self, offset: u64, width: Width, value: u64) {
        let vector = self.interrupts.checked(value as u16);
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        match (offset, width) {
            (QUEUE_VECTOR, Width::Word) => queue.set_vector(vector),
            _ if queue.enabled() => {}
            (QUEUE_SIZE, Width::Word) => queue.set_size(value as u16),
            (QUEUE_ENABLE, Width::Word) if value == 1 && self.status & status::FEATURES_OK != 0 => {
                if let Err(violation) = queue.enable(&self.memory, self.driver_features) {
                    self.fail(violation);
                }
            }
            (QUEUE_DESCRIPTORS..END, _) => {
                let addresses = &mut queue.addresses;
                let address = match offset & !7 {
                    QUEUE_DESCRIPTORS => &mut addresses.descriptors,
                    QUEUE_DRIVER => &mut addresses.available,
                    _ => &mut addresses.used,
                };
                *address = match (offset & 7, width) {
                    (0, Width::Qword) => value,
                    (0, Width::Dword) => *address & !0xffff_ffff | value,
                    (4, Width::Dword) => *address & 0xffff_ffff | value << 32,
                    _ => *address,
                };
            }
            _ => {}
        }
    }
}
