//! The firmware's tables, as far as the kernel needs them: processors, interrupt controllers, timer, power
//! registers (ACPI Specification 6.5, 5.2).
//!
//! A broken table is ignored and complained about; what it would have told is missing then.

use super::{List, PhysicalMemory, Window};
use core::fmt;

/// Most I/O APICs.
pub const IOAPICS_MAX: usize = 16;
const COMPLAINTS_MAX: usize = 8;
/// Most bytes that a table may have; real ones have a few hundred.
const LENGTH_MAX: u64 = 1 << 20;

/// Length of the header that all tables but the root pointer have (5.2.6); it begins with signature and length.
const HEADER: u64 = 36;
/// Where the MADT's entries begin: behind the header, the address of the LAPICs and flags (5.2.12).
const MADT_ENTRIES: u64 = HEADER + 8;
/// Start and end of the BIOS area that can hold the root pointer (5.2.5.1).
const BIOS_AREA: (u64, u64) = (0xe_0000, 0x10_0000);
/// Address of the segment of the extended BIOS data area.
const EBDA_SEGMENT: u64 = 0x40e;

/// An I/O APIC (5.2.12.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u64,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
    /// The firmware's number for it.
    pub id: u8,
}

/// An entry of the MADT (5.2.12).
enum MadtEntry {
    /// Id of its local APIC, or x2APIC.
    Processor(u32),
    IoApic(IoApic),
    Other,
}

/// What the kernel needs of the FADT (5.2.9). Ports that do not exist are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fadt {
    /// Port of the PM1a control register.
    pub pm1a_control: u16,
    /// Port of the PM1b control register.
    pub pm1b_control: u16,
    /// Port of the PM2 control register.
    pub pm2_control: u16,
    /// Port for commands to the firmware's system-management mode.
    pub smi_command: u16,
    /// Port of the power-management timer, and whether it counts 32 instead of 24 bits (4.8.3.3).
    pub pm_timer: Option<(u16, bool)>,
    /// The port of the reset register and the value that resets the machine (4.8.3.6).
    pub reset: Option<(u16, u8)>,
}

/// FADT flag: the timer has 32 bits.
const TIMER_WIDE: u64 = 1 << 8;
/// FADT flag: the reset register works.
const RESET_WORKS: u64 = 1 << 10;

/// What is wrong with a table, in words.
type Problem = &'static str;

const UNREADABLE: Problem = "cannot be read";
const BAD_LENGTH: Problem = "has an impossible length";
const BAD_ENTRY: Problem = "has an entry of impossible length";
const CHECKSUM: Problem = "has a wrong checksum";

/// A table that was ignored, as a whole or in part, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Complaint {
    /// Signature of the table.
    pub table: &'static str,
    /// Its physical address, 0 if absent.
    pub address: u64,
    /// What is wrong with it.
    problem: Problem,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ["table ", self.table, " "].iter().try_for_each(|text| f.write_str(text))?;
        if self.address != 0 {
            write!(f, "at {:#x} ", self.address)?;
        }
        f.write_str(self.problem)
    }
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Physical address of the root pointer.
    pub rsdp: Option<u64>,
    /// Fixed hardware.
    pub fadt: Option<Fadt>,
    madt: Option<(u64, u64)>,
    /// Place and length of the table of remapping units.
    pub dmar: Option<(u64, u64)>,
    ioapics: List<IoApic, IOAPICS_MAX>,
    complaints: List<Complaint, COMPLAINTS_MAX>,
}

impl Tables {
    /// The I/O APICs.
    pub fn ioapics(&self) -> &[IoApic] {
        self.ioapics.as_slice()
    }

    /// Tells `each` the local APICs of the processors that are enabled, by sparse id, in the firmware's order, which begins
    /// with the one that runs. Some firmware lists a processor twice. What is behind a malformed entry is missing, and was
    /// complained about.
    pub fn processors(&self, memory: &impl PhysicalMemory, mut each: impl FnMut(u32)) {
        let Some(madt) = self.madt.and_then(|(start, len)| Window::new(memory, start, len)) else { return };
        let _ = madt_entries(&madt, &mut |entry| {
            if let MadtEntry::Processor(id) = entry {
                each(id);
            }
            true
        });
    }

    /// What was ignored.
    pub fn complaints(&self) -> &[Complaint] {
        self.complaints.as_slice()
    }

    /// Forgets the I/O APICs that are not where one can be, with a complaint.
    pub fn check_ioapics(&mut self, possible: impl Fn(&IoApic) -> bool) {
        let all = core::mem::replace(&mut self.ioapics, List::empty());
        for chip in all.as_slice() {
            if !possible(chip) || !self.ioapics.push(*chip) {
                self.complain("APIC", self.madt.map_or(0, |(start, _)| start), "has an I/O APIC where none can be");
            }
        }
    }

