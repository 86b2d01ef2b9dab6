//! The firmware's table of IOMMUs, DMAR (VT-d specification, section 8): which functions a unit governs, and for which
//! the firmware has reserved memory. The kernel has checked the table as a whole before.

use crate::frames::PhysRange;
use crate::pci::{Function, Header};
use alloc::vec::Vec;
use plan::PciAddress;

/// Device scopes (8.3.1) of PCI: an endpoint, and a bridge with all behind it.
const ENDPOINT: u8 = 1;
const BRIDGE: u8 = 2;

/// What the table says of segment 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dmar {
    /// The units.
    pub units: Vec<Unit>,
    /// Reserved memory.
    reserved: Vec<Reserved>,
}

/// An IOMMU (8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Physical address of its registers.
    pub registers: u64,
    /// The kernel uses it.
    pub used: bool,
    /// It governs all that no other one does.
    all: bool,
    scopes: Vec<Scope>,
}

/// Memory that devices need whatever happens (8.4).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reserved {
    memory: PhysRange,
    scopes: Vec<Scope>,
}

/// A device by its path: the bus that it begins at, then device and function of each bridge and of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scope {
    kind: u8,
    bus: u8,
    path: Vec<(u8, u8)>,
}

impl Dmar {
    /// Reads the table. What does not fit ends it.
    pub fn read(table: &[u8]) -> Self {
        let mut found = Self::default();
        let mut rest = table.get(48..).unwrap_or(&[]);
        while let [kind, 0, l0, l1, ..] = *rest {
            let length = usize::from(u16::from_le_bytes([l0, l1]));
            let Some(part) = rest.get(..length).filter(|part| part.len() >= 4) else { break };
            rest = &rest[length..];
            let Some((segment, start)) = word(part, 8).zip(part.get(6..8)).map(|(start, segment)| (segment, start))
            else {
                continue;
            };
            match kind {
                _ if segment != [0, 0] => {}
                0 => found.units.push(Unit {
                    registers: start,
                    used: true,
                    all: part[4] & 1 != 0,
                    scopes: scopes(part, 16),
                }),
                1 => {
                    let end = word(part, 16).and_then(|last| last.checked_add(1)).filter(|end| *end > start);
                    let memory = end.map(|end| PhysRange::new(start, end));
                    found.reserved.extend(memory.map(|memory| Reserved { memory, scopes: scopes(part, 24) }));
                }
                _ => {}
            }
        }
        found
    }

    /// The unit that governs a function, if one does and is used.
    pub fn unit_of(&self, functions: &[Function], function: &Function) -> Option<&Unit> {
        let names = |unit: &&Unit| unit.scopes.iter().any(|scope| scope.holds(functions, function));
        let unit = self.units.iter().find(names).or_else(|| self.units.iter().find(|unit| unit.all));
        unit.filter(|unit| unit.used)
    }

    /// Memory that the firmware reserved for a function.
    pub fn reserved_for(&self, functions: &[Function], function: &Function) -> Option<PhysRange> {
        let names = |range: &&Reserved| range.scopes.iter().any(|scope| scope.holds(functions, function));
        self.reserved.iter().find(names).map(|range| range.memory)
    }
}

impl Scope {
    /// Whether it names the function, or a bridge above it.
    fn holds(&self, functions: &[Function], function: &Function) -> bool {
        let Some(named) = self.resolve(functions) else { return false };
        let mut at = Some(function.address);
        // No path is longer than there are buses.
        for _ in 0..256 {
            match at {
                Some(address) if address == named => return true,
                Some(address) if self.kind == BRIDGE => {
                    at = functions.iter().find(|other| other.address == address).and_then(|found| found.above);
                }
                _ => return false,
            }
        }
        false
    }

    /// The address at the path's end.
    fn resolve(&self, functions: &[Function]) -> Option<PciAddress> {
        let mut bus = self.bus;
        let mut steps = self.path.iter().peekable();
        while let Some((device, function)) = steps.next() {
            let address = PciAddress::new(bus, *device, *function);
            if steps.peek().is_none() {
                return Some(address);
            }
            let Header::Bridge { secondary, .. } = functions.iter().find(|other| other.address == address)?.header
            else {
                return None;
            };
            bus = secondary;
        }
        None
    }
}

/// The scopes of PCI functions in `part` from `offset` on.
fn scopes(part: &[u8], offset: usize) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let mut rest = part.get(offset..).unwrap_or(&[]);
    while let [kind, length, _, _, _, bus, ..] = *rest {
        let Some(scope) = rest.get(..usize::from(length)).filter(|scope| scope.len() >= 8) else { break };
        rest = &rest[scope.len()..];
        if matches!(kind, ENDPOINT | BRIDGE) {
            let (steps, _) = scope[6..].as_chunks::<2>();
            scopes.push(Scope {
                kind,
                bus,
                path: steps.iter().map(|[device, function]| (*device, *function)).collect(),
            });
        }
    }
    scopes
}

