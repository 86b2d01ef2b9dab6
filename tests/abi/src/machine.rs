//! What the machine is, where an emulator leaves out what processors do.

use crate::report::{Outcome, Stop};

/// Stops a test that QEMU, executing instructions by translation, cannot pass; `docs/emulators.md` tells why.
pub fn not_on_tcg(why: &'static str) -> Outcome {
    let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
    let signature = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes);
    if signature.as_flattened() == b"TCGTCGTCGTCG" { Err(Stop::Skipped(why)) } else { Ok(()) }
}
