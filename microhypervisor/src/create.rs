//! The creating hypercalls (NOVA 5.3). The owner's account pays for the object, the caller's for the capability.

use core::sync::atomic::Ordering;

use abi::capability::{Permissions, SELECTOR_COUNT};
use abi::hypercall::{CreatePd, flag};
use abi::scd::Scd;
use abi::utcb::gpr;
use abi::{PAGE_BITS, Status, USER_END};
use spin::Once;

use crate::cpu::Cpu;
use crate::ec::{Binding, Ec, EcKind};
use crate::guest::GuestState;
use crate::hypercall::Call;
use crate::iommu::DmaSpace;
use crate::memory::Draft;
use crate::object::{Caller, Found, Object, create, create_found};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::{self, Sc};
use crate::semaphore::Sm;
use crate::space::{GuestSpace, HostSpace, MsrSpace, ObjectSpace, PioSpace};
use crate::vcpu::{PhysPage, Processor};
use crate::{fpu, rounds, timer};

/// Creates what belongs into `room`, which only one caller can fill.
fn only<T: Object>(room: &Once<&'static T>, new: impl FnOnce() -> Found<T>) -> Result<(), Status> {
    let mut filled = false;
    room.try_call_once(|| {
        filled = true;
        new().map(|(space, _)| space)
    })?;
    if filled { Ok(()) } else { Err(Status::Aborted) }
}

/// create_pd: a protection domain or one of its spaces.
pub fn pd(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    if call.flags != CreatePd::ProtectionDomain as u8 {
        return space(ec, call);
    }
    create(ec, call.selector, |owner, own| Ok(Pd::new(own, owner.account(), false)))
}

#[inline(never)]
fn space(ec: &'static Ec, call: Call) -> Result<(), Status> {
    const OPERATIONS: [CreatePd; 6] = {
        use CreatePd::*;
        [ObjectSpace, HostSpace, GuestSpace, DmaSpace, PioSpace, MsrSpace]
    };
    let operation = *OPERATIONS.get((call.flags as usize).wrapping_sub(1)).ok_or(Status::BadPar)?;
    let (pd, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::PD)?;
    if call.selector >= SELECTOR_COUNT || !ec.selectors.find(call.selector).1.is_nothing() {
        return Err(Status::BadCap);
    }
    // Another CPU may change the capability.
    let same = |owner| if core::ptr::eq(pd, owner) { Ok(pd) } else { Err(Status::BadCap) };
    let (selector, caller) = (call.selector, Ok((ec, call.selector)));
    match operation {
        CreatePd::ObjectSpace => only(&pd.objects, || create_found(caller, |pd, _| ObjectSpace::new(same(pd)?))),
        CreatePd::HostSpace => only(&pd.host, || create_found(caller, |pd, _| HostSpace::new(same(pd)?))),
        CreatePd::PioSpace => {
            let new = |first| create_found(caller, |pd, _| PioSpace::new(same(pd)?, first));
            let result = only(&pd.pio, || new(true));
            if result == Err(Status::Aborted) { new(false).map(drop) } else { result }
        }
        CreatePd::DmaSpace => create(ec, selector, |pd, _| DmaSpace::new(pd)),
        CreatePd::MsrSpace => create(ec, selector, |pd, _| MsrSpace::new(pd)),
        _ => create(ec, selector, |pd, _| GuestSpace::new(pd)),
    }
}

/// create_ec: a local thread, a global thread or a virtual CPU.
pub fn ec(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let rdx = ec.gpr(gpr::RDX);
    let (page, number) = (rdx >> PAGE_BITS, rdx as u16 & 0xfff);
    let cpu = Cpu::by_number(number).ok_or(Status::BadCpu)?;
    // By the flags EC_GUEST and EC_GLOBAL.
    let kind = [EcKind::Local, EcKind::Guest, EcKind::Global, EcKind::Guest][call.flags as usize & 3];
    let guest = kind == EcKind::Guest;
    if guest && cpu.processor.get().is_none() {
        return Err(Status::BadFtr);
    }
    if shows_page(guest, cpu) && page >= USER_END >> PAGE_BITS {
        return Err(Status::BadPar);
    }
    let fpu = guest || call.flags & flag::EC_FPU != 0;
    host_or_guest(cpu, Ok((ec, call.selector)), kind, fpu, [page, ec.gpr(gpr::RAX), ec.gpr(8)]).map(drop)
}

