//! ctrl_pd: taking capabilities from one space and granting them to another (NOVA 5.4.1).
//!
//! Delegations of memory go piece by piece, as large as both sides allow, and stop for pending work in between: the
//! EC's registers still hold the call, `Ec::progress` how far it came. A call that took something away that processors
//! may have cached ends with one round over the CPUs that use the space.

use core::sync::atomic::{AtomicU64, Ordering};

use abi::Status;
use abi::capability::{Cacheability, MEMORY_ALL, Permissions, SELECTOR_COUNT};
use abi::utcb::gpr;
use kernel_core::paging::{Leaf, Piece};
use kernel_core::shootdown::Use;
use kernel_core::slots::{Entry, Named};

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::hypercall::Call;
use crate::iommu::{self, DmaSpace};
use crate::object::{cast, named};
use crate::space::{GuestSpace, HostSpace, Memory, MsrSpace, ObjectSpace, PioSpace};
use crate::{destroy, platform, registers, rounds, run, sched};

/// Entries changed between two looks at pending interrupts.
const BATCH: u64 = 3;

/// What the call asks for, from the registers of `ec`.
struct Request {
    cpu: &'static Cpu,
    ec: &'static Ec,
    source: u64,
    destination: u64,
    pages: u64,
    mask: Permissions,
}

/// Starts the call in `ec`'s registers.
pub fn start(cpu: &'static Cpu, ec: &'static Ec, _: Call) -> Result<(), Status> {
    ec.progress.set(0);
    perform(cpu, ec)
}

#[inline(always)]
fn memory_space(named: Named) -> Result<&'static Memory, Status> {
    if let Ok(host) = cast::<HostSpace>(named) {
        return Ok(&host.memory);
    }
    cast::<GuestSpace>(named).map(|space| &space.0).or_else(|_| cast::<DmaSpace>(named).map(|space| &space.memory))
}

/// Goes on with a preempted call.
pub fn resume(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    let same = ec.selectors.find(ec.gpr(gpr::RSI)).0 == ec.destination.get();
    let result = if same { perform(cpu, ec) } else { Err(Status::BadCap) };
    // It may have taken something away before.
    let result = match (memory_space(named(ec.destination.get().reference())), result) {
        (Ok(space), result) => conclude(cpu, ec, space, result),
        (_, Err(status)) => settle(cpu, ec, Err(status), &|_| true, None),
        (_, Ok(())) => Ok(()),
    };
    run::end(cpu, ec, result)
}

fn perform(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    let (source, from) = ec.selectors.find(ec.gpr(gpr::RDI) >> 8);
    let (destination, to) = ec.selectors.find(ec.gpr(gpr::RSI));
    if !source.permissions().contains(Permissions::TAKE) || !destination.permissions().contains(Permissions::GRANT) {
        return Err(Status::BadCap);
    }
    ec.destination.set(destination);
    let (rdx, rax) = (ec.gpr(gpr::RDX), ec.gpr(gpr::RAX));
    let mask = Permissions::from_bits_retain(rax as u8 & 0x1f);
    let request = Request { cpu, ec, source: rdx >> 12, destination: rax >> 12, pages: 1 << (rdx & 0x1f), mask };
    if let Ok(from) = cast::<HostSpace>(from) {
        return request.memory(&from.memory, is_nova(&NOVA_HOST, source), memory_space(to)?);
    } else if let Ok(from) = cast::<ObjectSpace>(from) {
        request.objects(from, cast(to)?)?;
        return destroy::collect(cpu, ec);
    } else if let Ok(from) = cast::<PioSpace>(from) {
        return request.ports(from, is_nova(&NOVA_PORTS, source), cast(to)?);
    }
    request.msrs(cast(from)?, cast(to)?)
}

/// The end of a call that changed `space`, with `result`: if it took rights away, or another EC did that and not every
/// CPU has seen it, goes on when all have.
#[inline(always)]
fn conclude(cpu: &'static Cpu, ec: &'static Ec, space: &Memory, result: Result<(), Status>) -> Result<(), Status> {
    // Before devices are told: another EC that finds nothing due need not tell them of what it took away.
    let due = space.generation.due();
    if space.domain != 0 {
        iommu::settle(space, due.is_some());
    }
    let Some(generation) = due else { return result };
    ec.progress.set(generation);
    settle(cpu, ec, result, &|other| space.cached_by(other), Some(space))
}

