use super::*;
use proptest::prelude::*;

const HZ: u64 = 1_000_000_000;
const CLOCK: Clock = Clock::new(HZ);
/// 2026-01-01T12:34:56Z was at STC 500.
const WALL: WallClock = WallClock { unix_ns: 1_767_270_896 * NANOS, stc: 500 };

fn rtc() -> Rtc {
    Rtc::new(CLOCK, WALL, 500)
}

fn get(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
    rtc.write(false, index, now);
    rtc.read(true, now)
}

fn put(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
    rtc.write(false, index, now);
    rtc.write(true, value, now);
}

#[test]
fn shows_the_time_in_each_format() {
    let mut rtc = rtc();
    let all = |rtc: &mut Rtc| [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| get(rtc, index, 500));
    assert_eq!(all(&mut rtc), [0x56, 0x34, 0x12, 5, 1, 1, 0x26, 0x20]);
    put(&mut rtc, REGISTER_B, B_BINARY | B_24_HOURS, 500);
    assert_eq!(all(&mut rtc), [56, 34, 12, 5, 1, 1, 26, 20]);
    put(&mut rtc, REGISTER_B, 0, 500);
    assert_eq!(get(&mut rtc, HOURS, 500), 0x92);
    assert_eq!(get(&mut rtc, HOURS, 500 + 12 * 3600 * HZ), 0x12);
    assert_eq!(get(&mut rtc, HOURS, 500 + 13 * 3600 * HZ), 0x01);
    assert_eq!(get(&mut rtc, REGISTER_D, 500), 0x80);
    assert_eq!(get(&mut rtc, 0x80 | SECONDS, 500), 0x56);
}

#[test]
fn the_update_is_announced() {
    let mut rtc = rtc();
    assert_eq!(get(&mut rtc, REGISTER_A, 500 + HZ / 2), 0x26);
    assert_eq!(get(&mut rtc, REGISTER_A, 500 + HZ - 1), 0xa6);
    assert_eq!(get(&mut rtc, SECONDS, 500 + HZ - 1), 0x56);
    assert_eq!(get(&mut rtc, REGISTER_A, 500 + HZ), 0x26);
    assert_eq!(get(&mut rtc, SECONDS, 500 + HZ), 0x57);
}

/// As mc146818_set_time() does it.
#[test]
fn setting_holds_the_time() {
    let mut rtc = rtc();
    put(&mut rtc, REGISTER_B, B_SET | B_24_HOURS, 500);
    put(&mut rtc, REGISTER_A, 0x76, 500);
    for (index, value) in [(9, 0x30), (8, 0x02), (7, 0x28), (4, 0x23), (2, 0x59), (0, 0x59)] {
        put(&mut rtc, index, value, 500 + HZ);
    }
    put(&mut rtc, REGISTER_B, B_24_HOURS, 500 + 9 * HZ);
    assert_eq!(get(&mut rtc, SECONDS, 500 + 20 * HZ), 0x59);
    put(&mut rtc, REGISTER_A, 0x26, 500 + 20 * HZ);
    assert_eq!(get(&mut rtc, SECONDS, 500 + 20 * HZ + HZ / 2 - 1), 0x59);
    let all = [0, 2, 4, 7, 8, 9].map(|index| get(&mut rtc, index, 500 + 20 * HZ + HZ / 2));
    assert_eq!(all, [0, 0, 0, 1, 3, 0x30]);
}

#[test]
fn alarm() {
    let mut rtc = rtc();
    for (index, value) in [(SECONDS_ALARM, 0x01), (MINUTES_ALARM, 0x35), (HOURS_ALARM, 0xff)] {
        put(&mut rtc, index, value, 500);
    }
    put(&mut rtc, REGISTER_B, B_24_HOURS | B_ALARM, 500);
    let mut now = 500;
    for seconds in 1..=5 {
        assert!(!rtc.interrupt());
        now = rtc.next_deadline(now).unwrap();
        assert_eq!(now, 500 + seconds * HZ);
        rtc.advance(now);
    }
    assert!(rtc.interrupt());
    assert_eq!(rtc.next_deadline(now), None);
    assert_eq!(get(&mut rtc, REGISTER_C, now) & !B_PERIODIC, 0xb0);
    assert!(!rtc.interrupt());
    assert_eq!(get(&mut rtc, REGISTER_C, now), 0);
}

#[test]
fn periodic_and_reset() {
    let mut rtc = rtc();
    put(&mut rtc, REGISTER_B, B_24_HOURS | B_PERIODIC, 500);
    let mut now = 500;
    for beat in 1..=2048u64 {
        now = rtc.next_deadline(now).unwrap();
        assert_eq!(now, (beat * HZ).div_ceil(1024));
        rtc.advance(now);
        assert_eq!(get(&mut rtc, REGISTER_C, now) & 0xc0, 0xc0);
    }
    put(&mut rtc, 0x40, 0x99, now);
    rtc.reset();
    assert_eq!(rtc.next_deadline(now), None);
    assert_eq!(get(&mut rtc, 0x40, now), 0x99);
}

#[test]
fn memory_bytes() {
    let mut rtc = rtc();
    rtc.set_memory(512 << 20, 1 << 30);
    assert_eq!([0x15, 0x16, 0x34, 0x35, 0x5b, 0x5c].map(|index| get(&mut rtc, index, 0)), [0x80, 2, 0, 0x1f, 0, 0x40]);
}

proptest! {
    #[test]
    fn any_sequence_is_safe(ops in prop::collection::vec((0u8..5, any::<u8>(), any::<u64>()), 0..200)) {
        let mut rtc = rtc();
        for (op, value, now) in ops {
            match op {
                0 => rtc.write(false, value & 0x3f, now),
                1 => rtc.write(true, value, now),
                2 => { rtc.read(true, now); }
                3 => { rtc.next_deadline(now); }
                _ => rtc.advance(now),
            }
        }
    }

    #[test]
    fn no_drift(frequency in 1_000_000u64..5_000_000_000, seconds in 0u64..100_000_000) {
        let clock = Clock::new(frequency);
        let mut rtc = Rtc::new(clock, WallClock { unix_ns: 0, stc: 0 }, 0);
        let now = frequency * seconds;
        let shown = [HOURS, MINUTES, SECONDS].map(|index| u64::from(get(&mut rtc, index, now)));
        let decimal = shown.map(|value| (value >> 4) * 10 + (value & 0xf));
        prop_assert_eq!(decimal[0] * 3600 + decimal[1] * 60 + decimal[2], seconds % 86_400);
    }
}
