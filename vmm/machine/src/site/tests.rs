use super::*;
use crate::decode;
use crate::emulate::{Devices, Emulator};
use crate::memory::VecMemory;
use abi::utcb::gpr;
use alloc::vec::Vec;
use proptest::prelude::*;

const TABLES: u64 = 0x8000;
const CODE: u64 = 0x1000;

/// A device that remembers what was done to it.
#[derive(Default, PartialEq, Debug)]
struct Log(Vec<(u64, Width, Option<u64>)>);

const VALUE: u64 = 0x8899_aabb_ccdd_eeff;

impl Devices for Log {
    fn read(&mut self, gpa: u64, width: Width) -> u64 {
        self.0.push((gpa, width, None));
        VALUE & width.ones()
    }
    fn write(&mut self, gpa: u64, width: Width, value: u64) {
        self.0.push((gpa, width, Some(value)));
    }
}

/// Long mode; the first gigabyte of linear memory is physical memory, and so is everything from 3 GiB on.
fn machine() -> (Architectural, VecMemory) {
    let memory = VecMemory::new(0x10000);
    let put = |at: u64, entry: u64| memory.write(at, &entry.to_le_bytes()).unwrap();
    put(TABLES, TABLES + 0x1003);
    put(TABLES + 0x1000, 0x83);
    put(TABLES + 0x1018, 0xc000_0083);
    let mut state = Architectural { cr0: 1 << 31 | 1, cr3: TABLES, cr4: 1 << 5, ..Architectural::default() };
    (state.cs.access, state.efer, state.rip, state.rflags) = (0xa9b, 1 << 10, CODE, 2);
    (state, memory)
}

fn keep(sites: &mut Sites, code: &[u8], state: &Architectural, memory: &VecMemory) {
    memory.write(state.rip, code).unwrap();
    sites.keep(&decode::instruction(state, memory).unwrap(), state, memory);
}

#[test]
fn an_instruction_is_found_again_until_it_changes() {
    let (mut state, memory) = machine();
    let mut sites = Sites::default();
    assert_eq!(sites.find(&state, &memory), None);
    keep(&mut sites, &[0x8b, 0x43, 0x20], &state, &memory); // mov eax, [rbx + 0x20]
    let found = *sites.find(&state, &memory).expect("it was kept");
    assert_eq!((found.width, found.write), (Width::Dword, false));
    // What stands behind it does not matter, each of its own bytes does.
    memory.write(CODE + 3, &[0xcc]).unwrap();
    assert_eq!(sites.find(&state, &memory), Some(&found));
    for (at, byte) in [(0, 0x89), (1, 0x4b), (2, 0x21)] {
        let mut before = [0];
        memory.read(CODE + at, &mut before).unwrap();
        memory.write(CODE + at, &[byte]).unwrap();
        assert_eq!(sites.find(&state, &memory), None, "byte {at}");
        memory.write(CODE + at, &before).unwrap();
    }
    assert_eq!(sites.find(&state, &memory), Some(&found));
    // The same address in other tables, or without any.
    memory.write(TABLES + 0x1000, &0x4000_0083u64.to_le_bytes()).unwrap();
    assert_eq!(sites.find(&state, &memory), None);
    memory.write(TABLES + 0x1000, &0x83u64.to_le_bytes()).unwrap();
    state.efer = 0;
    assert_eq!(sites.find(&state, &memory), None);
    // Another instruction in the same place of the table.
    state.efer = 1 << 10;
    state.rip = (CODE + 1..0x2000).find(|&rip| Sites::slot(rip) == Sites::slot(CODE)).unwrap();
    assert_eq!(sites.find(&state, &memory), None);
}

