//! The guest's own page tables, walked as the CPU does, through [`GuestMemory`] only.
//!
//! Intel SDM vol. 3A, 4.3 (32-bit paging), 4.4 (PAE), 4.5 (4-level), 4.6 (access rights), 4.7 (error code), 4.8
//! (accessed and dirty flags). Protection keys, shadow stacks and 5-level paging are not offered to guests.

use abi::utcb::Architectural;

use crate::memory::GuestMemory;

/// CR0 bits.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
pub mod cr4 {
    /// Page-size extensions.
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// OSXSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor-mode execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor-mode access prevention.
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
pub mod efer {
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries on the way to a small page in long mode.
pub const LEVELS: usize = 4;

/// An entry on the way to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// Its guest-physical address.
    pub at: u64,
    /// What it holds.
    pub entry: u64,
}

/// An entry, if it is present. A function of its own, as it is to be in line wherever it is used.
#[inline(always)]
fn present_step(memory: &impl GuestMemory, at: u64) -> Option<Step> {
    let entry = memory.read_u64(at).ok()?;
    (entry & PRESENT != 0).then_some(Step { at, entry })
}

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// A page fault to be delivered to the guest: error code as the CPU would push it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// Faulting linear address (CR2).
    pub address: u64,
    /// Error code.
    pub code: u32,
}

/// The control state that decides how a linear address is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paging {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// Privilege level of the access is 3.
    user: bool,
    /// EFLAGS.AC: SMAP does not apply.
    alignment_check: bool,
}

impl Paging {
    /// The state of a vCPU; needs CR, EFER, RFLAGS and CS_SS.
    pub fn of(state: &Architectural) -> Self {
        Self {
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            user: state.ss.access >> 5 & 3 == 3,
            alignment_check: state.rflags & 1 << 18 != 0,
        }
    }

    /// Whether the tables are those of long mode. Needs CR, EFER.
    #[inline(always)]
    pub fn is_long(state: &Architectural) -> bool {
        state.cr0 & cr0::PG != 0 && state.efer & efer::LMA != 0
    }

    /// Translates one linear address for an access. Sets accessed and dirty flags as the CPU would.
    pub fn translate(&self, memory: &impl GuestMemory, linear: u64, access: Access) -> Result<u64, PageFault> {
        if self.cr0 & cr0::PG == 0 {
            return Ok(linear & 0xffff_ffff);
        }
        if self.efer & efer::LMA != 0 {
            if (linear as i64) << 16 >> 16 != linear as i64 {
                // Not canonical: the CPU raises #GP or #SS; the caller sees a fault on a page that is not there.
                return Err(self.fault(linear, access, false));
            }
            return self.walk(memory, linear, access, self.cr3 & ADDRESS, &[39, 30, 21, 12], 8, NO_EXECUTE);
        }
        let linear = linear & 0xffff_ffff;
        if self.cr4 & cr4::PAE != 0 {
            // A CPU may keep the four entries from the last load of CR3; AMD reads them from memory, and so do we.
            let at = (self.cr3 & 0xffff_ffe0) + (linear >> 30) * 8;
            let directory = memory.read_u64(at).unwrap_or(0);
            if directory & PRESENT == 0 {
                return Err(self.fault(linear, access, false));
            }
            return self.walk(memory, linear, access, directory & ADDRESS, &[21, 12], 8, NO_EXECUTE);
        }
        self.walk(memory, linear, access, self.cr3 & 0xffff_f000, &[22, 12], 4, 0)
    }

    /// Where the instruction is that the CPU has just executed in 64-bit mode, at a linear address: it had the right to, so
    /// that only addresses are looked at. None in other modes, and where tables are not in RAM.
    #[inline]
    pub fn executed(&self, memory: &impl GuestMemory, linear: u64) -> Option<u64> {
        self.way(memory, linear).map(|(gpa, _)| gpa)
    }

    /// The same with the entries on the way, of a large page the last one more than once.
    #[inline(always)]
    pub fn way(&self, memory: &impl GuestMemory, linear: u64) -> Option<(u64, [Step; LEVELS])> {
        if self.cr0 & cr0::PG == 0 || self.efer & efer::LMA == 0 {
            return None;
        }
        let step = |table: u64, shift: u32| present_step(memory, (table & ADDRESS) + (linear >> shift & 511) * 8);
        let page = |last: Step, shift: u32| {
            let mask = (1 << shift) - 1;
            last.entry & ADDRESS & !mask | linear & mask
        };
        let a = step(self.cr3, 39)?;
        let b = step(a.entry, 30)?;
        if b.entry & LARGE != 0 {
            return Some((page(b, 30), [a, b, b, b]));
        }
        let c = step(b.entry, 21)?;
        if c.entry & LARGE != 0 {
            return Some((page(c, 21), [a, b, c, c]));
        }
        let d = step(c.entry, 12)?;
        Some((page(d, 12), [a, b, c, d]))
    }

