//! A unit as the specification describes it: registers, a queue, caches that keep what they may keep.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::Hardware;

/// Tables by physical address, 512 words each; and what was written to registers.
#[derive(Debug, Default)]
pub struct Model {
    pub registers: RefCell<BTreeMap<u32, u32>>,
    pub memory: RefCell<BTreeMap<u64, Vec<u64>>>,
    /// Root table, interrupt table, queue: as latched by their commands.
    pub root: Cell<u64>,
    pub interrupts: Cell<u64>,
    head: Cell<u32>,
    /// Page and domain to what a leaf said; context entries by source.
    translations: RefCell<BTreeMap<(u16, u64), (u64, bool)>>,
    contexts: RefCell<BTreeMap<u16, [u64; 2]>>,
    /// It keeps absent entries, too.
    pub caching: Cell<bool>,
    absent: RefCell<Vec<(u16, u64)>>,
    /// It does not look at its queue any more; it does not take this command.
    pub stuck: Cell<bool>,
    pub deaf: Cell<u32>,
    /// Everything that was written, in order.
    pub log: RefCell<Vec<(u32, u32)>>,
}

const COMMAND: u32 = 0x18;
const STATUS: u32 = 0x1c;
const ADDRESS: u64 = 0xf_ffff_ffff_f000;

impl Model {
    pub fn set(&self, register: u32, value: u32) {
        self.registers.borrow_mut().insert(register, value);
    }

    pub fn get(&self, register: u32) -> u32 {
        self.registers.borrow().get(&register).copied().unwrap_or(0)
    }

    fn wide(&self, register: u32) -> u64 {
        u64::from(self.get(register)) | u64::from(self.get(register + 4)) << 32
    }

    pub fn entry(&self, table: u64, index: usize) -> u64 {
        self.memory.borrow().get(&table).map_or(0, |table| table[index])
    }

    pub fn put(&self, table: u64, index: usize, value: u64) {
        self.memory.borrow_mut().entry(table).or_insert_with(|| std::vec![0; 512])[index] = value;
    }

    /// 11.4.4: a command changes one bit.
    fn command(&self, value: u32) {
        let status = self.get(STATUS);
        let lasting = 1 << 31 | 1 << 28 | 1 << 26 | 1 << 25 | 1 << 23;
        let changed = (value ^ status) & lasting | value & (1 << 30 | 1 << 24);
        assert!(changed.count_ones() <= 1, "one at a time: {value:#x} with status {status:#x}");
        if changed & self.deaf.get() != 0 {
            return;
        }
        let mut new = status & !lasting | value & lasting;
        match changed {
            0x4000_0000 => {
                assert!(status >> 31 == 0 || self.wide(0x20) & 3 << 10 == 0);
                self.root.set(self.wide(0x20));
                new |= 1 << 30;
            }
            0x0100_0000 => {
                assert_eq!(status & 1 << 25, 0, "the table changes while it is not used");
                self.interrupts.set(self.wide(0xb8));
                new |= 1 << 24;
            }
            0x0400_0000 if value & 1 << 26 != 0 => {
                // 6.5.2: the tail is 0 when the queue is turned on.
                assert_eq!(self.get(0x88), 0);
                self.head.set(0);
            }
            0x8000_0000 if value >> 31 != 0 => assert_ne!(status & 1 << 30, 0, "there is a root table"),
            0x0200_0000 if value & 1 << 25 != 0 => assert_ne!(status & 1 << 24, 0, "there is an interrupt table"),
            _ => {}
        }
        self.set(STATUS, new);
    }

