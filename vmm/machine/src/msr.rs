//! Model-specific registers as the guest sees them: a table with a rule and a reason for each.
//!
//! A register that the table does not name raises #GP, as on a CPU that does not have it, and is counted. Intel SDM
//! vol. 4; AMD APM vol. 2, appendix A; AMD's BIOS and Kernel Developer's Guides for the C001_xxxx range.

mod table;

use alloc::collections::BTreeMap;

use abi::Mtd;
use abi::utcb::Architectural;

use crate::bus::Unclaimed;
use crate::cpuid::Vendor;
use crate::walk::efer;

pub use table::{PASS_THROUGH, TABLE};

/// A register whose value is part of the vCPU's state in the UTCB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateRegister {
    /// IA32_EFER.
    Efer,
    /// IA32_PAT.
    Pat,
    /// IA32_STAR.
    Star,
    /// IA32_LSTAR.
    Lstar,
    /// IA32_FMASK.
    Fmask,
    /// IA32_FS_BASE.
    FsBase,
    /// IA32_GS_BASE.
    GsBase,
    /// IA32_KERNEL_GS_BASE.
    KernelGsBase,
    /// IA32_TSC_AUX.
    TscAux,
    /// IA32_SYSENTER_CS.
    SysenterCs,
    /// IA32_SYSENTER_ESP.
    SysenterEsp,
    /// IA32_SYSENTER_EIP.
    SysenterEip,
}

/// What an access to a register does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Part of the vCPU's state.
    State(StateRegister),
    /// Read: always this value. Write: ignored.
    Fixed(u64),
    /// Read: always this value. Write: #GP.
    ReadOnly(u64),
    /// Keeps what is written, starting with this value; has no effect.
    Kept(u64),
    /// Only the value zero exists.
    Zero,
    /// The time stamp counter, read-only.
    Tsc,
    /// A device on the board.
    Board,
    /// kvmclock.
    KvmClock,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// First register.
    pub first: u32,
    /// Last register, included.
    pub last: u32,
    /// CPUs that have it; `None`: all.
    pub vendor: Option<Vendor>,
    /// What it does.
    pub rule: Rule,
    /// Its name.
    pub name: &'static str,
    /// Why it is as it is.
    pub reason: &'static str,
}

/// An access that raises #GP(0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault;

/// The registers that the monitor itself keeps.
#[derive(Clone, Debug)]
pub struct Registers {
    vendor: Vendor,
    syscall_extensions: u64,
    physical_bits: u32,
    kept: BTreeMap<u32, u64>,
    unknown: Unclaimed,
}

/// IA32_MTRR_PHYSBASE0 and IA32_MTRR_PHYSMASK0: the hole below 4 GiB is uncacheable, as firmware leaves it.
const MTRR_BASE_0: u32 = 0x200;
const EFER_ALWAYS: u64 = 1 << 0 | 1 << 8 | efer::LMA | efer::NXE;

impl Registers {
    /// The registers of a CPU of `vendor` with this many physical address bits. `fast_fxsave`: EFER.FFXSR exists.
    pub fn new(vendor: Vendor, physical_bits: u32, fast_fxsave: bool) -> Self {
        let syscall_extensions = if fast_fxsave { EFER_ALWAYS | 1 << 14 } else { EFER_ALWAYS };
        Self { vendor, syscall_extensions, physical_bits, kept: BTreeMap::new(), unknown: Unclaimed::default() }
    }

    /// As after RESET.
    pub fn reset(&mut self) {
        self.kept.clear();
    }

    /// The rule for a register; `None`: it does not exist.
    pub fn rule(&self, index: u32) -> Option<Rule> {
        let after = TABLE.partition_point(|line| line.first <= index);
        let line = TABLE.get(after.checked_sub(1)?)?;
        (index <= line.last && line.vendor.is_none_or(|vendor| vendor == self.vendor)).then_some(line.rule)
    }

    /// Notes an access to a register that does not exist.
    pub fn note_unknown(&mut self, index: u32, write: bool) {
        self.unknown.count(index as u64, write);
    }

    /// Registers that the guest wanted and does not have.
    pub fn unknown(&self) -> &Unclaimed {
        &self.unknown
    }

    /// Reads a kept register.
    pub fn read_kept(&self, index: u32, initial: u64) -> u64 {
        let initial = match index {
            MTRR_BASE_0 => crate::memory::LOW_RAM_MAX,
            // Bit 11: valid.
            _ if index == MTRR_BASE_0 + 1 => {
                ((1u64 << self.physical_bits.min(52)) - 1) & !((1 << 32) - crate::memory::LOW_RAM_MAX - 1) | 1 << 11
            }
            _ => initial,
        };
        self.kept.get(&index).copied().unwrap_or(initial)
    }

    /// Writes a kept register. The table bounds how many there are.
    pub fn write_kept(&mut self, index: u32, value: u64) {
        self.kept.insert(index, value);
    }

