//! Hypercalls: decode typed arguments, look up and check rights, act, return a status (NOVA 5, 8.8).

use core::sync::atomic::Ordering;

use abi::capability::Permissions;
use abi::extension::Operation;
use abi::hypercall::flag;
use abi::observation::{Traced, counter};
use abi::utcb::gpr;
use abi::{Hypercall, Status};

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::observation::{set_tracing, trace};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::Sc;
use crate::semaphore::Sm;
use crate::{create, ctrl_pd, destroy, interrupt, memory, platform, portal, rounds, run, sched};

/// A call's common part: the selector and the flags in RDI.
#[derive(Clone, Copy)]
pub struct Call {
    /// RDI bits 63:8.
    pub selector: u64,
    /// RDI bits 7:4.
    pub flags: u8,
}

/// SYSCALL from user mode. `ec` holds all registers that the call preserves.
pub extern "C" fn hypercall(ec: &'static Ec) -> ! {
    let cpu = ec.cpu;
    let rdi = ec.gpr(gpr::RDI);
    let call = Call { selector: rdi >> 8, flags: rdi as u8 >> 4 };
    cpu.counters.count(counter::HYPERCALL + (rdi as usize & 0xf));
    trace(cpu, Traced::Hypercall, rdi as u8 as u16, call.selector, ec.reference.index() as u64);
    ec.continuation.set(Continuation::ReturnHypercall);
    let result = match Hypercall::from_number(rdi as u8) {
        Hypercall::IpcCall => portal::call(cpu, ec, call.flags & flag::CALL_NO_HELP != 0),
        Hypercall::IpcReply => portal::reply(cpu, ec),
        Hypercall::CreatePd => create::pd(ec, call),
        Hypercall::CreateEc => create::ec(ec, call),
        Hypercall::CreateSc => create::sc(cpu, ec, call),
        Hypercall::CreatePt => create::pt(ec, call),
        Hypercall::CreateSm => create::sm(ec, call),
        Hypercall::CtrlPd => ctrl_pd::start(cpu, ec),
        Hypercall::CtrlEc => ctrl_ec(cpu, ec, call),
        Hypercall::CtrlSc => ctrl_sc(ec, call),
        Hypercall::CtrlPt => ctrl_pt(ec, call),
        Hypercall::CtrlSm => ctrl_sm(cpu, ec, call),
        Hypercall::CtrlHw => platform::control(ec, call),
        Hypercall::AssignInt => assign_int(ec, call),
        Hypercall::AssignDev => Err(if ec.pd.root { Status::BadDev } else { Status::BadHyp }),
        Hypercall::Extension => extension(cpu, ec, call),
    };
    run::finish(ec, result.err().unwrap_or(Status::Success));
    run::run(cpu, ec)
}

/// Marks the recall; the EC takes it on its way out of the kernel, where it is already if it belongs to this CPU. The
/// strong form waits until an EC of another CPU has been there.
fn ctrl_ec(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (target, _) = ec.objects.get::<Ec>(call.selector, Permissions::CTRL)?;
    target.recall.store(true, Ordering::Release);
    if core::ptr::eq(target.cpu, cpu) {
        return Ok(());
    }
    if call.flags & flag::RECALL_STRONG == 0 {
        rounds::call(target.cpu);
        return Ok(());
    }
    run::finish(ec, Status::Success);
    rounds::start(cpu, ec, Continuation::ReturnHypercall, |other| core::ptr::eq(other, target.cpu));
    sched::park(cpu, ec)
}

fn ctrl_sc(ec: &Ec, call: Call) -> Result<(), Status> {
    let (sc, _) = ec.objects.get::<Sc>(call.selector, Permissions::CTRL)?;
    ec.set_gpr(gpr::RSI, sc.consumed());
    Ok(())
}

fn ctrl_pt(ec: &Ec, call: Call) -> Result<(), Status> {
    let (pt, _) = ec.objects.get::<Pt>(call.selector, Permissions::CTRL)?;
    pt.identifier.store(ec.gpr(gpr::RSI), Ordering::Relaxed);
    pt.mtd.store(ec.gpr(gpr::RDX) as u32, Ordering::Relaxed);
    Ok(())
}

fn ctrl_sm(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    if call.flags & flag::SM_DOWN == 0 {
        return ec.objects.get::<Sm>(call.selector, Permissions::UP)?.0.up(cpu);
    }
    let (sm, _) = ec.objects.get::<Sm>(call.selector, Permissions::DOWN)?;
    sm.down(cpu, ec, call.flags & flag::SM_ZERO != 0, ec.gpr(gpr::RSI))
}

fn assign_int(ec: &Ec, call: Call) -> Result<(), Status> {
    let (sm, _) = ec.objects.get::<Sm>(call.selector, Permissions::ASSIGN_INT)?;
    interrupt::assign(sm, u16::try_from(ec.gpr(gpr::RSI)).map_err(|_| Status::BadCpu)?, call.flags)?;
    // Pin-based: there is no message.
    ec.set_gpr(gpr::RSI, 0);
    ec.set_gpr(gpr::RDX, 0);
    Ok(())
}

fn extension(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    match call.flags {
        flags if flags == Operation::MoveAllowance as u8 => {
            let (pd, _) = ec.objects.get::<Pd>(call.selector, Permissions::PD)?;
            let frames = u32::try_from(ec.gpr(gpr::RSI)).map_err(|_| Status::MemObj)?;
            if core::ptr::eq(pd, ec.pd) || !pd.give_allowance(ec.pd.account(), frames) {
                return Err(Status::MemObj);
            }
            Ok(())
        }
        flags if flags == Operation::Balance as u8 => {
            let (pd, _) = ec.objects.get::<Pd>(call.selector, Permissions::PD)?;
            ec.set_gpr(gpr::RSI, pd.account().balance() as u64);
            ec.set_gpr(gpr::RDX, memory::free_frames() as u64);
            Ok(())
        }
        flags if flags == Operation::Destroy as u8 => destroy::start(cpu, ec),
        flags if flags == Operation::Trace as u8 => {
            let granted = ctrl_pd::is_nova_host(ec.objects.lookup(call.selector));
            granted.then(|| set_tracing(ec.gpr(gpr::RSI) & 1 != 0)).ok_or(Status::BadCap)
        }
        _ => Err(Status::BadHyp),
    }
}
