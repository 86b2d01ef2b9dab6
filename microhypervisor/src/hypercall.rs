//! Hypercalls: decode typed arguments, look up and check rights, act, return a status (NOVA 5, 8.8).

use core::sync::atomic::Ordering;

use abi::Status;
use abi::capability::Permissions;
use abi::extension::Operation;
use abi::hypercall::flag;
use abi::observation::Traced;
use abi::utcb::gpr;

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::object::TABLE;
use crate::observation::{set_tracing, trace};
use crate::pd::Pd;
use crate::portal::Pt;
use crate::sched::Sc;
use crate::semaphore::Sm;
use crate::{create, ctrl_pd, destroy, interrupt, iommu, memory, platform, portal, rounds, run, sched};

/// A call's common part: the selector and the flags in RDI.
#[derive(Clone, Copy)]
pub struct Call {
    /// RDI bits 63:8.
    pub selector: u64,
    /// RDI bits 7:4.
    pub flags: u8,
}

type Handler = fn(&'static Cpu, &'static Ec, Call) -> Result<(), Status>;

/// By number, see [`abi::Hypercall`].
static HANDLERS: [Handler; 16] = [
    portal::call,
    |cpu, ec, _| portal::reply(cpu, ec),
    create::pd,
    create::ec,
    create::sc,
    create::pt,
    create::sm,
    ctrl_pd::start,
    ctrl_ec,
    ctrl_sc,
    ctrl_pt,
    ctrl_sm,
    platform::control,
    assign_int,
    iommu::assign_dev,
    extension,
];

/// Hypercall `which` (RDI bits 7:0) of `ec`, which holds all registers that the call preserves.
pub extern "C" fn hypercall(cpu: &'static Cpu, ec: &'static Ec, selector: u64, which: u64) -> Status {
    let call = Call { selector, flags: which as u8 >> 4 };
    HANDLERS[which as usize & 0xf](cpu, ec, call).err().unwrap_or(Status::Success)
}

/// `ec` makes a hypercall, and the trace is on.
pub extern "C" fn trace_hypercall(ec: &Ec) {
    let rdi = ec.gpr(gpr::RDI);
    trace(ec.cpu, Traced::Hypercall, rdi as u8 as u16, rdi >> 8, ec.reference.index() as u64);
}

/// Marks the recall; the EC takes it on its way out of the kernel, where it is already if it belongs to this CPU. The
/// strong form waits until an EC of another CPU has been there.
fn ctrl_ec(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (target, _) = ec.selectors.get::<Ec>(call.selector, Permissions::CTRL)?;
    target.recall.store(true, Ordering::Release);
    if core::ptr::eq(target.cpu, cpu) {
        return Ok(());
    }
    if call.flags & flag::RECALL_STRONG == 0 {
        rounds::call(target.cpu);
        return Ok(());
    }
    run::finish(ec, Status::Success);
    rounds::start(cpu, ec, Continuation::ReturnHypercall, &|other| core::ptr::eq(other, target.cpu));
    sched::park(cpu, ec)
}

fn ctrl_sc(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (sc, _) = ec.selectors.get::<Sc>(call.selector, Permissions::CTRL)?;
    ec.set_gpr(gpr::RSI, sc.consumed());
    Ok(())
}

fn ctrl_pt(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (pt, _) = ec.selectors.get::<Pt>(call.selector, Permissions::CTRL)?;
    pt.identifier.store(ec.gpr(gpr::RSI), Ordering::Relaxed);
    pt.mtd.store(ec.gpr(gpr::RDX) as u32, Ordering::Relaxed);
    TABLE.changes.0.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

fn ctrl_sm(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let down = call.flags & flag::SM_DOWN != 0;
    let (sm, _) = ec.selectors.get::<Sm>(call.selector, if down { Permissions::DOWN } else { Permissions::UP })?;
    if down { sm.down(cpu, ec, call.flags & flag::SM_ZERO != 0) } else { sm.up(cpu) }
}

fn assign_int(_: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    let (sm, _) = ec.selectors.get::<Sm>(call.selector, Permissions::ASSIGN_INT)?;
    let cpu = u16::try_from(ec.gpr(gpr::RSI)).map_err(|_| Status::BadCpu)?;
    let (address, data) = interrupt::assign(sm, cpu, ec.gpr(gpr::RDX) as u16, call.flags)?;
    ec.set_gpr(gpr::RSI, address as u64);
    ec.set_gpr(gpr::RDX, data as u64);
    Ok(())
}

fn extension(cpu: &'static Cpu, ec: &'static Ec, call: Call) -> Result<(), Status> {
    match call.flags {
        flags if flags == Operation::MoveAllowance as u8 => {
            let (pd, _) = ec.selectors.get::<Pd>(call.selector, Permissions::PD)?;
            let frames = u32::try_from(ec.gpr(gpr::RSI)).map_err(|_| Status::MemObj)?;
            let given = !core::ptr::eq(pd, ec.pd) && pd.give_allowance(ec.pd.account(), frames);
            given.then_some(()).ok_or(Status::MemObj)
        }
        flags if flags == Operation::Balance as u8 => {
            let (pd, _) = ec.selectors.get::<Pd>(call.selector, Permissions::PD)?;
            ec.set_gpr(gpr::RSI, pd.account().allowance.balance() as u64);
            ec.set_gpr(gpr::RDX, memory::free_frames() as u64);
            Ok(())
        }
        flags if flags == Operation::Fault as u8 => iommu::collect_fault(ec),
        flags if flags == Operation::Destroy as u8 => destroy::start(cpu, ec),
        flags if flags == Operation::Trace as u8 => {
            let granted = ctrl_pd::is_nova_host(ec.selectors.find(call.selector).0);
            granted.then(|| set_tracing(ec.gpr(gpr::RSI) & 1 != 0)).ok_or(Status::BadCap)
        }
        _ => Err(Status::BadHyp),
    }
}