    fn fault(&self, address: u64, access: Access, present: bool) -> PageFault {
        let fetch = access == Access::Fetch && (self.efer & efer::NXE != 0 || self.cr4 & cr4::SMEP != 0);
        let code = present as u32
            | u32::from(access == Access::Write) << 1
            | u32::from(self.user) << 2
            | u32::from(fetch) << 4;
        PageFault { address, code }
    }

    #[expect(clippy::too_many_arguments, reason = "the parameters of a table format, all used in one loop")]
    fn walk(
        &self,
        memory: &impl GuestMemory,
        linear: u64,
        access: Access,
        root: u64,
        shifts: &[u32],
        entry_size: u64,
        no_execute: u64,
    ) -> Result<u64, PageFault> {
        let index_bits = if entry_size == 8 { 9 } else { 10 };
        let no_execute = if self.efer & efer::NXE != 0 { no_execute } else { 0 };
        let (mut table, mut rights, mut executable) = (root, WRITABLE | USER, true);
        for (level, &shift) in shifts.iter().enumerate() {
            let at = table + (linear >> shift & ((1 << index_bits) - 1)) * entry_size;
            let entry = if entry_size == 8 { memory.read_u64(at) } else { memory.read_u32(at).map(u64::from) };
            let Ok(entry) = entry else { return Err(self.fault(linear, access, false)) };
            if entry & PRESENT == 0 {
                return Err(self.fault(linear, access, false));
            }
            rights &= entry;
            executable &= entry & no_execute == 0;
            let last = level + 1 == shifts.len();
            let may_be_large = !last && shift < 39 && (entry_size == 8 || self.cr4 & cr4::PSE != 0);
            let leaf = last || (may_be_large && entry & LARGE != 0);
            if leaf && !self.permits(rights, executable, access) {
                return Err(self.fault(linear, access, true));
            }
            let flags = if leaf && access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
            if entry & flags != flags {
                // The flags are in the low byte. It was RAM a moment ago.
                let _ = memory.write(at, &[(entry | flags) as u8]);
            }
            if leaf {
                let mask = (1u64 << shift) - 1;
                let mut base = entry & if entry_size == 8 { ADDRESS } else { 0xffff_f000 } & !mask;
                if entry_size == 4 && !last {
                    // 4 MiB page: bits 20:13 are bits 39:32 of the address (PSE-36).
                    base |= (entry >> 13 & 0xff) << 32;
                }
                return Ok(base | linear & mask);
            }
            table = entry & if entry_size == 8 { ADDRESS } else { 0xffff_f000 };
        }
        Err(self.fault(linear, access, false))
    }

    fn permits(&self, rights: u64, executable: bool, access: Access) -> bool {
        let user_page = rights & USER != 0;
        let writable = rights & WRITABLE != 0;
        match (access, self.user) {
            (Access::Fetch, true) => user_page && executable,
            (Access::Fetch, false) => executable && !(user_page && self.cr4 & cr4::SMEP != 0),
            (_, true) => user_page && (access == Access::Read || writable),
            (_, false) => {
                !(user_page && self.cr4 & cr4::SMAP != 0 && !self.alignment_check)
                    && (access == Access::Read || writable || self.cr0 & cr0::WP == 0)
            }
        }
    }

