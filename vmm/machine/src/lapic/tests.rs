extern crate std;

use super::*;
use crate::backplane::Backplane;
use crate::bus::Width;
use proptest::prelude::*;
use std::vec::Vec;

const CRYSTAL: CrystalClock = CrystalClock::new(1_000_000_000);
const X2APIC: u64 = BASE_DEFAULT | BASE_ENABLE | BASE_X2APIC | BASE_BOOTSTRAP;

fn lapic() -> Lapic {
    let mut lapic = Lapic::new(0, true, CRYSTAL);
    write(&mut lapic, SVR, SVR_ENABLE | 0xff);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, true, CRYSTAL);
    lapic.set_base(X2APIC).unwrap();
    lapic.write_msr(SVR, 0x1ff, 0).map(drop).unwrap();
    lapic
}

fn write(lapic: &mut Lapic, register: u32, value: u32) {
    assert_eq!(lapic.write_memory(register << 4, Width::Dword, value.into(), 0), Outcome::Done);
}

fn read(lapic: &mut Lapic, register: u32) -> u32 {
    lapic.read_memory(register << 4, Width::Dword, 0) as u32
}

fn fixed(vector: u8, level: bool) -> Message {
    Message { destination: Destination::Physical(0), delivery: Delivery::Fixed, vector, level }
}

/// A message comes, whomever it addresses.
fn deliver(lapic: &mut Lapic, message: &Message) {
    let backplane = Backplane::new(1);
    backplane.publish(0, lapic.route());
    let _ = backplane.send(&Message { destination: Destination::All, ..*message }, None);
    if let Some(mail) = backplane.collect(0) {
        lapic.take(&mail);
    }
}

#[test]
fn power_on_values() {
    let mut lapic = Lapic::new(3, false, CRYSTAL);
    assert_eq!(lapic.base(), 0xfee0_0800);
    assert_eq!(lapic.offset_of(0xfee0_00b0), Some(0xb0));
    assert_eq!(lapic.offset_of(0xfee0_1000), None);
    let values = [ID, VERSION, DFR, SVR, LVT_TIMER, LVT_LINT0, ICR].map(|register| read(&mut lapic, register));
    assert_eq!(values, [3 << 24, 0x0105_0014, u32::MAX, 0xff, 0x1_0000, 0x1_0000, 0]);
    // Software-disabled: entries stay masked and interrupts are refused.
    write(&mut lapic, LVT_TIMER, 0x40);
    assert_eq!(read(&mut lapic, LVT_TIMER), 0x1_0040);
    deliver(&mut lapic, &fixed(0x40, false));
    assert_eq!(lapic.pending(), None);
    lapic.set_virtual_wire();
    assert!(lapic.passes_external());
}

#[test]
fn priorities() {
    let mut lapic = lapic();
    for vector in [0x31, 0x45, 0x43] {
        deliver(&mut lapic, &fixed(vector, false));
    }
    assert_eq!(lapic.acknowledge(), Some(0x45));
    assert_eq!(read(&mut lapic, PPR), 0x40);
    assert_eq!(lapic.pending(), None);
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x43));
    write(&mut lapic, EOI, 0);
    lapic.set_cr8(3);
    assert_eq!((read(&mut lapic, TPR), lapic.cr8(), lapic.pending()), (0x30, 3, None));
    write(&mut lapic, TPR, 0x2f);
    assert_eq!(read(&mut lapic, IRR + 1), 1 << 0x11);
    assert_eq!(lapic.acknowledge(), Some(0x31));
    assert_eq!((read(&mut lapic, ISR + 1), read(&mut lapic, IRR + 1)), (1 << 0x11, 0));
}

#[test]
fn ends_of_level_interrupts_leave() {
    let mut lapic = lapic();
    deliver(&mut lapic, &fixed(0x29, true));
    assert_eq!(read(&mut lapic, TMR + 1), 1 << 9);
    assert_eq!(lapic.acknowledge(), Some(0x29));
    assert_eq!(lapic.write_memory(EOI << 4, Width::Dword, 0, 0), Outcome::EndOfInterrupt(0x29));
    deliver(&mut lapic, &fixed(0x29, false));
    assert_eq!(lapic.acknowledge(), Some(0x29));
    write(&mut lapic, EOI, 0);
    write(&mut lapic, EOI, 0);
    write(&mut lapic, SVR, SVR_ENABLE | SVR_SUPPRESS_BROADCAST | 0xff);
    deliver(&mut lapic, &fixed(0x29, true));
    assert_eq!(lapic.acknowledge(), Some(0x29));
    write(&mut lapic, EOI, 0);
}