type Cached<'a> = &'a dyn Fn(&Cpu) -> bool;

/// The end of a call that took rights away, with `result`: goes on when no CPU for which `cached` holds can use them.
/// `space` has the tables that it made superfluous.
fn settle(cpu: &'static Cpu, ec: &'static Ec, result: Result<(), Status>, cached: Cached, space: Option<&Memory>) -> ! {
    if cached(cpu) {
        rounds::flush(cpu);
    }
    run::finish(ec, result.err().unwrap_or(Status::Success));
    if rounds::start(cpu, ec, Continuation::FreeTables, cached) {
        sched::park(cpu, ec)
    }
    free_from(cpu, ec, space)
}

/// The last part of a call: frees the tables that it made superfluous.
pub fn free_tables(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    ec.continuation.set(Continuation::ReturnHypercall);
    free_from(cpu, ec, memory_space(named(ec.destination.get().reference())).ok())
}

fn free_from(cpu: &'static Cpu, ec: &'static Ec, space: Option<&Memory>) -> ! {
    if let Some(space) = space {
        space.generation.complete(ec.progress.get());
        if space.free_table() {
            ec.continuation.set(Continuation::FreeTables);
            registers::interrupt_window();
        }
    }
    run::run(cpu, ec)
}

impl Request {
    /// Checks that both ranges are aligned and lie below `source` and `destination` selectors: then no sum overflows.
    #[inline(always)]
    fn within(&self, source: u64, destination: u64) -> Result<(), Status> {
        let aligned = (self.source | self.destination) & self.pages.wrapping_sub(1) == 0;
        // Of 52 and 32 bits.
        let fits = |base: u64, limit: u64| base.wrapping_add(self.pages) <= limit;
        let good = aligned && fits(self.source, source) && fits(self.destination, destination);
        good.then_some(()).ok_or(Status::BadPar)
    }

