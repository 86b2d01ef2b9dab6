extern crate std;

use super::*;
use crate::memory::VecMemory;
use crate::virtio::driver::Driver;
use crate::virtio::entropy::{Entropy, Source};
use crate::virtio::interrupts::NO_VECTOR;
use alloc::vec;
use proptest::prelude::*;

struct Sevens;

impl Source for Sevens {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        bytes.fill(7);
        true
    }
}

type Device = VirtioPci<Entropy<Sevens>, Arc<VecMemory>>;

const RINGS: u64 = 0x1000;
const SELECT: u64 = 0;
const FEATURES: u64 = 0x0c;
const STATUS: u64 = 0x14;
const ACKNOWLEDGED: u64 = 3;

struct Bench {
    device: Device,
    backplane: Arc<Backplane>,
    memory: Arc<VecMemory>,
}

impl Bench {
    fn new() -> Self {
        let (memory, backplane) = (Arc::new(VecMemory::new(0x1_0000)), Arc::new(Backplane::new(2)));
        let mut device = VirtioPci::new(Entropy::new(Sevens), memory.clone(), backplane.clone());
        for index in 0..2 {
            let route = crate::backplane::Route {
                mode: crate::lapic::ApicMode::Xapic,
                takes_vectors: true,
                clustered: false,
                logical: 0,
            };
            backplane.publish(index, route);
        }
        device.write_config(4, Width::Word, 6);
        Self { device, backplane, memory }
    }

    fn put(&mut self, offset: u64, width: Width, value: u64) {
        self.device.write(0, offset, width, value);
    }

    fn get(&mut self, offset: u64, width: Width) -> u64 {
        self.device.read(0, offset, width)
    }

    /// Up to the agreement on features (3.1.1).
    fn agree(&mut self, features: u64) -> u64 {
        self.put(STATUS, Width::Byte, 0);
        self.put(STATUS, Width::Byte, ACKNOWLEDGED);
        for half in 0..2 {
            self.put(SELECT + 8, Width::Dword, half);
            self.put(FEATURES, Width::Dword, features >> (32 * half) & 0xffff_ffff);
        }
        self.put(STATUS, Width::Byte, ACKNOWLEDGED | 8);
        self.get(STATUS, Width::Byte)
    }

    /// A queue and a message for it: vector 0x41 for vCPU 1.
    fn start(&mut self) -> Driver {
        assert_eq!(self.agree(feature::COMMON), 11);
        self.memory.clear(RINGS, 0x1000).unwrap();
        let driver = Driver::new(self.memory.clone(), RINGS, 8, true, true);
        self.put(place::MSIX_TABLE + 16, Width::Dword, 0xfee0_1000);
        self.put(place::MSIX_TABLE + 24, Width::Dword, 0x41);
        self.put(place::MSIX_TABLE + 28, Width::Dword, 0);
        let msix = self.device.msix as u16;
        self.device.write_config(msix + 2, Width::Word, 0x8000);
        self.put(0x16, Width::Word, 0);
        self.put(0x1a, Width::Word, 1);
        let addresses = driver.addresses;
        for (offset, address) in [(0x20, addresses.descriptors), (0x28, addresses.available), (0x30, addresses.used)] {
            self.put(offset, Width::Dword, address & 0xffff_ffff);
            self.put(offset + 4, Width::Dword, address >> 32);
        }
        self.put(0x1c, Width::Word, 1);
        self.put(STATUS, Width::Byte, ACKNOWLEDGED | 12);
        assert_eq!(self.get(STATUS, Width::Byte), 15);
        driver.want_interrupt();
        driver
    }

    fn vectors(&self, vcpu: usize) -> Option<[u32; 8]> {
        self.backplane.collect(vcpu).map(|mail| mail.vectors)
    }
}