    #[inline(never)]
    fn complain(&mut self, table: &'static str, address: u64, problem: Problem) {
        // What does not fit is the tail of a long list of complaints.
        let _ = self.complaints.push(Complaint { table, address, problem });
    }
}

/// Finds the tables through the root pointer at physical address `rsdp`, or by searching the BIOS's areas for one.
pub fn find(memory: &impl PhysicalMemory, rsdp: Option<u64>) -> Tables {
    let mut tables =
        Tables { rsdp: None, fadt: None, madt: None, dmar: None, ioapics: List::empty(), complaints: List::empty() };
    let given = rsdp.and_then(|address| {
        let roots = root_pointer(memory, address).inspect_err(|problem| tables.complain("RSDP", address, problem));
        Some((address, roots.ok()?))
    });
    let Some((address, roots)) = given.or_else(|| search(memory)) else {
        tables.complain("RSDP", 0, "is absent");
        return tables;
    };
    tables.rsdp = Some(address);
    for (signature, address) in roots.into_iter().filter(|(_, address)| *address != 0) {
        match table(memory, address, signature) {
            Ok(root) => {
                read_root(&mut tables, &root, signature.starts_with('X'));
                break;
            }
            Err(problem) => tables.complain(signature, address, problem),
        }
    }
    for (signature, missing) in [("APIC", tables.madt.is_none()), ("FACP", tables.fadt.is_none())] {
        if missing {
            tables.complain(signature, 0, "is absent");
        }
    }
    tables
}

/// Signature and physical address of a root table; 0 if there is none.
type Root = (&'static str, u64);

/// Reads a root pointer (5.2.5.3) and returns the root tables, the one to be preferred first.
fn root_pointer(memory: &impl PhysicalMemory, address: u64) -> Result<[Root; 2], Problem> {
    let old = Window::new(memory, address, 20).ok_or(UNREADABLE)?;
    let [signature, revision, rsdt] = old.numbers(&[(0, 8), (15, 1), (16, 4)]).ok_or(UNREADABLE)?;
    if signature != u64::from_le_bytes(*b"RSD PTR ") {
        return Err("has another signature");
    }
    if old.sum() != Some(0) {
        return Err(CHECKSUM);
    }
    let mut xsdt = 0;
    if revision >= 2 {
        let new = Window::new(memory, address, 36).ok_or(UNREADABLE)?;
        xsdt = new.number(24, 8).ok_or(UNREADABLE)?;
        if new.sum() != Some(0) {
            return Err(CHECKSUM);
        }
    }
    Ok([("XSDT", xsdt), ("RSDT", rsdt)])
}

/// Looks for a root pointer where a BIOS leaves it (5.2.5.1).
fn search(memory: &impl PhysicalMemory) -> Option<(u64, [Root; 2])> {
    let segment = Window::new(memory, EBDA_SEGMENT, 2).and_then(|word| word.number(0, 2)).unwrap_or(0);
    let ebda = segment << 4;
    let found = |address| Some((address, root_pointer(memory, address).ok()?));
    [(ebda, ebda + 1024), BIOS_AREA].iter().find_map(|(start, end)| (*start..*end).step_by(16).find_map(found))
}

/// The table at `address`, if it is intact and has this signature.
fn table<'a, M: PhysicalMemory>(memory: &'a M, address: u64, signature: &str) -> Result<Window<'a, M>, Problem> {
    let header = Window::new(memory, address, HEADER).ok_or(UNREADABLE)?;
    let [found, len] = header.numbers(&[(0, 4), (4, 4)]).ok_or(UNREADABLE)?;
    if (found as u32).to_le_bytes() != *signature.as_bytes() {
        return Err("has another signature");
    }
    if !(HEADER..=LENGTH_MAX).contains(&len) {
        return Err(BAD_LENGTH);
    }
    let table = Window::new(memory, address, len).ok_or(BAD_LENGTH)?;
    if table.sum().ok_or(UNREADABLE)? == 0 { Ok(table) } else { Err(CHECKSUM) }
}