#[test]
fn long_instructions_are_compared_to_their_end() {
    let (state, memory) = machine();
    let mut sites = Sites::default();
    let code = [0xc7, 0x83, 0xb0, 0, 0, 0, 1, 2, 3, 4]; // mov dword [rbx + 0xb0], 0x04030201
    keep(&mut sites, &code, &state, &memory);
    assert_eq!(sites.find(&state, &memory).map(|found| found.source(&state)), Some(0x0403_0201));
    memory.write(CODE + 9, &[5]).unwrap();
    assert_eq!(sites.find(&state, &memory), None);
}

#[test]
fn what_is_no_plain_move_is_not_kept() {
    let (mut state, memory) = machine();
    let mut sites = Sites::default();
    // or [rbx], eax; xchg; stosd; mov eax, fs:[rbx]; mov eax, [ebx]; push [rbx]
    let others: [&[u8]; 6] = [&[0x09, 3], &[0x87, 3], &[0xab], &[0x64, 0x8b, 3], &[0x67, 0x8b, 3], &[0xff, 0x33]];
    for code in others {
        keep(&mut sites, code, &state, &memory);
        assert_eq!(sites.find(&state, &memory), None, "{code:x?}");
    }
    // Nor one that reaches into the next page.
    state.rip = 0x1ff8;
    keep(&mut sites, &[0x8b, 3], &state, &memory);
    assert_eq!(sites.find(&state, &memory), None);
}

#[test]
fn an_access_is_its_own() {
    let (mut state, memory) = machine();
    let mut sites = Sites::default();
    state.gpr[gpr::RBX] = 0xfee0_0ffe;
    keep(&mut sites, &[0x8b, 3], &state, &memory);
    let found = *sites.find(&state, &memory).unwrap();
    // The second page of an access that crosses; the first one; another place.
    assert!(!found.touches(&state, 0xfee0_1000) && !found.touches(&state, 0xfee0_0ffe));
    state.gpr[gpr::RBX] = 0xfee0_0030;
    assert!(found.touches(&state, 0xfee0_0030) && !found.touches(&state, 0xfee0_0034));
}

const PREFIXES: &[&[u8]] = &[&[], &[0x66], &[0x48], &[0x44], &[0x4f], &[0x66, 0x41]];
const OPCODES: &[&[u8]] = &[
    &[0x8b],
    &[0x89],
    &[0x88],
    &[0x8a],
    &[0xc6],
    &[0xc7],
    &[0x63],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xbe],
    &[0x0f, 0xbf],
    &[0x0f, 0xc3],
    &[0xa1],
    &[0xa3],
];

proptest! {
    /// A kept instruction does what the emulator does.
    #[test]
    fn as_emulated(
        prefix in prop::sample::select(PREFIXES),
        opcode in prop::sample::select(OPCODES),
        rest: [u8; 12],
        registers: [u32; 16],
    ) {
        let (mut state, memory) = machine();
        for (register, value) in state.gpr.iter_mut().zip(registers) {
            *register = 0xc000_0000 | u64::from(value);
        }
        memory.write(CODE, &[prefix, opcode, &rest].concat()).unwrap();
        let Ok(instruction) = decode::instruction(&state, &memory) else { return Ok(()) };
        let mut sites = Sites::default();
        sites.keep(&instruction, &state, &memory);
        let Some(found) = sites.find(&state, &memory) else { return Ok(()) };
        let (mut emulated, mut log) = (state, Log::default());
        let linear = found.address(&state);
        if Emulator::new(&mut emulated, &memory, &mut log).run(&instruction).is_err() || log.0.is_empty() {
            return Ok(());
        }
        let gpa = linear;
        prop_assert!(log.0.len() > 1 || found.touches(&state, gpa));
        if !found.touches(&state, gpa) {
            return Ok(());
        }
        let mut own = Log::default();
        state.rip = match found.write {
            true => {
                own.write(gpa, found.width, found.source(&state));
                found.next(&state)
            }
            false => {
                let next = found.next(&state);
                found.complete(&mut state, own.read(gpa, found.width));
                next
            }
        };
        prop_assert_eq!(own, log);
        prop_assert_eq!(state, emulated);
    }
}
