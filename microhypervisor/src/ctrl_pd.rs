//! ctrl_pd: taking capabilities from one space and granting them to another (NOVA 5.4.1).
//!
//! Delegations of memory go piece by piece, as large as both sides allow, and stop for pending work in between: the
//! EC's registers still hold the call, `Ec::progress` how far it came. A call that took something away that processors
//! may have cached ends with one round over the CPUs that use the space.

use abi::Status;
use abi::capability::{Cacheability, MEMORY_ALL, Permissions, SELECTOR_COUNT};
use abi::utcb::gpr;
use kernel_core::paging::Piece;
use kernel_core::shootdown::Use;
use kernel_core::slots::{Entry, Kind};
use spin::Once;

use crate::cpu::Cpu;
use crate::ec::{Continuation, Ec};
use crate::object::{self, resolve};
use crate::space::{GuestSpace, HostSpace, Memory, MsrSpace, ObjectSpace, PioSpace};
use crate::{destroy, registers, rounds, run, sched};

/// Entries changed between two looks at pending interrupts.
const BATCH: u32 = 3;

/// What the call asks for, from the registers.
struct Request {
    source: u64,
    destination: u64,
    pages: u64,
    mask: Permissions,
    attributes: u32,
}

impl Request {
    fn decode(ec: &Ec) -> Result<Self, Status> {
        let (rdx, rax) = (ec.gpr(gpr::RDX), ec.gpr(gpr::RAX));
        let pages = 1u64 << (rdx & 0x1f);
        let (source, destination) = (rdx >> 12, rax >> 12);
        if (source | destination) & pages.wrapping_sub(1) != 0 {
            return Err(Status::BadPar);
        }
        Ok(Self {
            source,
            destination,
            pages,
            mask: Permissions::from_bits_retain(rax as u8 & 0x1f),
            attributes: ec.gpr(8) as u32,
        })
    }

    /// Page `done` of the source. Sums cannot overflow after [`Request::within`].
    fn from(&self, done: u64) -> u64 {
        self.source.saturating_add(done)
    }

    /// Page `done` of the destination.
    fn to(&self, done: u64) -> u64 {
        self.destination.saturating_add(done)
    }

    /// Checks that both ranges lie below `source` and `destination` selectors.
    fn within(&self, source: u64, destination: u64) -> Result<(), Status> {
        let fits = |base: u64, limit: u64| base.checked_add(self.pages).is_some_and(|end| end <= limit);
        if fits(self.source, source) && fits(self.destination, destination) { Ok(()) } else { Err(Status::BadPar) }
    }
}

/// Starts the call in `ec`'s registers.
pub fn start(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    ec.progress.set(0);
    perform(cpu, ec)
}

fn memory_space(entry: Entry) -> Result<&'static Memory, Status> {
    space::<HostSpace>(entry).map(|host| &host.memory).or_else(|_| space::<GuestSpace>(entry).map(|guest| &guest.0))
}

/// Goes on with a preempted call.
pub fn resume(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    let same = ec.objects.lookup(ec.gpr(gpr::RSI)) == ec.destination.get();
    let result = if same { perform(cpu, ec) } else { Err(Status::BadCap) };
    // It may have taken something away before.
    let result = match (memory_space(ec.destination.get()), result) {
        (Ok(space), result) => conclude(cpu, ec, space, result),
        (_, Err(status)) => settle(cpu, ec, Err(status), |_| true),
        (_, Ok(())) => Ok(()),
    };
    run::finish(ec, result.err().unwrap_or(Status::Success));
    run::run(cpu, ec)
}

fn perform(cpu: &'static Cpu, ec: &'static Ec) -> Result<(), Status> {
    let source = ec.objects.lookup(ec.gpr(gpr::RDI) >> 8);
    let destination = ec.objects.lookup(ec.gpr(gpr::RSI));
    if !source.permissions().contains(Permissions::TAKE) || !destination.permissions().contains(Permissions::GRANT) {
        return Err(Status::BadCap);
    }
    ec.destination.set(destination);
    match (object::kind(source), object::kind(destination)) {
        (Kind::ObjectSpace, Kind::ObjectSpace) => {
            objects(cpu, ec, space::<ObjectSpace>(source)?, space::<ObjectSpace>(destination)?)?;
            destroy::collect(cpu, ec)
        }
        (Kind::HostSpace, Kind::HostSpace | Kind::GuestSpace) => memory(cpu, ec, source, memory_space(destination)?),
        (Kind::PioSpace, Kind::PioSpace) => ports(cpu, ec, source, space::<PioSpace>(destination)?),
        (Kind::MsrSpace, Kind::MsrSpace) => msrs(cpu, ec, source, space::<MsrSpace>(destination)?),
        _ => Err(Status::BadCap),
    }
}