fn word(part: &[u8], at: usize) -> Option<u64> {
    let bytes = part.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::tests::{at, behind_bridges};
    use crate::pci::{self, Function};

    fn structure(kind: u8, flags: u8, segment: u8, numbers: &[u64], scopes: &[u8]) -> Vec<u8> {
        let length = (8 + 8 * numbers.len() + scopes.len()) as u8;
        let mut part = std::vec![kind, 0, length, 0, flags, 0, segment, 0];
        numbers.iter().for_each(|number| part.extend(number.to_le_bytes()));
        part.extend(scopes);
        part
    }

    fn table(parts: &[Vec<u8>]) -> Vec<u8> {
        [std::vec![0; 48], parts.concat()].concat()
    }

    /// Functions of which those on buses 1 and 2 are behind the bridges 00:01.0 and 00:02.0.
    fn functions() -> Vec<Function> {
        pci::enumerate(&mut behind_bridges(), 0)
    }

    fn function(functions: &[Function], address: PciAddress) -> &Function {
        functions.iter().find(|function| function.address == address).expect("is there")
    }

    #[test]
    fn units_govern_what_they_name_and_one_the_rest() {
        let functions = functions();
        // The bridge 00:02.0 with all behind it; an I/O APIC, which is no PCI function here; and 01:00.0 by its path.
        let behind = [BRIDGE, 8, 0, 0, 0, 0, 2, 0, 3, 8, 0, 0, 0, 0, 0x1f, 7];
        let one = [ENDPOINT, 10, 0, 0, 0, 0, 1, 0, 0, 0];
        let units = [
            structure(0, 0, 0, &[0xfed9_0000], &behind),
            structure(0, 0, 0, &[0xfed9_1000], &one),
            structure(0, 1, 1, &[0xfed9_2000], &[]),
        ];
        let dmar = Dmar::read(&table(&units));
        let of = |dmar: &Dmar, address| dmar.unit_of(&functions, function(&functions, address)).map(|u| u.registers);
        assert_eq!(of(&dmar, at(2, 0, 0)), Some(0xfed9_0000));
        assert_eq!(of(&dmar, at(0, 2, 0)), Some(0xfed9_0000));
        assert_eq!(of(&dmar, at(1, 0, 0)), Some(0xfed9_1000));
        assert_eq!(of(&dmar, at(0, 1, 0)), None, "an endpoint's scope has none behind or above it");
        assert_eq!(of(&dmar, at(0, 31, 7)), None, "nobody has the rest: another segment's unit does not");
        let all = [units.to_vec(), std::vec![structure(0, 1, 0, &[0xfed9_3000], &[])]].concat();
        let mut dmar = Dmar::read(&table(&all));
        assert_eq!(of(&dmar, at(0, 31, 7)), Some(0xfed9_3000));
        assert_eq!(of(&dmar, at(1, 0, 0)), Some(0xfed9_1000), "who is named comes first");
        dmar.units[1].used = false;
        assert_eq!(of(&dmar, at(1, 0, 0)), None, "no other unit has it then");
    }

    #[test]
    fn reserved_memory_is_somebodys() {
        let functions = functions();
        let one = [ENDPOINT, 8, 0, 0, 0, 0, 31, 2];
        let numbers = [0x7000_0000, 0x7000_ffff];
        let of = |table: &[u8], address| Dmar::read(table).reserved_for(&functions, function(&functions, address));
        let good = table(&[structure(1, 0, 0, &numbers, &one)]);
        assert_eq!(of(&good, at(0, 31, 2)), Some(PhysRange::new(0x7000_0000, 0x7001_0000)));
        assert_eq!(of(&good, at(0, 31, 0)), None);
        assert_eq!(of(&table(&[structure(1, 0, 1, &numbers, &one)]), at(0, 31, 2)), None, "another segment");
        assert_eq!(of(&table(&[structure(1, 0, 0, &[0x1000, 0xfff], &one)]), at(0, 31, 2)), None, "empty");
        let nowhere = [ENDPOINT, 10, 0, 0, 0, 0, 31, 2, 0, 0];
        assert_eq!(of(&table(&[structure(1, 0, 0, &numbers, &nowhere)]), at(0, 31, 2)), None, "through no bridge");
    }

    #[test]
    fn broken_tables_end() {
        let unit = structure(0, 1, 0, &[0xfed9_0000], &[]);
        let count = |bytes: &[u8]| Dmar::read(bytes).units.len();
        assert_eq!((count(&[]), count(&[0; 48])), (0, 0));
        for length in [0, 3, 200] {
            let broken = std::vec![2, 0, length, 0];
            assert_eq!(count(&table(&[unit.clone(), broken, unit.clone()])), 1, "{length}");
        }
        assert_eq!(count(&table(&[structure(0, 0, 0, &[], &[]), unit.clone()])), 1, "one without an address");
        // A scope that is too short, or too long, ends the scopes.
        for scope in [[ENDPOINT, 0, 0, 0, 0, 0, 4, 0], [ENDPOINT, 7, 0, 0, 0, 0, 4, 0], [ENDPOINT, 9, 0, 0, 0, 0, 4, 0]]
        {
            let units = Dmar::read(&table(&[structure(0, 0, 0, &[0x1000], &scope)])).units;
            assert!(units[0].scopes.is_empty(), "{scope:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn random_tables_do_no_harm(
            parts in proptest::collection::vec((0..3u8, proptest::num::u8::ANY, proptest::collection::vec(0..64u8, 0..48)), 0..6),
        ) {
            let parts: Vec<_> = parts.into_iter().map(|(kind, length, body)| [&[kind, 0, length, 0][..], &body].concat()).collect();
            let (functions, dmar) = (functions(), Dmar::read(&table(&parts)));
            for function in &functions {
                let unit = dmar.unit_of(&functions, function);
                assert!(unit.is_none_or(|unit| dmar.units.contains(unit)));
                let memory = dmar.reserved_for(&functions, function);
                assert!(memory.is_none_or(|memory| memory.start < memory.end));
            }
        }
    }
}
