extern crate std;

use super::*;
use crate::backplane::Backplane;
use crate::memory::VecMemory;
use crate::virtio::driver::Driver;
use crate::virtio::interrupts::Interrupts;
use crate::virtio::queue::Queue;
use alloc::sync::Arc;

struct Counting(u8, bool);

impl Source for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        bytes.iter_mut().for_each(|byte| {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        });
        self.1
    }
}

fn asked(works: bool) -> (Driver, Interrupts, Result<(), Violation>) {
    let mut driver = Driver::new(Arc::new(VecMemory::new(0x1_0000)), 0x1000, 8, true, false);
    let mut queues = [Queue::new(8)];
    queues[0].addresses = driver.addresses;
    queues[0].enable(&driver.memory, crate::virtio::feature::COMMON).unwrap();
    let mut interrupts = Interrupts::new(2, Arc::new(Backplane::new(1)));
    driver.want_interrupt();
    driver.add(&[], &[(0x8000, 5), (0x9000, 0x3000)]).unwrap();
    driver.add(&[], &[(0xc000, 3)]).unwrap();
    let mut io = Io { queues: &mut queues, memory: &driver.memory, interrupts: &mut interrupts };
    let result = Entropy::new(Counting(0, works)).notify(0, &mut io);
    (driver, interrupts, result)
}

#[test]
fn buffers_are_filled_up_to_a_limit() {
    let (mut driver, mut interrupts, result) = asked(true);
    assert_eq!(result, Ok(()));
    assert_eq!(driver.take_back().map(|(_, written)| written), Some(1024));
    assert_eq!(driver.take_back().map(|(_, written)| written), Some(3));
    assert_eq!((driver.memory.read_u32(0x8001), driver.memory.read_u32(0x9000)), (Ok(0x0504_0302), Ok(0x0908_0706)));
    assert_eq!(driver.memory.read_u32(0xc000), Ok(0x0003_0201));
    assert_eq!(interrupts.take_isr(), 1);
    driver.add(&[], &[(0xc000, 3)]).unwrap();
    assert!(driver.must_notify());
}

#[test]
fn a_queue_that_is_full_at_once_is_heard_of_again() {
    let mut driver = Driver::new(Arc::new(VecMemory::new(0x1_0000)), 0x1000, 8, true, false);
    let mut queues = [Queue::new(8)];
    queues[0].addresses = driver.addresses;
    queues[0].enable(&driver.memory, crate::virtio::feature::COMMON).unwrap();
    let mut interrupts = Interrupts::new(2, Arc::new(Backplane::new(1)));
    (0..8).for_each(|_| driver.add(&[], &[(0x8000, 1)]).map(drop).unwrap());
    assert!(driver.must_notify());
    let mut io = Io { queues: &mut queues, memory: &driver.memory, interrupts: &mut interrupts };
    assert_eq!(Entropy::new(Counting(0, true)).notify(0, &mut io), Ok(()));
    (0..8).for_each(|_| assert!(driver.take_back().is_some()));
    driver.add(&[], &[(0x8000, 1)]).unwrap();
    assert!(driver.must_notify());
}

#[test]
fn a_source_that_fails_writes_nothing() {
    let (mut driver, _, result) = asked(false);
    assert_eq!(result, Ok(()));
    assert_eq!(driver.take_back().map(|(_, written)| written), Some(0));
    assert_eq!(driver.memory.read_u32(0x8001), Ok(0));
}