fn space<T: object::Object>(entry: Entry) -> Result<&'static T, Status> {
    resolve(entry, Permissions::empty()).map(|(space, _)| space)
}

/// Remembers how far the call came and lets pending work run, at the end of each batch. Then the call begins anew with
/// what it looks up, so that nothing that was destroyed meanwhile is used.
fn breathe(cpu: &'static Cpu, ec: &'static Ec, done: u64, steps: &mut u32) {
    *steps = steps.saturating_add(1);
    if *steps >= BATCH {
        ec.progress.set(done);
        ec.continuation.set(Continuation::ResumeCtrlPd);
        registers::interrupt_window();
        run::run(cpu, ec);
    }
}

/// The end of a call that changed `space`, with `result`: if it took rights away, or another EC did that and not every
/// CPU has seen it, goes on when all have.
fn conclude(cpu: &'static Cpu, ec: &'static Ec, space: &Memory, result: Result<(), Status>) -> Result<(), Status> {
    let Some(generation) = space.generation.due() else { return result };
    ec.progress.set(generation);
    settle(cpu, ec, result, |other| space.cached_by(other))
}

/// The end of a call that took rights away, with `result`: goes on when no CPU for which `cached` holds can use them.
fn settle(cpu: &'static Cpu, ec: &'static Ec, result: Result<(), Status>, cached: impl Fn(&Cpu) -> bool) -> ! {
    if cached(cpu) {
        rounds::flush(cpu);
    }
    run::finish(ec, result.err().unwrap_or(Status::Success));
    if rounds::start(cpu, ec, Continuation::FreeTables, cached) {
        sched::park(cpu, ec)
    }
    free_tables(cpu, ec)
}

/// The last part of a call: frees the tables that it made superfluous.
pub fn free_tables(cpu: &'static Cpu, ec: &'static Ec) -> ! {
    let freed = memory_space(ec.destination.get()).is_ok_and(|space| {
        space.generation.complete(ec.progress.get());
        space.free_table()
    });
    ec.continuation.set(if freed { Continuation::FreeTables } else { Continuation::ReturnHypercall });
    registers::interrupt_window();
    run::run(cpu, ec)
}

fn objects(cpu: &'static Cpu, ec: &'static Ec, from: &ObjectSpace, to: &ObjectSpace) -> Result<(), Status> {
    let request = Request::decode(ec)?;
    request.within(SELECTOR_COUNT, SELECTOR_COUNT)?;
    let mut steps = 0;
    for index in ec.progress.get()..request.pages {
        to.set(request.to(index), &|| {
            let entry = from.lookup(request.from(index));
            if object::kind(entry) == Kind::Null { Entry::NULL } else { entry.mask(request.mask) }
        })?;
        breathe(cpu, ec, index.saturating_add(1), &mut steps);
    }
    Ok(())
}

fn memory(cpu: &'static Cpu, ec: &'static Ec, source: Entry, to: &Memory) -> Result<(), Status> {
    let request = Request::decode(ec)?;
    let nova = is(&NOVA_HOST, source);
    let from = &space::<HostSpace>(source)?.memory;
    // Key identifiers, bits 17:3, end with 0; what is above is ignored.
    let attributes = Cacheability::from_bits(request.attributes & 7).filter(|_| request.attributes >> 3 & 0x7fff == 0);
    let attributes = if nova { attributes.ok_or(Status::BadPar)? } else { Cacheability::WriteBack };
    let limit = if nova { crate::platform::physical_pages() } else { from.selectors };
    request.within(limit, to.selectors)?;
    let mut done = ec.progress.get();
    let mut steps = 0;
    while done < request.pages {
        let remaining = request.pages.saturating_sub(done);
        let page = request.from(done);
        let seen = from.generation.current();
        let (physical, permissions, cache, run) = if nova {
            let (permissions, run) = nova_host(page);
            (page << 12, permissions, attributes, run)
        } else {
            let (leaf, run) = from.lookup(page << 12);
            match leaf {
                // UTCBs and other frames of the kernel cannot be delegated.
                Some(leaf) if nova_host(leaf.address >> 12).0.is_empty() => (0, Permissions::empty(), attributes, 1),
                Some(leaf) => (leaf.address, leaf.permissions, leaf.cacheability, run),
                None => (0, Permissions::empty(), attributes, run),
            }
        };
        let (va, permissions) = (request.to(done) << 12, permissions & request.mask);
        let piece = Piece { va, pa: physical, count: remaining.min(run), permissions, cacheability: cache };
        match to.step(piece, &|| nova || from.generation.current() == seen) {
            // The source has changed, or a large page was split, which takes time.
            Ok(0) => steps = BATCH,
            Ok(pages) => done = done.saturating_add(pages),
            Err(status) => return conclude(cpu, ec, to, Err(status)),
        }
        breathe(cpu, ec, done, &mut steps);
    }
    conclude(cpu, ec, to, Ok(()))
}

