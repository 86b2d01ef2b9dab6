//! Sequences of calls that make something work: a thread with a handler, a virtual CPU with a monitor.

use alloc::vec::Vec;

use lab::hypercall::flag;
use lab::memory::PAGE;
use lab::spec::{call, event, mtd, perm, scd};
use lab::{entry, memory, spec};

use crate::cage::held;
use crate::calls::{Caller, Holds};
use crate::hostile::{self, FIRST_IMAGE, IMAGE, IMAGES, NEW_UTCB_PAGES, REPLIES, Record, place};

/// A handler for `events`, the global thread or vCPU (by `flags`) that raises them, and its scheduling context.
fn worker(caller: &mut Caller, flags: u64, numbers: &[u64], calls: &mut Vec<Record>) {
    let [local, ec, sc] = core::array::from_fn(|_| caller.holding(&[Holds::Nothing]));
    let base = caller.event_base();
    let (cpu, pd) = (caller.cpu(), held::PD);
    let mut new = |caller: &mut Caller, selector, flags| {
        let page = caller.utcb();
        calls.push(Record::call(u64::from(call::CREATE_EC), flags, selector, [pd, page | cpu, page, base]));
    };
    new(caller, local, 0);
    new(caller, ec, flags);
    for number in numbers {
        let pt = base + number;
        calls.push(Record::call(u64::from(call::CREATE_PT), 0, pt, [pd, local, hostile::portal(), 0]));
        calls.push(Record::call(u64::from(call::CTRL_PT), 0, pt, [*number, caller.mtd(), 0, 0]));
    }
    let descriptor = scd(1 + caller.random.below(2), 1 + caller.random.below(20), 0);
    calls.push(Record::call(u64::from(call::CREATE_SC), 0, sc, [pd, ec, descriptor, 0]));
}

/// Some recipe.
pub fn any(caller: &mut Caller, guests: bool, calls: &mut Vec<Record>) {
    let host = entry::hip(spec::hip::SEL_HST_ARCH) + u64::from(event::STARTUP);
    let guest = entry::hip(spec::hip::SEL_GST_ARCH) + u64::from(event::STARTUP);
    if guests && caller.random.chance(50) {
        // STARTUP, RECALL and exits: exceptions, triple fault, CPUID, HLT, calls, ports, invalid state, nested faults.
        let source = place::WINDOW >> 12;
        let map = [held::GST, source << 12, 0xf_ffff << 12 | perm::ALL, 0];
        calls.push(Record::call(u64::from(call::CTRL_PD), 0, held::HST, map));
        worker(caller, u64::from(flag::EC_GUEST), &[guest, guest + 1, 0, 2, 10, 12, 18, 30, 33, 48, 49], calls);
    } else {
        worker(caller, u64::from(flag::EC_GLOBAL), &[host, host + 1, 0xd, 0xe], calls);
    }
}

/// Control registers and EFER in a descriptor: never one without the other.
const CONTROL: u64 = (mtd::CR | mtd::EFER) as u64;
/// EFER: long mode as soon as there is paging.
const EFER_LME: u64 = 1 << 8;

/// Fills what portals reply: how many calls before, the descriptor, and an image of a UTCB.
pub fn replies(caller: &mut Caller, page: u64) {
    for index in 0..REPLIES {
        let calls = caller.random.pick(&[0, 0, 0, 1, 2]);
        // POISON would end everything too soon.
        let descriptor = if caller.random.chance(5) { caller.mtd() | 1 } else { caller.mtd() & !1 };
        let image = place::REPLIES + FIRST_IMAGE + caller.random.below(IMAGES) * IMAGE;
        // What QEMU cannot bear: see below.
        let registers = descriptor & CONTROL != 0;
        let descriptor = if registers { descriptor | CONTROL } else { descriptor };
        memory::poke(page + 16 * index, calls | descriptor << 32);
        memory::poke(page + 16 * index + 8, if registers || caller.random.chance(80) { image } else { 0 });
    }
    for image in 0..IMAGES {
        let at = page + FIRST_IMAGE + image * IMAGE;
        (0..IMAGE / 8).for_each(|word| {
            let content = if caller.random.chance(70) { 0 } else { caller.random.odd() };
            memory::poke(at + 8 * word, content);
        });
        let field = |field: spec::Field, value: u64| memory::poke(at + field.offset as u64, value);
        let utcb = place::NEW_UTCBS + caller.random.below(NEW_UTCB_PAGES) * PAGE;
        field(spec::field::RSP, utcb);
        let rip = caller.random.pick(&[hostile::worker(), hostile::worker(), hostile::spin(), 0xfff0]);
        field(spec::field::RIP, rip);
        field(spec::field::RFLAGS, caller.random.pick(&[2, 2, 0x102, 0x202, u64::MAX]));
        field(spec::field::SEL_GST, held::GST);
        field(spec::field::SEL_PIO, held::GUEST_PIO);
        field(spec::field::SEL_MSR, held::MSR);
        reset_state(caller, at);
        // A guest with LME but without PAE brings QEMU to lose the host's CR0 (docs/emulators.md); and when it refuses
        // an entry, it leaves the host's EFER in the guest's place.
        let efer = at + spec::field::EFER.offset as u64;
        memory::poke(efer, memory::peek(efer) & !EFER_LME);
    }
}

/// Most images carry the state of a processor after its reset (Intel SDM vol. 3A, table 10-1), in part.
fn reset_state(caller: &mut Caller, at: u64) {
    if caller.random.chance(30) {
        return;
    }
    let segment = |fields: [spec::Field; 4], base: u64, access: u64| {
        memory::poke(at + fields[0].offset as u64, base >> 4 & 0xffff | access << 16 | 0xffff << 32);
        memory::poke(at + fields[3].offset as u64, base);
    };
    segment(spec::field::CS, 0xffff_0000, 0x9b);
    for fields in [spec::field::SS, spec::field::DS, spec::field::ES, spec::field::FS, spec::field::GS] {
        segment(fields, 0, 0x93);
    }
    segment(spec::field::TR, 0, 0x8b);
    segment(spec::field::LDTR, 0, 0x82);
    let odd = caller.random.chance(20);
    for (field, value) in [(spec::field::CR0, 0x6000_0010), (spec::field::CR4, 0), (spec::field::DR7, 0x400)] {
        memory::poke(at + field.offset as u64, if odd { caller.random.odd() } else { value });
    }
    for field in [spec::field::EFER, spec::field::CR3, spec::field::INTERRUPTION_INFO, spec::field::INTERRUPTIBILITY] {
        memory::poke(at + (field.offset & !7) as u64, 0);
    }
    memory::poke(at + spec::field::XCR0.offset as u64, 1);
}