    /// Writes a register of the vCPU's state, checked as the CPU does.
    pub fn write_state(&self, register: StateRegister, value: u64, state: &mut Architectural) -> Result<(), Fault> {
        match register {
            StateRegister::Efer => {
                let value = value & !efer::LMA | state.efer & efer::LMA;
                const LME: u64 = 1 << 8;
                let paging = state.cr0 & crate::walk::cr0::PG != 0;
                if value & !self.syscall_extensions != 0 || (paging && (value ^ state.efer) & LME != 0) {
                    return Err(Fault);
                }
                state.efer = value;
                return Ok(());
            }
            // Types 2 and 3 and everything above 7 are reserved.
            StateRegister::Pat if value.to_le_bytes().iter().any(|&kind| kind > 7 || kind == 2 || kind == 3) => {
                return Err(Fault);
            }
            StateRegister::TscAux | StateRegister::Fmask if value >> 32 != 0 => return Err(Fault),
            StateRegister::Lstar
            | StateRegister::FsBase
            | StateRegister::GsBase
            | StateRegister::KernelGsBase
            | StateRegister::SysenterEsp
            | StateRegister::SysenterEip
                if (value as i64) << 16 >> 16 != value as i64 =>
            {
                return Err(Fault);
            }
            _ => {}
        }
        *register.place(state) = value;
        Ok(())
    }
}

impl StateRegister {
    /// The message transfer descriptor bits that carry it.
    pub const fn mtd(self) -> Mtd {
        match self {
            // LME depends on CR0.PG.
            StateRegister::Efer => Mtd::EFER.union(Mtd::CR),
            StateRegister::Pat => Mtd::PAT,
            StateRegister::Star | StateRegister::Lstar | StateRegister::Fmask => Mtd::SYSCALL,
            StateRegister::FsBase | StateRegister::GsBase => Mtd::FS_GS,
            StateRegister::KernelGsBase => Mtd::KERNEL_GS,
            StateRegister::TscAux => Mtd::TSC,
            StateRegister::SysenterCs | StateRegister::SysenterEsp | StateRegister::SysenterEip => Mtd::SYSENTER,
        }
    }

    /// The bits to name in the reply after a write.
    pub const fn reply_mtd(self) -> Mtd {
        match self {
            StateRegister::Efer => Mtd::EFER,
            other => other.mtd(),
        }
    }

    /// Where its value is.
    pub fn place(self, state: &mut Architectural) -> &mut u64 {
        match self {
            StateRegister::Efer => &mut state.efer,
            StateRegister::Pat => &mut state.pat,
            StateRegister::Star => &mut state.star,
            StateRegister::Lstar => &mut state.lstar,
            StateRegister::Fmask => &mut state.fmask,
            StateRegister::FsBase => &mut state.fs.base,
            StateRegister::GsBase => &mut state.gs.base,
            StateRegister::KernelGsBase => &mut state.kernel_gs_base,
            StateRegister::TscAux => &mut state.tsc_aux,
            StateRegister::SysenterCs => &mut state.sysenter_cs,
            StateRegister::SysenterEsp => &mut state.sysenter_esp,
            StateRegister::SysenterEip => &mut state.sysenter_eip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_disjoint() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].first <= pair[0].last && pair[0].last < pair[1].first, "{pair:x?}");
        }
        assert!(TABLE.iter().all(|line| !line.reason.is_empty() && !line.name.is_empty()));
        for index in PASS_THROUGH {
            let rule = Registers::new(Vendor::Amd, 40, false).rule(*index);
            assert!(matches!(rule, Some(Rule::State(_) | Rule::Kept(_))), "{index:#x}: exits must work too");
        }
    }

    #[test]
    fn vendors_differ() {
        let (intel, amd) = (Registers::new(Vendor::Intel, 39, false), Registers::new(Vendor::Amd, 40, true));
        assert_eq!(intel.rule(0xc001_0015), None);
        assert_eq!(amd.rule(0xc001_0015), Some(Rule::Kept(1 << 24)));
        assert_eq!(amd.rule(0xc000_0080), Some(Rule::State(StateRegister::Efer)));
        assert_eq!(amd.rule(0x345), None);
        assert_eq!(intel.read_kept(0x201, 0), 0x7f_c000_0800);
    }

    #[test]
    fn efer_is_checked() {
        let registers = Registers::new(Vendor::Intel, 39, false);
        let mut state = Architectural::default();
        (state.cr0, state.efer) = (1 << 31 | 1, 0xd00);
        let mut write = |value| registers.write_state(StateRegister::Efer, value, &mut state).map(|()| state.efer);
        assert_eq!(write(0x901), Ok(0xd01));
        assert_eq!(write(0x401), Err(Fault));
        assert_eq!(write(0x1d01), Err(Fault));
        assert_eq!(write(0x4d01), Err(Fault));
    }

    /// The kernel would refuse a reply with one of them, and that ends the guest.
    #[test]
    fn reserved_halves_stay_clear() {
        let registers = Registers::new(Vendor::Amd, 40, true);
        for register in [StateRegister::Fmask, StateRegister::TscAux] {
            let write = |value| registers.write_state(register, value, &mut Architectural::default());
            assert_eq!(write(u32::MAX.into()), Ok(()), "{register:?}");
            assert!((32..64).all(|bit| write(1 << bit) == Err(Fault)), "{register:?}");
        }
    }

    #[test]
    fn bases_are_canonical() {
        let registers = Registers::new(Vendor::Intel, 39, false);
        let mut state = Architectural::default();
        assert_eq!(registers.write_state(StateRegister::Lstar, 1 << 47, &mut state), Err(Fault));
        assert_eq!(registers.write_state(StateRegister::Lstar, u64::MAX << 47, &mut state), Ok(()));
        assert_eq!(registers.write_state(StateRegister::Pat, 0x0206, &mut state), Err(Fault));
    }
}