fn ports(cpu: &'static Cpu, ec: &'static Ec, source: Entry, to: &PioSpace) -> Result<(), Status> {
    let request = Request::decode(ec)?;
    request.within(1 << 16, 1 << 16)?;
    if request.source != request.destination {
        return Err(Status::BadPar);
    }
    let from: &PioSpace = space(source)?;
    let masked = if request.mask.contains(Permissions::ACCESS) { u64::MAX } else { 0 };
    let mut done = ec.progress.get();
    let mut steps = 0;
    while done < request.pages {
        // As many as lie in one word of the bitmaps.
        let port = request.from(done);
        let count = request.pages.min(64);
        let ports = (u64::MAX >> 64_u64.saturating_sub(count)) << (port & 63);
        let access = to.set(port, ports, &|| from.access(port) & masked)?;
        let uart = crate::console::UART as u64;
        if is(&NOVA_PIO, source) && port >> 6 == uart >> 6 && access & 1 << (uart & 63) != 0 {
            crate::console::release_uart();
        }
        done = done.saturating_add(count);
        breathe(cpu, ec, done, &mut steps);
    }
    settle(cpu, ec, Ok(()), |other| to.cached_by(other))
}

fn msrs(cpu: &'static Cpu, ec: &'static Ec, source: Entry, to: &MsrSpace) -> Result<(), Status> {
    let request = Request::decode(ec)?;
    request.within(1 << 32, 1 << 32)?;
    if request.source != request.destination || request.pages > 1 << 14 {
        return Err(Status::BadPar);
    }
    // Only the NOVA MSR space can be a source whose content matters: what others hold was taken from it.
    let from: &MsrSpace = space(source)?;
    let mut steps = 0;
    for index in ec.progress.get()..request.pages {
        let msr = request.from(index) as u32;
        to.set(msr, &|| from.get(msr) & request.mask);
        breathe(cpu, ec, index.saturating_add(1), &mut steps);
    }
    // The bitmap may not change under a guest that runs (Intel SDM vol. 3C, 25.11.4): none does when this is over.
    settle(cpu, ec, Ok(()), |other| other.nested.root() != Use::NONE)
}

static NOVA_HOST: Once<Entry> = Once::new();
static NOVA_PIO: Once<Entry> = Once::new();

/// Names the spaces that stand for the machine's own memory and ports.
pub fn set_nova_spaces(host: Entry, pio: Entry) {
    NOVA_HOST.call_once(|| host);
    NOVA_PIO.call_once(|| pio);
}

/// Whether `entry` is the NOVA host space, to take from.
pub fn is_nova_host(entry: Entry) -> bool {
    is(&NOVA_HOST, entry) && entry.permissions().contains(Permissions::TAKE)
}

fn is(nova: &Once<Entry>, entry: Entry) -> bool {
    nova.get().is_some_and(|nova| nova.reference() == entry.reference())
}

/// What the NOVA host space holds at physical page `page`: everything but what the kernel protects. Also the number of
/// pages from there for which this holds.
fn nova_host(page: u64) -> (Permissions, u64) {
    let open = crate::observation::pages();
    if open.contains(&page) {
        return (Permissions::READ, open.end.saturating_sub(page));
    }
    let mut run = open.start.checked_sub(page).filter(|run| *run != 0).unwrap_or(u64::MAX);
    for (start, end) in crate::platform::protected() {
        if (start..end).contains(&page) {
            return (Permissions::empty(), run.min(end.saturating_sub(page)));
        }
        if page < start {
            run = run.min(start.saturating_sub(page));
        }
    }
    (MEMORY_ALL, run)
}
