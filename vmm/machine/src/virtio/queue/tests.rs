extern crate std;

use super::*;
use crate::memory::VecMemory;
use crate::virtio::driver::Driver;
use alloc::sync::Arc;
use alloc::vec;
use proptest::prelude::*;

const RAM: u64 = 0x4_0000;
const RINGS: u64 = 0x1000;
const DATA: u64 = 0x2_0000;

fn pair(size: u16, event_index: bool, indirect: bool) -> (Driver, Queue) {
    let driver = Driver::new(Arc::new(VecMemory::new(RAM)), RINGS, size, event_index, indirect);
    let mut queue = Queue::new(SIZE_MAX);
    queue.set_size(size);
    queue.addresses = driver.addresses;
    let features = if event_index { feature::EVENT_INDEX } else { 0 } | if indirect { feature::INDIRECT } else { 0 };
    assert_eq!(queue.enable(&driver.memory, features), Ok(()));
    (driver, queue)
}

#[test]
fn a_chain_goes_to_the_device_and_back() {
    for indirect in [false, true] {
        let (mut driver, mut queue) = pair(8, true, indirect);
        driver.memory.write(DATA, b"hello").unwrap();
        let head = driver.add(&[(DATA, 3), (DATA + 3, 2)], &[(DATA + 0x100, 4), (DATA + 0x200, 0), (DATA + 0x300, 4)]);
        assert!(driver.must_notify());
        let mut chain = Chain::default();
        assert_eq!(queue.take(&driver.memory, &mut chain), Ok(true));
        assert_eq!((Some(chain.head), chain.readable.length(), chain.writable.length()), (head, 5, 8));
        let mut bytes = [0; 8];
        assert_eq!(chain.readable.read(&driver.memory, 1, &mut bytes), 4);
        assert_eq!(&bytes[..4], b"ello");
        assert_eq!(chain.writable.write(&driver.memory, 2, b"abcdefgh"), 6);
        assert_eq!(driver.memory.read_u32(DATA + 0x300), Ok(u32::from_le_bytes(*b"cdef")));
        queue.give_back(&driver.memory, chain.head, 6);
        assert_eq!(driver.take_back(), None, "not published");
        assert!(queue.publish(&driver.memory));
        assert_eq!(driver.take_back(), head.map(|head| (head, 6)));
        assert_eq!(queue.take(&driver.memory, &mut chain), Ok(false));
    }
}

