use super::*;
use crate::decode;
use crate::memory::VecMemory;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

const DEVICE: u64 = 0xfee0_0000;

#[derive(Default)]
struct Log {
    value: u64,
    writes: Vec<(u64, Width, u64)>,
}

impl Devices for Log {
    fn read(&mut self, _gpa: u64, width: Width) -> u64 {
        self.value & width.ones()
    }
    fn write(&mut self, gpa: u64, width: Width, value: u64) {
        self.writes.push((gpa, width, value));
    }
}

/// 64-bit mode with paging off, which no CPU has, so that linear addresses are physical ones.
fn state() -> Architectural {
    let mut state = Architectural::default();
    state.cs.access = 0xa9b;
    state.efer = crate::walk::efer::LMA;
    state.rip = 0x1000;
    state.rflags = 2;
    state.gpr[gpr::RBX] = DEVICE;
    state
}

fn run(code: &[u8], state: &mut Architectural, log: &mut Log) -> Result<VecMemory, Failure> {
    let memory = VecMemory::new(0x10000);
    memory.write(0x1000, code).unwrap();
    let instruction = decode::instruction(state, &memory).map_err(|_| Failure::Unsupported)?;
    Emulator::new(state, &memory, log).run(&instruction)?;
    Ok(memory)
}

#[test]
fn moves() {
    let (mut s, mut log) = (state(), Log { value: 0x8899_aabb_ccdd_eeff, writes: vec![] });
    run(&[0x8b, 0x43, 0x20], &mut s, &mut log).unwrap(); // mov eax, [rbx+0x20]
    assert_eq!((s.gpr[0], s.rip), (0xccdd_eeff, 0x1003));
    s.rip = 0x1000;
    run(&[0x48, 0x0f, 0xb6, 0x0b], &mut s, &mut log).unwrap(); // movzx rcx, byte [rbx]
    assert_eq!(s.gpr[1], 0xff);
    s.rip = 0x1000;
    run(&[0x0f, 0xbf, 0x13], &mut s, &mut log).unwrap(); // movsx edx, word [rbx]
    assert_eq!(s.gpr[2], 0xffff_eeff);
    s.rip = 0x1000;
    run(&[0xc7, 0x83, 0xb0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], &mut s, &mut log).unwrap(); // mov [rbx+0xb0], -1
    s.rip = 0x1000;
    run(&[0x88, 0x23], &mut s, &mut log).unwrap(); // mov [rbx], ah
    assert_eq!(log.writes, [(DEVICE + 0xb0, Width::Dword, 0xffff_ffff), (DEVICE, Width::Byte, 0xee)]);
}

#[test]
fn read_modify_write_and_flags() {
    let (mut s, mut log) = (state(), Log { value: 0x0f, writes: vec![] });
    run(&[0x83, 0x0b, 0xf0], &mut s, &mut log).unwrap(); // or dword [rbx], -16
    assert_eq!(log.writes, [(DEVICE, Width::Dword, 0xffff_ffff)]);
    assert_eq!(s.rflags & ARITHMETIC, SF | PF);
    s.rip = 0x1000;
    run(&[0x80, 0x3b, 0x0f], &mut s, &mut log).unwrap(); // cmp byte [rbx], 15
    assert_eq!(s.rflags & ARITHMETIC, ZF | PF);
    s.rip = 0x1000;
    run(&[0x80, 0x3b, 0x10], &mut s, &mut log).unwrap(); // cmp byte [rbx], 16
    assert_eq!(s.rflags & ARITHMETIC, CF | SF | PF);
    s.rip = 0x1000;
    run(&[0x0f, 0xba, 0x2b, 0x07], &mut s, &mut log).unwrap(); // bts dword [rbx], 7
    assert_eq!((log.writes[1].2, s.rflags & CF), (0x8f, 0));
    s.rip = 0x1000;
    s.gpr[0] = 0x55;
    run(&[0x87, 0x03], &mut s, &mut log).unwrap(); // xchg [rbx], eax
    assert_eq!((log.writes[2].2, s.gpr[0]), (0x55, 0x0f));
}

#[test]
fn strings() {
    let (mut s, mut log) = (state(), Log { value: 0x4142, writes: vec![] });
    (s.gpr[gpr::RDI], s.gpr[gpr::RCX], s.gpr[gpr::RAX]) = (DEVICE, 3, 0x7777);
    run(&[0xf3, 0x66, 0xab], &mut s, &mut log).unwrap(); // rep stosw
    assert_eq!(log.writes.len(), 3);
    assert_eq!((s.gpr[gpr::RCX], s.gpr[gpr::RDI], s.rip), (0, DEVICE + 6, 0x1003));
    s.rip = 0x1000;
    (s.gpr[gpr::RSI], s.gpr[gpr::RDI], s.gpr[gpr::RCX]) = (DEVICE, 0x2000, 2000);
    let memory = run(&[0xf3, 0xa4], &mut s, &mut log).unwrap(); // rep movsb, interrupted
    assert_eq!((s.gpr[gpr::RCX], s.rip), (2000 - REPEAT_MAX, 0x1000));
    assert_eq!(memory.read_u32(0x2000), Ok(0x4242_4242));
    s.gpr[gpr::RSI] = DEVICE;
    run(&[0xad], &mut s, &mut log).unwrap(); // lodsd
    assert_eq!(s.gpr[0], 0x4142);
}

#[test]
fn what_is_not_in_the_set_is_refused() {
    let (mut s, mut log) = (state(), Log::default());
    assert_eq!(run(&[0x0f, 0x10, 0x03], &mut s, &mut log).err(), Some(Failure::Unsupported)); // movups xmm0, [rbx]
    assert_eq!(run(&[0xff, 0x13], &mut s, &mut log).err(), Some(Failure::Unsupported)); // call [rbx]
    assert_eq!(s, state());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(code in prop::collection::vec(any::<u8>(), 15), registers: [u64; 16]) {
        let mut s = state();
        s.gpr = registers;
        let _ = run(&code, &mut s, &mut Log::default());
    }

    #[test]
    fn flags_are_those_of_the_processor(a: u8, b: u8, carry: bool) {
        let mut s = state();
        s.rflags |= carry as u64;
        s.gpr[0] = b as u64;
        let mut log = Log { value: a as u64, writes: vec![] };
        run(&[0x10, 0x03], &mut s, &mut log).unwrap(); // adc [rbx], al
        let wide = a as u16 + b as u16 + carry as u16;
        let signed = a as i8 as i16 + b as i8 as i16 + carry as i16;
        prop_assert_eq!(log.writes[0].2, wide as u8 as u64);
        prop_assert_eq!(s.rflags & CF != 0, wide > 255);
        prop_assert_eq!(s.rflags & OF != 0, !(-128..128).contains(&signed));
        prop_assert_eq!(s.rflags & AF != 0, (a & 15) + (b & 15) + carry as u8 > 15);
        let mut s = state();
        s.gpr[0] = b as u64;
        let mut log = Log { value: a as u64, writes: vec![] };
        run(&[0x28, 0x03], &mut s, &mut log).unwrap(); // sub [rbx], al
        prop_assert_eq!(log.writes[0].2, a.wrapping_sub(b) as u64);
        prop_assert_eq!(s.rflags & CF != 0, a < b);
        prop_assert_eq!(s.rflags & OF != 0, !(-128..128).contains(&(a as i8 as i16 - b as i8 as i16)));
        prop_assert_eq!(s.rflags & ZF != 0, a == b);
    }
}