#[test]
fn a_driver_gets_its_bytes_and_its_interrupt() {
    let mut bench = Bench::new();
    let mut driver = bench.start();
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    assert!(driver.must_notify());
    bench.put(place::NOTIFY, Width::Word, 0);
    assert_eq!(driver.take_back(), Some((7, 64)));
    assert_eq!(bench.memory.read_u64(0x8038), Ok(0x0707_0707_0707_0707));
    assert_eq!(bench.device.take_wakes(), VcpuSet::one(1));
    assert_eq!(bench.vectors(1).map(|vectors| vectors[2]), Some(1 << 1));
    assert_eq!(bench.vectors(0), None);
    assert_eq!((bench.get(place::ISR, Width::Byte), bench.get(place::ISR, Width::Byte)), (1, 0));
    // No wish for an interrupt, none comes.
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    bench.put(place::NOTIFY, Width::Word, 0);
    assert!(driver.take_back().is_some() && bench.device.take_wakes().is_empty());
}

#[test]
fn what_is_available_before_the_driver_is_ready_is_not_lost() {
    let mut bench = Bench::new();
    assert_eq!(bench.agree(feature::COMMON), 11);
    let mut driver = Driver::new(bench.memory.clone(), RINGS, 8, true, true);
    let addresses = driver.addresses;
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    for (offset, address) in [(0x20, addresses.descriptors), (0x28, addresses.available), (0x30, addresses.used)] {
        bench.put(offset, Width::Qword, address);
    }
    bench.put(0x1c, Width::Word, 1);
    bench.put(place::NOTIFY, Width::Word, 0);
    assert_eq!(driver.take_back(), None, "the driver is not ready");
    bench.put(STATUS, Width::Byte, 15);
    assert!(driver.take_back().is_some());
}

#[test]
fn features_are_agreed_on_or_not() {
    let mut bench = Bench::new();
    bench.put(SELECT, Width::Dword, 0);
    assert_eq!(bench.get(4, Width::Dword), feature::COMMON & 0xffff_ffff);
    bench.put(SELECT, Width::Dword, 1);
    assert_eq!(bench.get(4, Width::Dword), 1);
    bench.put(SELECT, Width::Dword, 2);
    assert_eq!(bench.get(4, Width::Dword), 0);
    assert_eq!(bench.agree(feature::EVENT_INDEX), 3, "version 1 is not among them");
    assert_eq!(bench.agree(feature::VERSION_1 | 1), 3, "one that was not offered");
    bench.put(STATUS, Width::Byte, 15);
    assert_eq!(bench.get(STATUS, Width::Byte), 3, "nobody is ready without an agreement");
    assert_eq!(bench.agree(feature::VERSION_1), 11);
    bench.put(SELECT + 8, Width::Dword, 0);
    bench.put(FEATURES, Width::Dword, feature::EVENT_INDEX);
    assert_eq!(bench.get(FEATURES, Width::Dword), 0, "too late");
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset() {
    let mut bench = Bench::new();
    let mut driver = bench.start();
    // A message for the configuration.
    bench.put(0x10, Width::Word, 0);
    bench.put(place::MSIX_TABLE, Width::Dword, 0xfee0_0000);
    bench.put(place::MSIX_TABLE + 8, Width::Dword, 0x42);
    bench.put(place::MSIX_TABLE + 12, Width::Dword, 0);
    driver.add(&[], &[(0xffff_0000, 64)]).unwrap();
    bench.put(place::NOTIFY, Width::Word, 0);
    assert_eq!(bench.get(STATUS, Width::Byte), 15 | 64);
    assert_eq!(bench.vectors(0).map(|vectors| vectors[2]), Some(1 << 2));
    assert_eq!(bench.get(place::ISR, Width::Byte), 2);
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    bench.put(place::NOTIFY, Width::Word, 0);
    assert_eq!(driver.take_back(), None, "it does nothing any more");
    bench.put(STATUS, Width::Byte, 0);
    assert_eq!((bench.get(STATUS, Width::Byte), bench.get(0x10, Width::Word)), (0, u64::from(NO_VECTOR)));
    let mut driver = bench.start();
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    bench.put(place::NOTIFY, Width::Word, 0);
    assert!(driver.take_back().is_some());
}

#[test]
fn without_leave_to_master_the_bus_nothing_happens() {
    let mut bench = Bench::new();
    let mut driver = bench.start();
    bench.device.write_config(4, Width::Word, 2);
    driver.add(&[], &[(0x8000, 64)]).unwrap();
    bench.put(place::NOTIFY, Width::Word, 0);
    assert_eq!(driver.take_back(), None);
}

#[test]
fn capabilities_lead_to_the_structures() {
    let mut device = Bench::new().device;
    let mut at = device.read_config(0x34, Width::Byte) as u16;
    let mut found = vec![];
    while at != 0 {
        let id = device.read_config(at, Width::Byte) as u8;
        let kind = device.read_config(at + 3, Width::Byte) as u8;
        found.push(if id == CAPABILITY { (kind, device.read_config(at + 8, Width::Dword)) } else { (id, 0) });
        at = device.read_config(at + 1, Width::Byte) as u16;
    }
    assert_eq!(found, [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000), (5, 0), (0x11, 0)]);
    assert_eq!(device.read_config(device.msix as u16 + 2, Width::Word), 1, "two messages");
}