    /// Has `work` done piece by piece, which begins where it is told and returns how much it did. Lets pending work run
    /// in between: then the call begins anew with what it looks up, so that nothing that was destroyed meanwhile is used.
    #[inline(always)]
    fn each(&self, mut work: impl FnMut(u64) -> Result<u64, Status>) -> Result<(), Status> {
        let (mut done, mut steps) = (self.ec.progress.get(), 0_u64);
        while done < self.pages {
            let pages = work(done)?;
            done = done.wrapping_add(pages);
            if done >= self.pages {
                break;
            }
            // Many take time. None: the source has changed, or a large page was split.
            steps = if pages == 1 { steps.wrapping_add(1) } else { BATCH };
            if steps >= BATCH {
                self.ec.progress.set(done);
                self.ec.continuation.set(Continuation::ResumeCtrlPd);
                registers::interrupt_window();
                run::run(self.cpu, self.ec);
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn objects(&self, from: &ObjectSpace, to: &ObjectSpace) -> Result<(), Status> {
        self.within(SELECTOR_COUNT, SELECTOR_COUNT)?;
        self.each(|done| {
            let entry = || {
                let (entry, named) = from.selectors().find(self.source.wrapping_add(done));
                if named.is_nothing() { Entry::NULL } else { entry.mask(self.mask) }
            };
            to.set(self.destination.wrapping_add(done), &entry).map(|()| 1)
        })
    }

    #[inline(never)]
    fn memory(&self, from: &Memory, nova: bool, to: &Memory) -> Result<(), Status> {
        // Key identifiers, bits 17:3, end with 0; what is above is ignored.
        let attributes = self.ec.gpr(8) as u32 & 0x3_ffff;
        let cacheability = if nova { Cacheability::from_bits(attributes) } else { Some(Cacheability::WriteBack) };
        let cacheability = cacheability.ok_or(Status::BadPar)?;
        let physical = || platform::PLATFORM.get().map_or(0, |platform| platform.physical_pages);
        self.within(if nova { physical() } else { from.selectors }, to.selectors)?;
        let result = self.each(|done| {
            let (page, seen) = (self.source.wrapping_add(done), from.generation.current());
            let va = self.destination.wrapping_add(done) << 12;
            let left = self.pages.wrapping_sub(done);
            let (Leaf { address: pa, permissions, cacheability }, run) = match nova {
                // Unmapping needs no source.
                _ if self.mask.is_empty() => (Leaf::NONE, left),
                true => held(page, cacheability),
                false => from.lookup(page, left),
            };
            let permissions = permissions & self.mask;
            let piece = Piece { pa, permissions, cacheability, ..Piece::unmap(va, left.min(run)) };
            to.step(&piece, Some((&from.generation, seen)))
        });
        conclude(self.cpu, self.ec, to, result)
    }

    #[inline(never)]
    fn ports(&self, from: &PioSpace, nova: bool, to: &PioSpace) -> Result<(), Status> {
        self.within(1 << 16, 1 << 16)?;
        if self.source != self.destination {
            return Err(Status::BadPar);
        }
        let masked = if self.mask.contains(Permissions::ACCESS) { u64::MAX } else { 0 };
        self.each(|done| {
            // As many as lie in one word of the bitmaps.
            let (port, count) = (self.source.wrapping_add(done), self.pages.min(64));
            let ports = (u64::MAX >> 64_u64.saturating_sub(count)) << (port & 63);
            let access = to.set(port, ports, &|| from.access(port) & masked)?;
            let uart = crate::console::UART as u64;
            if nova && port >> 6 == uart >> 6 && access & 1 << (uart & 63) != 0 {
                crate::console::UART_OURS.store(false, Ordering::Relaxed);
            }
            Ok(count)
        })?;
        settle(self.cpu, self.ec, Ok(()), &|other| to.cached_by(other), None)
    }

    #[inline(never)]
    fn msrs(&self, from: &MsrSpace, to: &MsrSpace) -> Result<(), Status> {
        self.within(1 << 32, 1 << 32)?;
        if self.source != self.destination || self.pages > 1 << 14 {
            return Err(Status::BadPar);
        }
        // Only the NOVA MSR space can be a source whose content matters: what others hold was taken from it.
        self.each(|done| {
            let msr = self.source.wrapping_add(done) as u32;
            to.set(msr, &|| from.get(msr) & self.mask);
            Ok(1)
        })?;
        // The bitmap may not change under a guest that runs (Intel SDM vol. 3C, 25.11.4): none does when this is over.
        settle(self.cpu, self.ec, Ok(()), &|other| other.nested.root() != Use::NONE, None)
    }
}

/// Capabilities of the spaces that stand for the machine's own memory and ports, from boot on.
pub static NOVA_HOST: AtomicU64 = AtomicU64::new(0);
/// See above.
pub static NOVA_PORTS: AtomicU64 = AtomicU64::new(0);

/// Whether `entry` is the NOVA host space, to take from.
pub fn is_nova_host(entry: Entry) -> bool {
    is_nova(&NOVA_HOST, entry) && entry.permissions().contains(Permissions::TAKE)
}

fn is_nova(which: &AtomicU64, entry: Entry) -> bool {
    Entry(which.load(Ordering::Relaxed)).reference() == entry.reference()
}

/// What the NOVA host space holds at physical page `page`: everything but what the kernel protects. Also the number of
/// pages from there for which this holds.
fn held(page: u64, cacheability: Cacheability) -> (Leaf, u64) {
    let leaf = |permissions| Leaf { address: page << 12, permissions, cacheability };
    let mut run = u64::MAX;
    for &(start, end) in platform::PLATFORM.get().map_or(&[][..], |platform| &platform.protected) {
        if page < start {
            run = run.min(start.wrapping_sub(page));
        } else if page < end {
            let open = crate::observation::pages();
            if open.contains(&page) {
                return (leaf(Permissions::READ), open.end.wrapping_sub(page));
            }
            let end = if page < open.start { end.min(open.start) } else { end };
            return (leaf(Permissions::empty()), end.wrapping_sub(page));
        }
    }
    (leaf(MEMORY_ALL), run)
}