#[test]
fn rings_outside_ram_or_not_aligned_are_refused() {
    let (driver, queue) = pair(8, true, true);
    let changes: [fn(&mut Addresses); 5] = [
        |addresses| addresses.descriptors += 8,
        |addresses| addresses.available += 1,
        |addresses| addresses.used += 2,
        |addresses| addresses.used = RAM - 64,
        |addresses| addresses.descriptors = !15,
    ];
    for change in changes {
        let mut other = Queue::new(8);
        other.addresses = queue.addresses;
        change(&mut other.addresses);
        assert_eq!(other.enable(&driver.memory, 0), Err(Violation::Ring));
        assert!(!other.enabled());
    }
    let mut queue = Queue::new(8);
    queue.set_size(16);
    queue.set_size(3);
    queue.set_size(0);
    assert_eq!(queue.size(), 8);
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    (u128::from(address) | u128::from(length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112).to_le_bytes()
}

/// What the device says of a chain that begins with descriptor 0 of `table`, with another table at [`DATA`].
fn judged(table: &[[u8; 16]], other: &[[u8; 16]], indirect: bool) -> Result<bool, Violation> {
    let (driver, mut queue) = pair(8, false, indirect);
    for (base, table) in [(RINGS, table), (DATA, other)] {
        for (index, descriptor) in table.iter().enumerate() {
            driver.memory.write(base + 16 * index as u64, descriptor).unwrap();
        }
    }
    driver.memory.write(driver.addresses.available + 2, &[1, 0]).unwrap();
    queue.take(&driver.memory, &mut Chain::default())
}

#[test]
fn bad_chains_are_refused() {
    let plain = descriptor(DATA, 16, 0, 0);
    let table = |count: u32| descriptor(DATA, 16 * count, INDIRECT, 0);
    assert_eq!(judged(&[plain], &[], false), Ok(true));
    assert_eq!(judged(&[table(1)], &[plain], true), Ok(true));
    assert_eq!(judged(&[descriptor(DATA, 1, NEXT, 0)], &[], false), Err(Violation::Chain), "endless");
    assert_eq!(judged(&[descriptor(DATA, 1, NEXT, 8)], &[], false), Err(Violation::Descriptor));
    assert_eq!(judged(&[descriptor(RAM - 4, 5, 0, 0)], &[], false), Err(Violation::Buffer));
    assert_eq!(judged(&[descriptor(u64::MAX - 4, 16, 0, 0)], &[], false), Err(Violation::Buffer));
    let order = [descriptor(DATA, 1, WRITE | NEXT, 1), plain];
    assert_eq!(judged(&order, &[], false), Err(Violation::Order));
    assert_eq!(judged(&[table(1)], &[plain], false), Err(Violation::Indirect), "not agreed on");
    assert_eq!(judged(&[table(1)], &[table(1)], true), Err(Violation::Indirect), "a table in a table");
    assert_eq!(judged(&[descriptor(DATA, 16, INDIRECT | NEXT, 1)], &[plain], true), Err(Violation::Indirect));
    assert_eq!(judged(&[table(0)], &[], true), Err(Violation::Indirect));
    assert_eq!(judged(&[descriptor(DATA, 24, INDIRECT, 0)], &[plain], true), Err(Violation::Indirect));
    assert_eq!(judged(&[descriptor(RAM, 16, INDIRECT, 0)], &[], true), Err(Violation::Buffer));
    assert_eq!(judged(&[table(2)], &[descriptor(DATA, 1, NEXT, 2)], true), Err(Violation::Descriptor));
    assert_eq!(judged(&[table(2)], &[descriptor(DATA, 1, NEXT, 0)], true), Err(Violation::Chain));
}

#[test]
fn more_available_than_there_is_room_for_is_a_violation() {
    let (driver, mut queue) = pair(8, false, false);
    driver.memory.write(driver.addresses.available + 2, &9u16.to_le_bytes()).unwrap();
    assert_eq!(queue.take(&driver.memory, &mut Chain::default()), Err(Violation::Index));
}

/// Both sides wait for each other as little as they may, for more chains than an index can count: nothing is lost.
#[test]
fn nobody_waits_for_ever() {
    for event_index in [false, true] {
        let (mut driver, mut queue) = pair(4, event_index, false);
        let mut chain = Chain::default();
        driver.want_interrupt();
        let (mut notifications, mut interrupts) = (0, 0);
        for _ in 0..40_000 {
            while driver.add(&[(DATA, 8)], &[(DATA + 8, 8)]).is_some() {}
            if !driver.must_notify() {
                panic!("the device sleeps and was not told");
            }
            notifications += 1;
            queue.disarm(&driver.memory);
            while queue.take_or_arm(&driver.memory, &mut chain).unwrap() {
                queue.give_back(&driver.memory, chain.head, 8);
            }
            assert!(queue.publish(&driver.memory), "the driver sleeps and is not told");
            interrupts += 1;
            while driver.take_back().is_some() {}
            driver.want_interrupt();
        }
        assert_eq!((notifications, interrupts, driver.outstanding()), (40_000, 40_000, 0));
    }
}

#[test]
fn a_device_that_looks_by_itself_is_not_notified() {
    for event_index in [false, true] {
        let (mut driver, mut queue) = pair(8, event_index, false);
        let mut chain = Chain::default();
        driver.add(&[(DATA, 8)], &[]).unwrap();
        assert!(driver.must_notify());
        queue.disarm(&driver.memory);
        assert_eq!(queue.take(&driver.memory, &mut chain), Ok(true));
        driver.add(&[(DATA, 8)], &[]).unwrap();
        assert!(!driver.must_notify());
        assert!(queue.arm(&driver.memory), "it came before the device wanted to be told");
        assert_eq!(queue.take(&driver.memory, &mut chain), Ok(true));
        assert!(!queue.arm(&driver.memory));
        driver.add(&[(DATA, 8)], &[]).unwrap();
        assert!(driver.must_notify());
    }
}

proptest! {
    /// Chains of any shape arrive as they were made, in their order, and come back in any order.
    #[test]
    fn chains_survive(
        shapes in prop::collection::vec((prop::collection::vec(1u32..300, 0..5), prop::collection::vec(1u32..300, 0..5)), 1..60),
        order: u64, event_index: bool, indirect: bool,
    ) {
        let (mut driver, mut queue) = pair(16, event_index, indirect);
        let mut chain = Chain::default();
        let mut held: Vec<u16> = vec![];
        let mut random = order;
        for (readable, writable) in shapes {
            let mut next = DATA;
            let mut place = |lengths: &[u32]| -> Vec<(u64, u32)> {
                lengths.iter().map(|&length| { next += 0x400; (next, length) }).collect()
            };
            let (readable, writable) = (place(&readable), place(&writable));
            let Some(head) = driver.add(&readable, &writable) else { continue };
            prop_assert_eq!(queue.take(&driver.memory, &mut chain), Ok(true));
            prop_assert_eq!(chain.head, head);
            let list = |segments: &Segments| -> Vec<(u64, u32)> {
                segments.list().iter().map(|segment| (segment.offset, segment.length)).collect()
            };
            prop_assert_eq!((list(&chain.readable), list(&chain.writable)), (readable, writable));
            held.push(head);
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if random >> 63 != 0 {
                let head = held.swap_remove((random >> 32) as usize % held.len());
                queue.give_back(&driver.memory, head, u32::from(head));
                let _ = queue.publish(&driver.memory);
                prop_assert_eq!(driver.take_back(), Some((head, u32::from(head))));
            }
        }
    }

    /// Whatever lies in the rings: every piece is RAM, and there is an end.
    #[test]
    fn random_rings_do_no_harm(
        seed in prop::collection::vec(any::<u64>(), 64), size in 0u32..4, index: u16, indirect: bool,
    ) {
        let (driver, mut queue) = pair(1 << (size * 2), true, indirect);
        let words = (RINGS..RINGS + 0x2000).step_by(8).enumerate();
        for (count, gpa) in words {
            // Now and then something that could be a descriptor.
            let value = seed[count % 64].rotate_left(count as u32 / 64);
            let value = match (count % 2, value & 3) {
                (_, 0) => value,
                (0, _) => value % RAM,
                (_, _) => value & 0x0007_0007_0000_0ff0,
            };
            driver.memory.write(gpa, &value.to_le_bytes()).unwrap();
        }
        driver.memory.write(driver.addresses.available + 2, &(index % 20).to_le_bytes()).unwrap();
        let mut chain = Chain::default();
        for _ in 0..20 {
            let taken = queue.take_or_arm(&driver.memory, &mut chain);
            if taken.is_ok() {
                for segment in chain.readable.list().iter().chain(chain.writable.list()) {
                    prop_assert!(segment.offset + u64::from(segment.length) <= RAM);
                }
                prop_assert!(chain.readable.list().len() + chain.writable.list().len() <= CHAIN_MAX);
                queue.give_back(&driver.memory, chain.head, 0);
                let _ = queue.publish(&driver.memory);
            }
            if taken != Ok(true) {
                break;
            }
        }
    }

    #[test]
    fn ranges_are_parts(lengths in prop::collection::vec(0u32..50, 0..8), from in 0u64..200, length in 0u64..200) {
        let mut segments = Segments::default();
        let mut bytes = vec![];
        for (index, &length) in lengths.iter().enumerate() {
            segments.push(Segment { offset: index as u64 * 0x100, length });
            bytes.extend((0..u64::from(length)).map(|byte| index as u64 * 0x100 + byte));
        }
        let part: Vec<u64> = segments.range(from, length).flat_map(|segment| {
            prop_assert_ne!(segment.length, 0);
            Ok::<_, TestCaseError>(segment.offset..segment.offset + u64::from(segment.length))
        }).flatten().collect();
        let expected: Vec<u64> = bytes.into_iter().skip(from as usize).take(length as usize).collect();
        prop_assert_eq!(part, expected);
    }
}