    /// Copies from linear addresses, page by page. Returns how many bytes could be read before RAM ended, or the
    /// fault if not even one could.
    pub fn fetch(&self, memory: &impl GuestMemory, linear: u64, bytes: &mut [u8]) -> Result<usize, PageFault> {
        let mut done = 0;
        while done < bytes.len() {
            let at = linear.wrapping_add(done as u64);
            let step = (0x1000 - (at & 0xfff) as usize).min(bytes.len() - done);
            match self.translate(memory, at, Access::Fetch) {
                Ok(gpa) if memory.read(gpa, &mut bytes[done..done + step]).is_ok() => done += step,
                Err(fault) if done == 0 => return Err(fault),
                _ => break,
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::VecMemory;
    use proptest::prelude::*;

    const ROOT: u64 = 0x1000;

    fn long_mode() -> Architectural {
        Architectural {
            cr0: cr0::PG | cr0::PE | cr0::WP,
            cr3: ROOT,
            cr4: cr4::PAE,
            efer: efer::LMA | efer::NXE,
            ..Architectural::default()
        }
    }

    fn put(memory: &VecMemory, at: u64, entry: u64) {
        memory.write(at, &entry.to_le_bytes()).unwrap();
    }

    #[test]
    fn four_levels() {
        let memory = VecMemory::new(0x10000);
        put(&memory, ROOT + 511 * 8, 0x2003);
        put(&memory, 0x2000 + 510 * 8, 0x3003);
        put(&memory, 0x3000, 0x4003);
        put(&memory, 0x3008, 0x40_0083); // 2 MiB
        put(&memory, 0x4000 + 5 * 8, 0x9001 | NO_EXECUTE);
        let paging = Paging::of(&long_mode());
        let base = 0xffff_ffff_8000_0000;
        assert_eq!(paging.translate(&memory, base + 0x5123, Access::Read), Ok(0x9123));
        assert_eq!(paging.translate(&memory, base + 0x20_1234, Access::Write), Ok(0x40_1234));
        assert_eq!(memory.read_u64(0x3008).unwrap() & (ACCESSED | DIRTY), ACCESSED | DIRTY);
        assert_eq!(paging.executed(&memory, base + 0x5123), Some(0x9123));
        assert_eq!(paging.executed(&memory, base + 0x20_1234), Some(0x40_1234));
        assert_eq!(paging.executed(&memory, base + 0x6000), None);
        let fault = |code| Err(PageFault { address: base + 0x5123, code });
        assert_eq!(paging.translate(&memory, base + 0x5123, Access::Write), fault(3));
        assert_eq!(paging.translate(&memory, base + 0x5123, Access::Fetch), fault(0x11));
        assert_eq!(
            paging.translate(&memory, base + 0x6000, Access::Read),
            Err(PageFault { address: base + 0x6000, code: 0 })
        );
        let mut user = long_mode();
        user.ss.access = 3 << 5;
        assert_eq!(Paging::of(&user).translate(&memory, base + 0x5123, Access::Read), fault(5));
    }

    #[test]
    fn thirty_two_bits() {
        let memory = VecMemory::new(0x10000);
        let mut state = long_mode();
        (state.efer, state.cr4) = (0, cr4::PSE);
        memory.write(ROOT + 4, &0x0080_0087u32.to_le_bytes()).unwrap();
        memory.write(ROOT + 8, &0x2007u32.to_le_bytes()).unwrap();
        memory.write(0x2000 + 4 * 3, &0x7001u32.to_le_bytes()).unwrap();
        let paging = Paging::of(&state);
        assert_eq!(paging.translate(&memory, 0x41_2345, Access::Write), Ok(0x81_2345));
        assert_eq!(paging.translate(&memory, 0x80_3004, Access::Read), Ok(0x7004));
        state.cr0 = 0;
        assert_eq!(Paging::of(&state).translate(&memory, 0x1_0000_1234, Access::Write), Ok(0x1234));
    }

    #[test]
    fn pae() {
        let memory = VecMemory::new(0x10000);
        let mut state = long_mode();
        (state.efer, state.cr4) = (0, cr4::PAE);
        put(&memory, ROOT + 3 * 8, 0x2001);
        put(&memory, 0x2000, 0x3003);
        put(&memory, 0x3000, 0x5003);
        assert_eq!(Paging::of(&state).translate(&memory, 0xc000_0042, Access::Write), Ok(0x5042));
        assert!(Paging::of(&state).translate(&memory, 0x42, Access::Read).is_err());
    }

    #[test]
    fn a_fetch_ends_where_pages_end() {
        let memory = VecMemory::new(0x3000);
        let mut state = long_mode();
        state.cr0 = 0;
        let paging = Paging::of(&state);
        assert_eq!(paging.fetch(&memory, 0x2ff8, &mut [0; 15]), Ok(8));
        assert_eq!(paging.fetch(&memory, 0x3000, &mut [0; 15]), Ok(0));
    }

    proptest! {
        #[test]
        fn hostile_tables_never_panic(entries in prop::collection::vec(any::<u64>(), 64), linear: u64, cr3: u64, bits: u8) {
            let memory = VecMemory::new(0x10000);
            for (index, entry) in entries.iter().enumerate() {
                put(&memory, (index as u64 * 0x3f8) & !7, *entry);
            }
            let mut state = long_mode();
            state.cr3 = cr3 & 0xffff;
            if bits & 1 != 0 { state.efer = 0; }
            if bits & 2 != 0 { state.cr4 = cr4::PSE; }
            for access in [Access::Read, Access::Write, Access::Fetch] {
                let _ = Paging::of(&state).translate(&memory, linear, access);
            }
            let paging = Paging::of(&state);
            let executed = paging.executed(&memory, linear);
            if let Ok(gpa) = paging.translate(&memory, linear, Access::Fetch) && let Some(executed) = executed {
                prop_assert_eq!(executed, gpa);
            }
            let _ = paging.fetch(&memory, linear, &mut [0; 15]);
        }
    }
}
