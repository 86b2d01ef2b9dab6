//! What of a VMM's reply the kernel itself puts into registers: a value that they refuse must not get there. All else is
//! checked by the CPU when it enters the guest.

use abi::Mtd;
use abi::utcb::Architectural;

/// Groups with values that the kernel checks.
pub const CHECKED: Mtd =
    Mtd::CR.union(Mtd::TPR).union(Mtd::XSAVE).union(Mtd::SYSCALL).union(Mtd::KERNEL_GS).union(Mtd::TSC);

/// The groups of `mtd` whose values are legal.
pub fn check(mtd: Mtd, state: &Architectural) -> Mtd {
    let unsaved = state.xcr0 & !crate::fpu::components() | state.xss;
    let illegal = [
        (Mtd::CR, state.cr8 > 0xf),
        (Mtd::TPR, state.tpr_threshold > 0xf),
        // What XSETBV accepts and the kernel can save all of (Intel SDM vol. 1, 13.3): x87, then SSE, then AVX, then the three
        // components of AVX-512 together. Supervisor components it does not save: none can be on.
        (Mtd::XSAVE, !matches!(state.xcr0, 0x1 | 0x3 | 0x7 | 0xe7) || unsaved != 0),
        (Mtd::SYSCALL, !is_canonical(state.lstar) || state.fmask >> 32 != 0),
        (Mtd::KERNEL_GS, !is_canonical(state.kernel_gs_base)),
        (Mtd::TSC, state.tsc_aux >> 32 != 0),
    ];
    illegal.into_iter().filter(|(_, illegal)| *illegal).fold(mtd, |legal, (group, _)| legal.difference(group))
}

/// Whether the address agrees in its upper 17 bits.
const fn is_canonical(address: u64) -> bool {
    matches!((address as i64) >> 47, 0 | -1)
}