/// Whether an EC's page is mapped in its host space: a UTCB, or the virtual-APIC page, which only VMX has.
fn shows_page(guest: bool, cpu: &Cpu) -> bool {
    !guest || matches!(cpu.processor.get(), Some(Processor::Vmx(_)))
}

/// Creates an EC for the caller, or at boot in a protection domain, with its pages, its UTCB or virtual-APIC page mapped
/// at the page number that comes first in `words`, before its stack pointer and the selector of its first event portal.
pub fn host_or_guest(cpu: &'static Cpu, caller: Caller, kind: EcKind, fpu: bool, words: [u64; 3]) -> Found<Ec> {
    let [page, rsp, event_base] = words;
    create_found(caller, |pd, reference| {
        let (Some(&objects), Some(&space)) = (pd.objects.get(), pd.host.get()) else { return Err(Status::Aborted) };
        if kind != EcKind::Guest && pd.pio.get().is_none() {
            return Err(Status::Aborted);
        }
        let account = pd.account();
        let utcb = account.draft(0)?;
        let fpu_state = if fpu { Some(account.draft(0)?) } else { None };
        let control = if kind == EcKind::Guest { Some(account.draft(0)?) } else { None };
        let shown = shows_page(kind == EcKind::Guest, cpu);
        let address = if shown { page << PAGE_BITS } else { 0 };
        if shown {
            let both = Permissions::READ | Permissions::WRITE;
            space.map_kernel_page(address, utcb.frame.physical(), both)?;
        }
        let guest = match (&control, cpu.processor.get()) {
            (Some(control), Some(processor)) => {
                let page = |draft: &Draft| PhysPage { pa: draft.frame.physical(), va: draft.frame.pointer() };
                let state = GuestState::new(processor, [page(control), page(&utcb)], space.root(), rsp);
                Some(account.place(state).ok_or_else(|| {
                    space.unmap_kernel_page(address, utcb.frame.physical());
                    Status::MemObj
                })?)
            }
            _ => None,
        };
        // Nothing fails any more.
        control.map(Draft::keep);
        let fpu_state = fpu_state.map(Draft::keep);
        fpu_state.inspect(|area| fpu::reset_area(area.pointer()));
        let (utcb, utcb_address) = (utcb.keep(), address);
        let binding =
            Binding { reference, kind, cpu, pd, objects, space, utcb, utcb_address, event_base, fpu_state, guest };
        Ok(Ec::new(binding, rsp))
    })
}

/// create_sc: gives an EC time.
pub fn sc(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (target, target_reference) = ec.selectors.get::<Ec>(ec.gpr(gpr::RDX), Permissions::BIND_SC)?;
    let scd = Scd::from_raw(ec.gpr(gpr::RAX)).filter(|scd| scd.cos == 0).ok_or(Status::BadPar)?;
    if target.kind == EcKind::Local {
        return Err(Status::BadCap);
    }
    if target.bound.compare_exchange(0, u32::MAX, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return Err(Status::Aborted);
    }
    let ticks = timer::frequency() / 1000;
    let result = create_found(Ok((ec, call.selector)), |_, _| {
        target_reference.retain()?;
        Ok(Sc::new(target_reference, target.cpu, scd, ticks))
    });
    target.bound.store(result.map_or(0, |(_, reference)| reference.index().saturating_add(1)), Ordering::Relaxed);
    let (sc, _) = result?;
    if core::ptr::eq(target.cpu, cpu) {
        sched::begin(cpu, sc);
    } else {
        rounds::post_sc(sc, rounds::mail::START);
    }
    Ok(())
}

/// create_pt: an entry into an EC.
pub fn pt(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    create(ec, call.selector, |_, _| {
        let (target, target_reference) = ec.selectors.get::<Ec>(ec.gpr(gpr::RDX), Permissions::BIND_PT)?;
        if target.kind != EcKind::Local {
            return Err(Status::BadCap);
        }
        target_reference.retain()?;
        Ok(Pt::new(target_reference, ec.gpr(gpr::RAX)))
    })
}

/// create_sm: a semaphore.
pub fn sm(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    create(ec, call.selector, |_, _| Ok(Sm::new(ec.gpr(gpr::RDX), None)))
}
