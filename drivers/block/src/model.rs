//! What models of controllers share: their memory, and the way of a driver to them.

use crate::hardware::{Hardware, Memory};
use alloc::rc::Rc;
use alloc::vec;
use core::cell::{Cell, RefCell};

/// Where it begins for the device.
pub const BASE: u64 = 0x1_2340_0000;

/// The DMA memory, and behind it the clients' windows, which only the device reaches.
#[derive(Clone)]
pub struct Shared {
    words: Rc<[Cell<u64>]>,
    length: u64,
}

impl Shared {
    /// So many bytes of DMA memory and of windows, full of what somebody left.
    pub fn new(length: u64, windows: u64) -> Self {
        Self { words: vec![Cell::new(u64::MAX); ((length + windows) / 8) as usize].into(), length }
    }

    /// The word at an address of the device; a multiple of 4 that lies elsewhere fails the test.
    fn word(&self, address: u64) -> &Cell<u64> {
        let word = address.checked_sub(BASE).and_then(|offset| self.words.get(offset as usize / 8));
        match word {
            Some(word) if address.is_multiple_of(4) => word,
            _ => panic!("DMA to {address:#x}"),
        }
    }

    /// The device reads 4 bytes.
    pub fn half(&self, address: u64) -> u32 {
        (self.word(address).get() >> (address % 8 * 8)) as u32
    }

    /// The device writes 4 bytes.
    pub fn put(&self, address: u64, value: u32) {
        let (word, shift) = (self.word(address), address % 8 * 8);
        word.set(word.get() & !(0xffff_ffff << shift) | u64::from(value) << shift);
    }

    /// The device reads 8 bytes, at a multiple of 4.
    pub fn whole(&self, address: u64) -> u64 {
        u64::from(self.half(address)) | u64::from(self.half(address + 4)) << 32
    }
}

impl Memory for Shared {
    fn load(&self, offset: u64) -> u64 {
        assert!(offset < self.length && offset.is_multiple_of(8));
        self.words[offset as usize / 8].get()
    }
    fn store(&self, offset: u64, value: u64) {
        assert!(offset < self.length && offset.is_multiple_of(8));
        self.words[offset as usize / 8].set(value);
    }
    fn address(&self) -> u64 {
        BASE
    }
    fn length(&self) -> u64 {
        self.length
    }
}

/// A model of a controller.
pub trait Controller {
    /// The driver reads a register.
    fn read(&mut self, register: u64) -> u32;
    /// The driver writes one.
    fn write(&mut self, register: u64, value: u32);
    /// The memory.
    fn memory(&self) -> &Shared;
    /// A millisecond passes.
    fn pause(&mut self) {}
}

/// A driver's way to a model that the test looks at, too.
pub struct Handle<M>(Rc<RefCell<M>>, Shared);

impl<M: Controller> Handle<M> {
    /// To this model.
    pub fn new(model: Rc<RefCell<M>>) -> Self {
        let memory = model.borrow().memory().clone();
        Self(model, memory)
    }
}

impl<M: Controller> Hardware for Handle<M> {
    type Memory = Shared;
    fn read(&mut self, register: u64) -> u32 {
        self.0.borrow_mut().read(register)
    }
    fn write(&mut self, register: u64, value: u32) {
        self.0.borrow_mut().write(register, value);
    }
    fn memory(&self) -> &Shared {
        &self.1
    }
    fn pause(&mut self) {
        self.0.borrow_mut().pause();
    }
}
