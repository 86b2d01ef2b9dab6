//! A controller as its driver sees it: registers, and legacy descriptors in the region for DMA.
#![allow(unsafe_code)]

use crate::spec;
use core::cell::RefCell;
use device::dma;
use device::registers::{Place, Registers};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// What there is of the controller.
#[derive(Default)]
pub struct State {
    registers: BTreeMap<u32, u32>,
    /// Whether it never finishes a reset.
    pub stuck: bool,
    /// Causes that have led to interrupts.
    pub interrupts: Vec<u32>,
}

/// A controller that several users share.
#[derive(Clone, Default)]
pub struct Model(pub Rc<RefCell<State>>);

impl State {
    /// The register's value.
    pub fn get(&self, offset: u32) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    fn set(&mut self, offset: u32, value: u32) {
        self.registers.insert(offset, value);
    }

    /// A cause: an interrupt if its mask bit is set, which is taken away then (10.2.4.6).
    fn cause(&mut self, bits: u32) {
        let pending = self.get(spec::ICR) | bits;
        let fires = pending & self.get(spec::IMS);
        self.set(spec::ICR, pending & !fires);
        self.set(spec::IMS, self.get(spec::IMS) & !(fires & self.get(spec::EIAC)));
        if fires != 0 {
            self.interrupts.push(fires);
        }
    }

    /// The descriptor at a queue's head, and the number behind it; none if the driver has offered no more.
    fn head(&self, queue: u32) -> Option<(u64, u32)> {
        let (head, tail) = (self.get(queue + spec::HEAD), self.get(queue + spec::TAIL));
        let count = self.get(queue + spec::LENGTH) / spec::DESCRIPTOR as u32;
        assert!(tail < count, "no descriptor");
        let base = u64::from(self.get(queue + spec::BASE_HIGH)) << 32 | u64::from(self.get(queue + spec::BASE_LOW));
        (head != tail).then(|| (base + u64::from(head) * spec::DESCRIPTOR as u64, (head + 1) % count))
    }
}

impl Model {
    /// A controller with the address 52:54:00:01:02:03.
    pub fn new() -> Self {
        dma::init_for_tests();
        let model = Self::default();
        model.0.borrow_mut().set(spec::RAL, 0x0100_5452);
        model.0.borrow_mut().set(spec::RAH, 0x0302 | spec::RAH_VALID);
        model
    }

    /// Receives `bytes`, with `status` and error bits of the descriptor; false if there is no buffer.
    pub fn deliver(&self, bytes: &[u8], length: usize, status: u64) -> bool {
        let state = &mut *self.0.borrow_mut();
        assert!(state.get(spec::RCTL) & spec::RCTL_EN != 0);
        let Some((descriptor, next)) = state.head(spec::RX) else { return false };
        assert_eq!(load(descriptor + 8), 0, "the driver has taken the last status away");
        store(load(descriptor), bytes);
        store(descriptor + 8, &(length as u64 | status).to_le_bytes());
        state.set(spec::RX + spec::HEAD, next);
        state.cause(spec::RXQ0);
        true
    }

    /// Receives a good frame.
    pub fn receive(&self, frame: &[u8]) -> bool {
        self.deliver(frame, frame.len(), spec::RX_DONE | spec::RX_END)
    }

    /// Sends the next frame of the driver's.
    pub fn send(&self) -> Option<Vec<u8>> {
        let state = &mut *self.0.borrow_mut();
        assert!(state.get(spec::TCTL) & spec::TCTL_EN != 0);
        let (descriptor, next) = state.head(spec::TX)?;
        let command = load(descriptor + 8);
        assert_eq!(command & !0xffff, spec::TX_COMMAND, "no status left");
        let (start, length) = (load(descriptor), (command & 0xffff) as usize);
        let frame = (0..length as u64).map(|i| read(start + i)).collect();
        store(descriptor + 8, &(command | spec::TX_DONE).to_le_bytes());
        state.set(spec::TX + spec::HEAD, next);
        state.cause(spec::TXQ0);
        Some(frame)
    }

    /// The interrupts since the last call.
    pub fn interrupts(&self) -> Vec<u32> {
        core::mem::take(&mut self.0.borrow_mut().interrupts)
    }
}

fn pointer(address: u64, length: usize) -> *mut u8 {
    dma::program_address(address, length).expect("the controller reaches beyond its memory")
}

fn read(address: u64) -> u8 {
    // SAFETY: inside the region.
    unsafe { pointer(address, 1).read_volatile() }
}

fn load(address: u64) -> u64 {
    // SAFETY: inside the region, and descriptors are aligned.
    unsafe { pointer(address, 8).cast::<u64>().read_volatile() }
}

fn store(address: u64, bytes: &[u8]) {
    // SAFETY: inside the region.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer(address, bytes.len()), bytes.len()) }
}

impl Registers for Model {
    fn read(&self, place: Place, size: usize) -> u32 {
        assert_eq!((place.bar, size), (0, 4));
        self.0.borrow().get(place.offset)
    }

    fn write(&self, place: Place, size: usize, value: u32) {
        assert_eq!((place.bar, size), (0, 4));
        let state = &mut *self.0.borrow_mut();
        match place.offset {
            spec::CTRL if value & spec::CTRL_RST != 0 && !state.stuck => {
                let address = [spec::RAL, spec::RAH].map(|offset| (offset, state.get(offset)));
                state.registers = address.into();
            }
            spec::IMS => {
                state.set(spec::IMS, state.get(spec::IMS) | value);
                state.cause(0);
            }
            spec::ICR => state.set(spec::ICR, state.get(spec::ICR) & !value),
            spec::IMC => state.set(spec::IMS, state.get(spec::IMS) & !value),
            offset => state.set(offset, value),
        }
    }
}