#[test]
fn the_timer_in_each_mode() {
    let mut lapic = lapic();
    write(&mut lapic, DIVIDE, 0xb);
    write(&mut lapic, LVT_TIMER, 0xec);
    write(&mut lapic, INITIAL_COUNT, 1000);
    assert_eq!(lapic.next_deadline(), Some(1000));
    assert_eq!(lapic.read_memory(CURRENT_COUNT << 4, Width::Dword, 400), 600);
    lapic.advance(1000);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.next_deadline(), None);
    write(&mut lapic, EOI, 0);
    write(&mut lapic, LVT_TIMER, 1 << 17 | 0xec);
    write(&mut lapic, INITIAL_COUNT, 1_000_000);
    lapic.advance(5_500_000);
    assert_eq!((lapic.acknowledge(), lapic.acknowledge()), (Some(0xec), None));
    write(&mut lapic, EOI, 0);
    assert_eq!(lapic.next_deadline(), Some(6_000_000));
    // What fell due while masked is not made up for.
    write(&mut lapic, LVT_TIMER, 1 << 17 | LVT_MASKED | 0xec);
    assert_eq!(lapic.next_deadline(), None);
    assert_eq!(lapic.write_memory(LVT_TIMER << 4, Width::Dword, 1 << 17 | 0xec, 6_500_000), Outcome::Done);
    assert_eq!((lapic.pending(), lapic.next_deadline()), (None, Some(7_000_000)));
    // Deadline mode disarms the count; a deadline in the past fires at once.
    write(&mut lapic, LVT_TIMER, 1 << 18 | 0xec);
    assert_eq!(lapic.next_deadline(), None);
    lapic.set_tsc_deadline(9000, 8000);
    assert_eq!((lapic.next_deadline(), lapic.tsc_deadline(8999)), (Some(9000), 9000));
    assert_eq!((lapic.tsc_deadline(9000), lapic.acknowledge()), (0, Some(0xec)));
    write(&mut lapic, EOI, 0);
    lapic.set_tsc_deadline(9000, 9001);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    lapic.set_tsc_deadline(10_000, 9001);
    lapic.set_tsc_deadline(0, 9001);
    assert_eq!(lapic.next_deadline(), None);
}

#[test]
fn interprocessor_interrupts() {
    let mut lapic = lapic();
    let mut send = |high: u32, low: u32| {
        write(&mut lapic, ICR_HIGH, high);
        lapic.write_memory(ICR << 4, Width::Dword, low.into(), 0)
    };
    let message =
        |destination, delivery, vector| Outcome::Send(Message { destination, delivery, vector, level: false });
    assert_eq!(send(2 << 24, 0x40f0), message(Destination::Physical(2), Delivery::Fixed, 0xf0));
    assert_eq!(send(0xff << 24, 0x4500), message(Destination::All, Delivery::Init, 0));
    assert_eq!(send(1 << 24, 0x8500), Outcome::Done);
    assert_eq!(send(1 << 24, 0x4699), message(Destination::Physical(1), Delivery::Startup, 0x99));
    assert_eq!(send(5 << 24, 0x48f0), message(Destination::Logical(5), Delivery::Fixed, 0xf0));
    assert_eq!(send(0, 0x4_00f0), message(Destination::Own, Delivery::Fixed, 0xf0));
    assert_eq!(send(0, 0x8_00f0), message(Destination::All, Delivery::Fixed, 0xf0));
    assert_eq!(send(0, 0xc_0400), message(Destination::Others, Delivery::Nmi, 0));
    assert_eq!(send(0, 0x4_000f), Outcome::Done);
    write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), ESR_SEND_ILLEGAL_VECTOR);
    write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), 0);
    assert_eq!(read(&mut lapic, ICR), 0x4_000f);
}

#[test]
fn signals() {
    let mut lapic = lapic();
    for (delivery, vector) in [(Delivery::Nmi, 2), (Delivery::Init, 0), (Delivery::Startup, 0x9a), (Delivery::Smi, 0)] {
        deliver(&mut lapic, &Message { delivery, ..fixed(vector, false) });
    }
    assert_eq!(lapic.signals(), Signals { nmi: true, init: true, startup: Some(0x9a) });
    assert!(lapic.take_nmi() && !lapic.take_nmi());
    assert_eq!((lapic.take_startup(), lapic.take_startup()), (Some(0x9a), None));
    write(&mut lapic, LVT_LINT1, 0x400);
    lapic.raise_lint1();
    assert!(lapic.take_nmi());
    write(&mut lapic, LVT_LINT0, 0x55);
    lapic.raise_lint0();
    assert_eq!(lapic.pending(), Some(0x55));
}

#[test]
fn errors_interrupt() {
    let mut lapic = lapic();
    write(&mut lapic, LVT_ERROR, 0xfe);
    deliver(&mut lapic, &fixed(7, false));
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert_eq!(read(&mut lapic, 0x3d), 0);
    assert_eq!(read(&mut lapic, ESR), 0);
    write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), ESR_RECEIVE_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER);
    // An illegal vector in the error entry does not recurse.
    write(&mut lapic, LVT_ERROR, 3);
    deliver(&mut lapic, &fixed(7, false));
}

#[test]
fn narrow_and_odd_accesses() {
    let mut lapic = lapic();
    assert_eq!(lapic.read_memory(0x32, Width::Byte, 0), 5);
    assert_eq!(lapic.read_memory(0x34, Width::Dword, 0), 0);
    assert_eq!(lapic.write_memory(0x80, Width::Byte, 0x20, 0), Outcome::Done);
    assert_eq!(lapic.write_memory(0x84, Width::Dword, 0x20, 0), Outcome::Done);
    assert_eq!(read(&mut lapic, TPR), 0);
}

