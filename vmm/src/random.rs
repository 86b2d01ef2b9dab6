//! Random bytes from the processor's generator: RDRAND, whose output is that of a generator by NIST SP 800-90A
//! (Intel SDM vol. 1, 7.3.17; AMD APM vol. 3, RDRAND).
//!
//! Unsafe: the instruction.
#![allow(unsafe_code)]

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use machine::virtio::entropy::Source;

/// CPUID leaf 1, ECX: RDRAND.
const RDRAND: u32 = 1 << 30;
/// How often it may say in a row that there is nothing, as both manuals advise.
const ATTEMPTS: usize = 10;

/// The generator.
pub struct Random(());

impl Random {
    /// The generator, if this processor has it.
    pub fn find() -> Option<Self> {
        (__cpuid(1).ecx & RDRAND != 0).then_some(Self(()))
    }

    fn word(&self) -> Option<u64> {
        (0..ATTEMPTS).find_map(|_| {
            let (value, there): (u64, u8);
            // SAFETY: the processor has the instruction, which touches nothing but its operand and the flags.
            unsafe { asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) there, options(nomem, nostack)) };
            (there != 0).then_some(value)
        })
    }
}

impl Source for Random {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        for chunk in bytes.chunks_mut(8) {
            let Some(word) = self.word() else { return false };
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        true
    }
}