#[test]
fn the_memory_is_reached_by_configuration_space() {
    let mut bench = Bench::new();
    let window = bench.device.window as u16;
    bench.device.write_config(window + 4, Width::Byte, 0);
    bench.device.write_config(window + 8, Width::Dword, STATUS as u32);
    bench.device.write_config(window + 12, Width::Dword, 1);
    bench.device.write_config(window + 16, Width::Byte, 3);
    assert_eq!(bench.get(STATUS, Width::Byte), 3);
    bench.put(STATUS, Width::Byte, 0);
    assert_eq!(bench.device.read_config(window + 16, Width::Byte), 0);
    for (offset, length) in [(0x8000, 1), (1, 2), (0, 3), (0, 8), (u32::MAX, 4)] {
        bench.device.write_config(window + 8, Width::Dword, offset);
        bench.device.write_config(window + 12, Width::Dword, length);
        bench.device.write_config(window + 16, Width::Dword, 0x55);
        assert_eq!(bench.device.read_config(window + 16, Width::Dword), 0x55, "impossible: nothing happens");
    }
}

proptest! {
    /// Whatever a guest writes to the registers, with whatever in its memory: the device does not fall over, and a reset
    /// makes it work again.
    #[test]
    fn a_hostile_guest_harms_itself_only(
        writes in prop::collection::vec((0u64..0x5000, 0usize..4, any::<u64>(), any::<bool>()), 0..150),
        fill in prop::collection::vec(any::<u8>(), 0x200),
    ) {
        let mut bench = Bench::new();
        if writes.len() % 2 == 0 {
            let _ = bench.start();
        }
        for gpa in (RINGS..RINGS + 0x1000).step_by(fill.len()) {
            bench.memory.write(gpa, &fill).unwrap();
        }
        for (offset, width, value, small) in writes {
            let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword][width];
            // Mostly where registers are.
            let offset = if offset & 3 != 0 { offset & 0x3f } else { offset };
            let value = if small { value % 0x8000 } else { value };
            bench.put(offset & !(width.bytes() as u64 - 1), width, value & width.ones());
            bench.get(offset, width);
            if small {
                bench.put(place::NOTIFY, Width::Word, 0);
                bench.device.write_config((value & 0xff) as u16, Width::Byte, offset as u32);
            }
        }
        bench.device.reset();
        bench.device.write_config(4, Width::Word, 6);
        let mut driver = bench.start();
        driver.add(&[], &[(0x8000, 64)]).unwrap();
        bench.put(place::NOTIFY, Width::Word, 0);
        prop_assert!(driver.take_back().is_some());
    }
}
