extern crate std;

use super::*;
use crate::pci::Pci;
use crate::pci::config::{Config, Identity};
use alloc::sync::Arc;
use alloc::vec;
use proptest::prelude::*;
use std::sync::Mutex;

/// A function with two pieces of memory that remembers the last write.
struct Simple(Config, u64);

impl Function for Simple {
    fn sizes(&self) -> [u64; BARS] {
        self.0.sizes()
    }
    fn is_wide(&self, bar: usize) -> bool {
        self.0.is_wide(bar)
    }
    fn place(&mut self, bar: usize, address: u64) {
        self.0.place(bar, address);
    }
    fn base(&self, bar: usize) -> Option<u64> {
        self.0.base(bar)
    }
    fn read_config(&mut self, register: u16, width: Width) -> u32 {
        self.0.read(register, width)
    }
    fn write_config(&mut self, register: u16, width: Width, value: u32) {
        self.0.write(register, width, value);
    }
    fn read(&mut self, bar: usize, offset: u64, _: Width) -> u64 {
        (bar as u64) << 32 | offset | self.1
    }
    fn write(&mut self, _: usize, _: u64, _: Width, value: u64) {
        self.1 = value;
    }
    fn take_wakes(&mut self) -> VcpuSet {
        VcpuSet::one(3)
    }
    fn reset(&mut self) {
        self.0.reset();
    }
}

struct Locked(Mutex<Simple>);

impl Slot for Locked {
    fn with(&self, access: &mut dyn FnMut(&mut dyn Function)) {
        access(&mut *self.0.lock().unwrap());
    }
}

fn bus() -> Bus {
    let simple = |device| {
        let identity = Identity { vendor: 0x1af4, device, class: 0, subsystem_vendor: 0, subsystem: 0 };
        let mut config = Config::new(identity);
        config.add_memory(0, 0x1000);
        config.add_memory(2, 0x10_0000);
        Box::new(Locked(Mutex::new(Simple(config, 0)))) as Box<dyn Slot>
    };
    Bus::new(vec![simple(0x1044), simple(0x1042)])
}

fn at(device: u16, register: u16) -> Address {
    Address { id: device << 3, register }
}

#[test]
fn memory_answers_where_it_was_put() {
    let bus = bus();
    assert_eq!(bus.read_config(at(1, 0x10), Width::Dword), 0xc000_0000);
    assert_eq!(bus.read_config(at(1, 0x18), Width::Dword), 0xc010_0000);
    assert_eq!(bus.read_config(at(2, 0x10), Width::Dword), 0xc020_0000);
    assert_eq!(bus.read_config(at(2, 0x18), Width::Dword), 0xc030_0000);
    assert_eq!(bus.find(0xc030_0000), None, "not enabled");
    assert_eq!(bus.write_config(at(2, 4), Width::Word, 2), VcpuSet::one(3));
    assert_eq!(bus.find(0xc030_1234), Some(Target::Memory { slot: 1, bar: 2, offset: 0x1234 }));
    assert_eq!(bus.find(0xc040_0000), None);
    assert_eq!(bus.find(0xc010_0000), None, "the other one is not enabled");
    let _ = bus.write_config(at(2, 0x18), Width::Dword, 0xd000_0000);
    assert_eq!(bus.find(0xc030_1234), None);
    let target = bus.find(0xd000_0008).unwrap();
    assert_eq!(bus.read(target, Width::Dword), (2 << 32 | 8, VcpuSet::one(3)));
    assert_eq!(bus.write(target, Width::Dword, 1 << 20), VcpuSet::one(3));
    assert_eq!(bus.read(target, Width::Dword).0, 2 << 32 | 8 | 1 << 20);
    bus.reset();
    assert_eq!((bus.find(0xd000_0008), bus.read_config(at(2, 0x18), Width::Dword)), (None, 0xc030_0000));
}

#[test]
fn configuration_space_is_the_same_by_ports_and_by_memory() {
    let bus = Arc::new(bus());
    let mut pci = Pci::new(bus.clone());
    for (device, value) in [(0, 0x0008_1b36), (1, 0x1044_1af4), (2, 0x1042_1af4), (3, u32::MAX)] {
        pci.write_address(0x8000_0000 | device << 11);
        let target = bus.find(ECAM + u64::from(device << 15)).unwrap();
        assert_eq!((pci.read_data(0, Width::Dword), bus.read(target, Width::Dword).0 as u32), (value, value));
    }
    for strange in [1 << 12, 1 << 15 | 0x100, 1 << 20] {
        let value = bus.find(ECAM + strange).map(|target| bus.read(target, Width::Dword).0);
        assert!(matches!(value, None | Some(0xffff_ffff)), "{strange:#x}: {value:x?}");
    }
    let target = bus.find(ECAM + (1 << 15) + 4).unwrap();
    let _ = bus.write(target, Width::Word, 2);
    assert_eq!(bus.read(target, Width::Dword).0, 2);
    let target = bus.find(ECAM + (1 << 15) + 3).unwrap();
    assert_eq!(bus.read(target, Width::Word).0, 0xffff, "it leaves its double word");
    let target = bus.find(ECAM + (1 << 15)).unwrap();
    assert_eq!(bus.read(target, Width::Qword).0, 0x2_1044_1af4);
}

#[test]
fn a_bus_without_functions_has_no_memory() {
    let bus = Bus::default();
    assert!(!bus.has_functions() && bus.find(ECAM).is_none());
}

proptest! {
    /// Whatever is written where: lookups stay inside what the function said it has.
    #[test]
    fn windows_are_never_larger(writes in prop::collection::vec((0u16..5, 0u16..0x50, any::<u32>()), 0..60), probe: u32) {
        let bus = bus();
        for (device, register, value) in writes {
            let _ = bus.write_config(at(device, register & !3), Width::Dword, value);
        }
        if let Some(Target::Memory { slot, bar, offset }) = bus.find(probe.into()) {
            prop_assert!(slot < 2 && offset < [0x1000, 0, 0x10_0000][bar]);
        }
    }
}

#[test]
fn large_memory_goes_above() {
    let identity = Identity { vendor: 0x10de, device: 1, class: 0, subsystem_vendor: 0, subsystem: 0 };
    let mut config = Config::new(identity);
    config.add_memory(0, 0x1000);
    config.add_wide_memory(2, 1 << 30, true);
    config.add_wide_memory(4, 0x2000, false);
    let bus = Bus::new(vec![Box::new(Locked(Mutex::new(Simple(config, 0))))]);
    assert!(bus.is_high());
    let registers = [0x10, 0x18, 0x1c, 0x20, 0x24].map(|register| bus.read_config(at(1, register), Width::Dword));
    assert_eq!(registers, [0xc000_0000, 0xc, 0x40, 0xc000_2004, 0]);
    let _ = bus.write_config(at(1, 4), Width::Word, 2);
    let target = bus.find(HIGH_MEMORY + 0x123);
    assert_eq!(target, Some(Target::Memory { slot: 0, bar: 2, offset: 0x123 }));
    assert!(!self::bus().is_high());
}
