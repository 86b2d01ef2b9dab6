//! Time for the guest in the form that Linux knows from KVM: two structures in guest memory.
//!
//! Linux `Documentation/virt/kvm/x86/msr.rst` (MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW). An odd version
//! says that an update is under way. The TSC never jumps, so that each structure is written once per request.

use crate::clock::{Clock, NANOS, WallClock};
use crate::memory::{GuestMemory, NotRam};

/// Register that asks for the time of day when system time was zero.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
/// Register that asks for the parameters of system time.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
/// Bit 0 of [`MSR_SYSTEM_TIME`]: enabled.
const ENABLE: u64 = 1;
/// The flag that the time is the same on all vCPUs.
const TSC_STABLE: u8 = 1;

/// The clock of one virtual machine.
#[derive(Clone, Copy, Debug)]
pub struct KvmClock {
    clock: Clock,
    wall: WallClock,
    /// STC value at which system time is zero.
    start: u64,
    wall_version: u32,
    time_version: u32,
    system_time: u64,
    wall_address: u64,
}

/// Multiplier and shift: nanoseconds = ((ticks << shift) * multiplier) >> 32, a negative shift to the right.
fn scale(frequency: u64) -> (u32, i8) {
    // Bring ticks to between half a gigahertz and one, so that the multiplier has 32 significant bits.
    let mut shift = 0i8;
    let mut scaled = frequency as u128;
    while scaled > NANOS as u128 * 2 {
        scaled >>= 1;
        shift -= 1;
    }
    while scaled <= NANOS as u128 {
        scaled <<= 1;
        shift += 1;
    }
    // Recompute from the frequency itself: the shifts above dropped bits.
    let numerator = if shift < 0 { (NANOS as u128) << (32 + -shift as u32) } else { (NANOS as u128) << 32 };
    let denominator = if shift < 0 { frequency as u128 } else { (frequency as u128) << shift };
    ((numerator / denominator).min(u32::MAX as u128) as u32, shift)
}

impl KvmClock {
    /// The clock of a machine that starts at STC value `now`.
    pub fn new(clock: Clock, wall: WallClock, now: u64) -> Self {
        Self { clock, wall, start: now, wall_version: 0, time_version: 0, system_time: 0, wall_address: 0 }
    }

    /// RDMSR.
    pub fn read(&self, index: u32) -> Option<u64> {
        match index {
            MSR_WALL_CLOCK => Some(self.wall_address),
            MSR_SYSTEM_TIME => Some(self.system_time),
            _ => None,
        }
    }

    /// WRMSR: writes the structure that the guest asks for. An address that is not RAM is the guest's fault.
    pub fn write(&mut self, index: u32, value: u64, now: u64, memory: &impl GuestMemory) -> Result<(), NotRam> {
        match index {
            MSR_WALL_CLOCK => {
                self.wall_address = value;
                self.wall_version = self.wall_version.wrapping_add(2);
                let boot = self.wall.unix_ns_at(self.clock, self.start).max(0) as u128;
                let (seconds, nanos) = ((boot / NANOS as u128) as u32, (boot % NANOS as u128) as u32);
                let fields = [self.wall_version | 1, seconds, nanos].map(u32::to_le_bytes);
                memory.write(value, fields.as_flattened())?;
                memory.write(value, &self.wall_version.to_le_bytes())
            }
            MSR_SYSTEM_TIME => {
                self.system_time = value;
                if value & ENABLE == 0 {
                    return Ok(());
                }
                let address = value & !ENABLE;
                self.time_version = self.time_version.wrapping_add(2);
                let (multiplier, shift) = scale(self.clock.frequency());
                let elapsed = self.clock.count(now.saturating_sub(self.start), NANOS) as u64;
                let mut fields = [0; 32];
                fields[..4].copy_from_slice(&(self.time_version | 1).to_le_bytes());
                fields[8..16].copy_from_slice(&now.to_le_bytes());
                fields[16..24].copy_from_slice(&elapsed.to_le_bytes());
                fields[24..28].copy_from_slice(&multiplier.to_le_bytes());
                fields[28] = shift as u8;
                fields[29] = TSC_STABLE;
                memory.write(address, &fields)?;
                memory.write(address, &self.time_version.to_le_bytes())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;
    use proptest::prelude::*;

    fn nanoseconds(ticks: u64, (multiplier, shift): (u32, i8)) -> u64 {
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((shifted as u128 * multiplier as u128) >> 32) as u64
    }

    proptest! {
        #[test]
        fn the_scale_is_exact_to_a_microsecond_in_an_hour(frequency in 1_000_000u64..10_000_000_000) {
            let ticks = frequency * 3600;
            let error = nanoseconds(ticks, scale(frequency)).abs_diff(3600 * NANOS);
            prop_assert!(error < 2_000, "{error}");
        }
    }

    #[test]
    fn structures() {
        let memory = VecMemory::new(0x1000);
        let wall = WallClock { unix_ns: 1_700_000_000_500_000_000, stc: 1_000 };
        let mut clock = KvmClock::new(Clock::new(1_000_000_000), wall, 2_000);
        clock.write(MSR_WALL_CLOCK, 0x100, 5_000, &memory).unwrap();
        assert_eq!(memory.read_u32(0x100), Ok(2));
        assert_eq!(memory.read_u32(0x104), Ok(1_700_000_000));
        assert_eq!(memory.read_u32(0x108), Ok(500_001_000));
        clock.write(MSR_SYSTEM_TIME, 0x201, 5_000, &memory).unwrap();
        assert_eq!(memory.read_u32(0x200), Ok(2));
        assert_eq!(memory.read_u64(0x208), Ok(5_000));
        assert_eq!(memory.read_u64(0x210), Ok(3_000));
        assert_eq!(clock.read(MSR_SYSTEM_TIME), Some(0x201));
        assert!(clock.write(MSR_SYSTEM_TIME, 0xff1, 0, &memory).is_err());
    }
}
