//! The creating hypercalls (NOVA 5.3). The owner's account pays for the object, the caller's for the capability.

use core::sync::atomic::Ordering;

use abi::capability::Permissions;
use abi::hypercall::{CreatePd, flag};
use abi::scd::Scd;
use abi::utcb::gpr;
use abi::{PAGE_BITS, Status, USER_END};
use spin::Once;

use crate::cpu::Cpu;
use crate::ec::{Binding, Ec, EcKind};
use crate::guest::GuestState;
use crate::hypercall::Call;
use crate::memory::Draft;
use crate::object::{self, Found, Object, Ref};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::{self, Sc};
use crate::semaphore::Sm;
use crate::space::{GuestSpace, HostSpace, MsrSpace, ObjectSpace, PioSpace, Place};
use crate::vcpu::{PhysPage, Processor};
use crate::{fpu, iommu, rounds, timer};

/// Creates an object, and its capability at `place`.
fn install<T: Object>(
    place: &Place,
    owner: &Pd,
    permissions: Permissions,
    build: impl FnOnce(Ref<T>) -> Result<T, Status>,
) -> Found<T> {
    let created = object::create(Some(owner), owner.account(), build)?;
    place.fill(created.1.capability(permissions));
    Ok(created)
}

/// Creates what belongs into `room`, which only one caller can fill.
fn only<T: Object>(room: &Once<&'static T>, create: impl FnOnce() -> Found<T>) -> Result<(), Status> {
    let mut filled = false;
    room.try_call_once(|| {
        filled = true;
        create().map(|(space, _)| space)
    })?;
    if filled { Ok(()) } else { Err(Status::Aborted) }
}

/// create_pd: a protection domain or one of its spaces.
pub fn pd(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    const OPERATIONS: [CreatePd; 7] = {
        use CreatePd::*;
        [ProtectionDomain, ObjectSpace, HostSpace, GuestSpace, DmaSpace, PioSpace, MsrSpace]
    };
    const MEMORY: Permissions = Permissions::GRANT.union(Permissions::TAKE);
    const REGISTERS: Permissions = MEMORY.union(Permissions::ASSIGN);
    let operation = *OPERATIONS.get(call.flags as usize).ok_or(Status::BadPar)?;
    let owner = ec.selectors.find(ec.gpr(gpr::RSI));
    let (pd, _) = object::resolve::<Pd>(owner, Permissions::PD)?;
    let place = ec.objects.reserve(call.selector)?;
    let account = pd.account();
    let guest = Permissions::GRANT | Permissions::ASSIGN;
    match operation {
        CreatePd::ProtectionDomain => {
            install(&place, pd, owner.0.permissions(), |own| Ok(Pd::new(own, account, false))).map(drop)
        }
        CreatePd::ObjectSpace => only(&pd.objects, || install(&place, pd, MEMORY, |_| ObjectSpace::new(pd))),
        CreatePd::HostSpace => only(&pd.host, || install(&place, pd, MEMORY, |_| HostSpace::new(pd))),
        CreatePd::GuestSpace => install(&place, pd, guest, |_| GuestSpace::new(pd)).map(drop),
        CreatePd::DmaSpace => iommu::create(Some(pd), pd).map(|(_, space)| place.fill(space.capability(guest))),
        CreatePd::PioSpace => {
            let create = |first| install(&place, pd, REGISTERS, |_| PioSpace::new(pd, first));
            let result = only(&pd.pio, || create(true));
            if result == Err(Status::Aborted) { create(false).map(drop) } else { result }
        }
        CreatePd::MsrSpace => install(&place, pd, REGISTERS, |_| MsrSpace::new(pd)).map(drop),
    }
}

/// create_ec: a local thread, a global thread or a virtual CPU.
pub fn ec(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (pd, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::EC)?;
    let place = ec.objects.reserve(call.selector)?;
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
    if !guest && pd.pio.get().is_none() {
        return Err(Status::Aborted);
    }
    let fpu = guest || call.flags & flag::EC_FPU != 0;
    let (_, reference) = host_or_guest(cpu, pd, kind, fpu, [page, ec.gpr(gpr::RAX), ec.gpr(8)])?;
    let permissions = Permissions::CTRL | Permissions::BIND_PT | Permissions::BIND_SC;
    place.fill(reference.capability(permissions));
    Ok(())
}

/// Whether an EC's page is mapped in its host space: a UTCB, or the virtual-APIC page, which only VMX has.
fn shows_page(guest: bool, cpu: &Cpu) -> bool {
    !guest || matches!(cpu.processor.get(), Some(Processor::Vmx(_)))
}

/// Creates an EC in `pd` with its pages, its UTCB or virtual-APIC page mapped at the page number that
/// comes first in `words`, before its stack pointer and the selector of its first event portal.
pub fn host_or_guest(cpu: &'static Cpu, pd: &'static Pd, kind: EcKind, fpu: bool, words: [u64; 3]) -> Found<Ec> {
    let [page, rsp, event_base] = words;
    let (Some(&objects), Some(&space)) = (pd.objects.get(), pd.host.get()) else { return Err(Status::Aborted) };
    let account = pd.account();
    object::create(Some(pd), account, |reference| {
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
    let (pd, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::SC)?;
    let place = ec.objects.reserve(call.selector)?;
    let (target, target_reference) = ec.selectors.get::<Ec>(ec.gpr(gpr::RDX), Permissions::BIND_SC)?;
    let scd = Scd::from_raw(ec.gpr(gpr::RAX)).filter(|scd| scd.cos == 0).ok_or(Status::BadPar)?;
    if target.kind == EcKind::Local {
        return Err(Status::BadCap);
    }
    if target.bound.compare_exchange(0, u32::MAX, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return Err(Status::Aborted);
    }
    let ticks = timer::frequency() / 1000;
    let result = install(&place, pd, Permissions::CTRL, |_| {
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
    let (pd, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::PT)?;
    let place = ec.objects.reserve(call.selector)?;
    let (target, target_reference) = ec.selectors.get::<Ec>(ec.gpr(gpr::RDX), Permissions::BIND_PT)?;
    if target.kind != EcKind::Local {
        return Err(Status::BadCap);
    }
    let ip = ec.gpr(gpr::RAX);
    let permissions = Permissions::CTRL | Permissions::CALL | Permissions::EVENT;
    install(&place, pd, permissions, |_| target_reference.retain().map(|()| Pt::new(target_reference, ip))).map(drop)
}

/// create_sm: a semaphore.
pub fn sm(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (pd, _) = ec.selectors.get::<Pd>(ec.gpr(gpr::RSI), Permissions::SM)?;
    let place = ec.objects.reserve(call.selector)?;
    let counter = ec.gpr(gpr::RDX);
    install(&place, pd, Permissions::UP | Permissions::DOWN, |_| Ok(Sm::new(counter, None))).map(drop)
}