#[test]
fn base_transitions() {
    let mut lapic = lapic();
    assert_eq!(lapic.set_base(BASE_DEFAULT | BASE_X2APIC), Err(GeneralProtection));
    assert_eq!(lapic.set_base(1 << 52 | BASE_ENABLE), Err(GeneralProtection));
    assert_eq!(lapic.set_base(BASE_DEFAULT | BASE_ENABLE | 1), Err(GeneralProtection));
    assert_eq!(lapic.set_base(0xfed0_0000 | BASE_ENABLE), Ok(()));
    assert_eq!((lapic.base(), lapic.offset_of(0xfed0_0020)), (0xfed0_0900, Some(0x20)));
    assert_eq!(lapic.set_base(X2APIC), Ok(()));
    assert_eq!((lapic.mode(), lapic.offset_of(0xfee0_0000)), (ApicMode::X2apic, None));
    assert_eq!(lapic.set_base(BASE_DEFAULT | BASE_ENABLE), Err(GeneralProtection));
    assert_eq!(lapic.set_base(BASE_DEFAULT), Ok(()));
    assert!(lapic.mode() == ApicMode::Disabled && lapic.passes_external());
    assert_eq!(lapic.set_base(X2APIC), Err(GeneralProtection));
    assert_eq!(lapic.set_base(BASE_DEFAULT | BASE_ENABLE), Ok(()));
    lapic.reset();
    assert_eq!(lapic.base(), BASE_DEFAULT | BASE_ENABLE | BASE_BOOTSTRAP);
}

#[test]
fn x2apic_registers() {
    let mut lapic = x2apic(0);
    for register in [EOI, DFR, ICR_HIGH, SELF_IPI, 0x2f, 0x3d] {
        assert_eq!(lapic.read_msr(register, 0), Err(GeneralProtection), "{register:#x}");
    }
    for (register, value) in
        [(ID, 0), (LDR, 0), (DFR, 0), (ICR_HIGH, 0), (EOI, 1), (ESR, 1), (TPR, 0x100), (VERSION, 0)]
    {
        assert_eq!(lapic.write_msr(register, value, 0), Err(GeneralProtection), "{register:#x}");
    }
    assert_eq!(lapic.write_msr(LVT_TIMER, 1 << 18 | 0xec, 0), Ok(Outcome::Done));
    assert_eq!(lapic.read_msr(LVT_TIMER, 0), Ok(0x4_00ec));
    assert_eq!(lapic.write_msr(SELF_IPI, 0xf6, 0), Ok(Outcome::Done));
    assert_eq!(lapic.acknowledge(), Some(0xf6));
    assert_eq!(lapic.write_msr(EOI, 0, 0), Ok(Outcome::Done));
    let expected = Message { destination: Destination::Physical(7), ..fixed(0xfd, false) };
    assert_eq!(lapic.write_msr(ICR, 7 << 32 | 0xfd, 0), Ok(Outcome::Send(expected)));
    assert_eq!(lapic.read_msr(ICR, 0), Ok(7 << 32 | 0xfd));
    assert_eq!(lapic.write_msr(ICR, 1 << 20, 0), Err(GeneralProtection));
    // In xAPIC mode there are no such MSRs.
    let mut lapic = Lapic::new(0, true, CRYSTAL);
    assert_eq!(lapic.read_msr(ID, 0), Err(GeneralProtection));
    assert_eq!(lapic.write_msr(EOI, 0, 0), Err(GeneralProtection));
}

/// What the manual's text says about priorities, without bit tricks.
#[derive(Default)]
struct Model {
    requested: Vec<u8>,
    in_service: Vec<u8>,
    tpr: u8,
}

impl Model {
    fn pending(&self) -> Option<u8> {
        let class = self.in_service.iter().map(|vector| vector / 16).max().unwrap_or(0).max(self.tpr / 16);
        self.requested.iter().copied().max().filter(|vector| vector / 16 > class)
    }
}

proptest! {
    #[test]
    fn priorities_follow_the_manual(ops in prop::collection::vec((0u8..4, 16u8..=255), 0..300)) {
        let mut lapic = lapic();
        let mut model = Model::default();
        for (op, value) in ops {
            match op {
                0 => {
                    deliver(&mut lapic, &fixed(value, false));
                    model.requested.retain(|&vector| vector != value);
                    model.requested.push(value);
                }
                1 => {
                    let vector = lapic.acknowledge();
                    prop_assert_eq!(vector, model.pending());
                    if let Some(vector) = vector {
                        model.requested.retain(|&other| other != vector);
                        model.in_service.push(vector);
                    }
                }
                2 => {
                    write(&mut lapic, EOI, 0);
                    let highest = model.in_service.iter().copied().max();
                    model.in_service.retain(|&vector| Some(vector) != highest);
                }
                _ => {
                    write(&mut lapic, TPR, value.into());
                    model.tpr = value;
                }
            }
            prop_assert_eq!(lapic.pending(), model.pending());
        }
    }
}