/// Takes what is wanted of the tables that a root table lists (5.2.7; 5.2.8 with 64-bit addresses), the first of each
/// kind that is intact.
fn read_root(tables: &mut Tables, root: &Window<impl PhysicalMemory>, wide: bool) {
    let size = if wide { 8 } else { 4 };
    for offset in (HEADER..root.len).step_by(size) {
        let Some(address) = root.number(offset, size) else { return tables.complain("RSDT", root.start, BAD_LENGTH) };
        let signature = Window::new(root.memory, address, HEADER).and_then(|header| header.number(0, 4));
        let (wanted, result) = match signature.map(|signature| (signature as u32).to_le_bytes()).as_ref() {
            Some(b"APIC") if tables.madt.is_none() => ("APIC", read_madt(tables, root.memory, address)),
            Some(b"DMAR") if tables.dmar.is_none() => {
                ("DMAR", table(root.memory, address, "DMAR").map(|found| tables.dmar = Some((found.start, found.len))))
            }
            Some(b"FACP") if tables.fadt.is_none() => ("FACP", read_fadt(tables, root.memory, address)),
            Some(_) => continue,
            None => ("????", Err(UNREADABLE)),
        };
        if let Err(problem) = result {
            tables.complain(wanted, address, problem);
        }
    }
}

/// Reads the MADT; what stands before a malformed entry counts.
fn read_madt(tables: &mut Tables, memory: &impl PhysicalMemory, address: u64) -> Result<(), Problem> {
    let madt = table(memory, address, "APIC")?;
    if madt.len < MADT_ENTRIES {
        return Err(BAD_LENGTH);
    }
    tables.madt = Some((madt.start, madt.len));
    madt_entries(&madt, &mut |entry| !matches!(entry, MadtEntry::IoApic(ioapic) if !tables.ioapics.push(ioapic)))
}

/// Tells `each` the entries up to the first malformed one: nothing behind it has a known place. `each` says whether there
/// was room.
fn madt_entries(madt: &Window<impl PhysicalMemory>, each: &mut dyn FnMut(MadtEntry) -> bool) -> Result<(), Problem> {
    let mut offset = MADT_ENTRIES;
    while offset < madt.len {
        let entry = madt.number(offset + 1, 1).and_then(|len| madt.part(offset, len)).filter(|entry| entry.len >= 2);
        let entry = entry.ok_or(BAD_ENTRY)?;
        if !each(madt_entry(&entry).ok_or(BAD_ENTRY)?) {
            return Err("has more entries than supported");
        }
        offset += entry.len;
    }
    Ok(())
}

/// `None` if the entry is too short for its type.
fn madt_entry(entry: &Window<impl PhysicalMemory>) -> Option<MadtEntry> {
    // Only bit 0 of the flags counts: a processor that is not enabled does not answer, even if it can come later. The
    // id of all bits is everybody's.
    let processor = |places: [_; 3], broadcast| match entry.numbers(&places)? {
        [id, flags, _] if flags & 1 == 0 || id == broadcast => Some(MadtEntry::Other),
        [id, ..] => Some(MadtEntry::Processor(id as u32)),
    };
    match entry.number(0, 1)? {
        0 => processor([(3, 1), (4, 4), (4, 4)], 0xff),
        1 => {
            let [id, address, gsi_base] = entry.numbers(&[(2, 1), (4, 4), (8, 4)])?;
            Some(MadtEntry::IoApic(IoApic { address, gsi_base: gsi_base as u32, id: id as u8 }))
        }
        9 => processor([(4, 4), (8, 4), (12, 4)], u32::MAX.into()),
        _ => Some(MadtEntry::Other),
    }
}

/// Reads the FADT; ACPI 1.0's, of 116 bytes, lacks the extended fields.
#[inline(never)]
fn read_fadt(tables: &mut Tables, memory: &impl PhysicalMemory, address: u64) -> Result<(), Problem> {
    let fadt = table(memory, address, "FACP")?;
    let [smi_command, flags] = fadt.numbers(&[(48, 4), (112, 4)]).ok_or(BAD_LENGTH)?;
    // A generic address (5.2.3.2) counts if it is an existing port, in place of the legacy field.
    let generic = |offset| match fadt.numbers(&[(offset, 1), (offset + 4, 8)]) {
        Some([1, address]) => u16::try_from(address).unwrap_or(0),
        _ => 0,
    };
    let port = |legacy, extended| match generic(extended) {
        0 => fadt.number(legacy, 4).and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        port => port,
    };
    let reset = fadt.number(128, 1).map(|value| (generic(116), value as u8));
    tables.fadt = Some(Fadt {
        pm1a_control: port(64, 172),
        pm1b_control: port(68, 184),
        pm2_control: port(72, 196),
        smi_command: u16::try_from(smi_command).unwrap_or(0),
        pm_timer: Some((port(76, 208), flags & TIMER_WIDE != 0)).filter(|(port, _)| *port != 0),
        reset: reset.filter(|(port, _)| *port != 0 && flags & RESET_WORKS != 0),
    });
    Ok(())
}