    /// Carries out descriptors up to the tail (6.5.2).
    fn queue(&self) {
        assert_ne!(self.get(STATUS) & 1 << 26, 0, "the queue is on");
        let (base, tail) = (self.wide(0x90) & ADDRESS, self.get(0x88));
        assert_eq!(self.wide(0x90) & 0xfff, 0);
        assert!(tail < 4096 && tail % 16 == 0);
        while self.head.get() != tail && !self.stuck.get() {
            let at = self.head.get() as usize / 8;
            let [low, high] = [self.entry(base, at), self.entry(base, at + 1)];
            match (low & 0xf, low >> 4 & 3) {
                (1, 1) => self.contexts.borrow_mut().clear(),
                (2, 1) => {
                    self.translations.borrow_mut().clear();
                    self.absent.borrow_mut().clear();
                }
                (2, 2) => {
                    let domain = (low >> 16) as u16;
                    self.translations.borrow_mut().retain(|key, _| key.0 != domain);
                    self.absent.borrow_mut().retain(|key| key.0 != domain);
                }
                (4, 0) => {}
                (5, 2) => {
                    assert_eq!(high & 3, 0);
                    let (table, index) = (high & !0xfff, (high & 0xfff) as usize / 8);
                    let old = self.entry(table, index);
                    self.put(table, index, old & !0xffff_ffff | low >> 32);
                }
                other => panic!("descriptor {other:?}: {low:#x}"),
            }
            self.head.set((self.head.get() + 16) % 4096);
        }
        self.set(0x80, self.head.get());
    }

    /// What a device reaches: the physical page, if it may write (3.4, 3.7). Keeps what it looked up.
    pub fn access(&self, source: u16, page: u64, write: bool) -> Option<u64> {
        assert_ne!(self.get(STATUS) >> 31, 0, "translation is on");
        let context = *self.contexts.borrow_mut().entry(source).or_insert_with(|| self.context(source));
        if context[0] & 1 == 0 {
            self.contexts.borrow_mut().remove(&source);
            return None;
        }
        let (domain, levels) = ((context[1] >> 8) as u16, (context[1] & 7) as u32 + 2);
        assert_ne!(domain, 0, "0 is kept for absent context entries");
        if self.absent.borrow().contains(&(domain, page)) {
            return None;
        }
        let known = self.translations.borrow().get(&(domain, page)).copied();
        let Some((frame, writable)) = known.or_else(|| self.walk(context[0] & ADDRESS, levels, page)) else {
            if self.caching.get() {
                self.absent.borrow_mut().push((domain, page));
            }
            return None;
        };
        self.translations.borrow_mut().insert((domain, page), (frame, writable));
        (writable || !write).then_some(frame)
    }

    fn context(&self, source: u16) -> [u64; 2] {
        let root = self.entry(self.root.get(), (source >> 8) as usize * 2);
        let at = (source & 0xff) as usize * 2;
        if root & 1 == 0 { [0; 2] } else { [self.entry(root & ADDRESS, at), self.entry(root & ADDRESS, at + 1)] }
    }

    fn walk(&self, mut table: u64, levels: u32, page: u64) -> Option<(u64, bool)> {
        let mut writable = true;
        for level in (0..levels).rev() {
            let entry = self.entry(table, (page >> (9 * level)) as usize & 511);
            if entry & 3 == 0 {
                return None;
            }
            writable &= entry & 2 != 0;
            table = entry & ADDRESS;
            if level == 0 || entry & 1 << 7 != 0 {
                let offset = page & ((1 << (9 * level)) - 1);
                return Some(((table >> 12) + offset, writable));
            }
        }
        None
    }
}

impl Hardware for &Model {
    fn read(&self, offset: u32) -> u32 {
        self.get(offset)
    }

    fn write(&self, offset: u32, value: u32) {
        self.log.borrow_mut().push((offset, value));
        match offset {
            COMMAND => self.command(value),
            // Written as 1 to clear: status of faults, a recorded fault.
            0x34 => self.set(offset, self.get(offset) & !value),
            0x20c..0x280 if offset & 0xf == 0xc => self.set(offset, self.get(offset) & !(value & 1 << 31)),
            _ => self.set(offset, value),
        }
        if offset == 0x88 && self.get(STATUS) & 1 << 26 != 0 {
            self.queue();
        }
    }

    fn word(&self, table: u64, index: usize) -> u64 {
        self.entry(table, index)
    }

    fn set_word(&self, table: u64, index: usize, value: u64) {
        self.put(table, index, value);
    }

    fn wait(&self, done: &dyn Fn() -> bool) -> bool {
        done()
    }
}
