//! DMA: what is not granted is out of reach, whatever a device is told.

use core::sync::atomic::Ordering::SeqCst;

use lab::domain::Domain;
use lab::entry::hip;
use lab::hypercall::{Delegation, assign_dev, create, create_pd, ctrl_pd};
use lab::memory::{self, PAGE, delegate, map_physical, page_address, peek, physical};
use lab::report::{Outcome, Stop, must};
use lab::spec::{BAD_CAP, BAD_DEV, BAD_PAR, Field, SUCCESS, Selector, cache, hip as page, perm};
use lab::{capability, check, equal, root, selector, tests, time};

use crate::device::{
    Edu, Fault, assigned, fill, filled, forget_faults, faults, holds, iommu, next_fault, unit,
};
use crate::operations::destroy;

tests! {
    "dma::a device that is not assigned writes nothing" => write,
    "dma::a device that is not assigned reads nothing" => read,
    "dma::a device that is not assigned does not reach the kernel" => kernel,
    "dma::parameters of assign_dev" => parameters,
    "dma::an assigned device reaches what its space holds, and nothing else" => granted,
    "dma::an assigned device does not reach the kernel, nor the root task" => attack,
    "dma::a device reaches no other program, and nothing where nothing is" => others,
    "dma::permissions hold" => permissions,
    "dma::what is taken away is out of reach when the call returns" => revoked,
    "dma::a page taken out of a large one is out of reach" => split,
    "dma::the last assignment counts" => moved,
    "dma::a space that is destroyed takes its devices out" => destroyed,
    "dma::spaces come and go" => cycles,
    "dma::a storm of faults costs one interrupt" => storm,
}

const ATTACK: u64 = 0xa77a_c000_a77a_c000;
const VICTIM: u64 = 0x5afe_5afe_5afe_5afe;

/// The device's buffer holds `number`, by a way that is open. With an IOMMU that is a space for this alone.
fn load(edu: &Edu, number: u64) -> Outcome {
    let (page, address) = filled(number);
    if !iommu() {
        return edu.read(address, PAGE);
    }
    let space = assigned(edu)?;
    delegate(page, space, 0, 0, perm::R)?;
    edu.read(0, PAGE)?;
    // Out again.
    equal!(destroy(space, root::pd()), SUCCESS);
    forget_faults();
    Ok(())
}

/// What the device's buffer begins with.
fn loaded(edu: &Edu) -> Result<u64, Stop> {
    let (page, address) = filled(0);
    if !iommu() {
        edu.write_to(address, PAGE)?;
        return Ok(peek(page));
    }
    let space = assigned(edu)?;
    delegate(page, space, 0, 0, perm::R | perm::W)?;
    edu.write_to(0, PAGE)?;
    must(destroy(space, root::pd()))?;
    Ok(peek(page))
}

/// The device has done what it may not: that is recorded. Without an IOMMU nothing is.
fn told(edu: &Edu, address: u64, read: bool, reasons: &[u64]) -> Outcome {
    if !iommu() {
        return Ok(());
    }
    faults()?.wait()?;
    let fault = next_fault();
    check!(fault.is_some(), "no fault is recorded");
    let Fault { source, reason, .. } = fault.unwrap_or(Fault { source: 0, reason: 0, read, address });
    equal!(fault, Some(Fault { source: edu.source, reason, read, address }));
    check!(source == edu.source && reasons.contains(&reason), "reason {reason:#x}");
    lab::println!("# source {source:#x}, reason {reason:#x}, {} at {address:#x}", if read { "read" } else { "write" });
    forget_faults();
    Ok(())
}

/// Reasons (VT-d specification 7.1.3): no root entry, no context entry; no right to write, to read.
const NOT_ASSIGNED: [u64; 2] = [1, 2];
const NO_WRITE: [u64; 1] = [5];
const NO_READ: [u64; 1] = [6];

fn write() -> Outcome {
    let edu = Edu::new()?;
    load(&edu, ATTACK)?;
    let (page, address) = filled(VICTIM);
    edu.write_to(address, PAGE)?;
    check!(holds(page, if iommu() { VICTIM } else { ATTACK }), "{:#x}", peek(page));
    told(&edu, address, false, &NOT_ASSIGNED)
}

fn read() -> Outcome {
    let edu = Edu::new()?;
    load(&edu, ATTACK)?;
    let (_, address) = filled(VICTIM);
    edu.read(address, PAGE)?;
    told(&edu, address, true, &NOT_ASSIGNED)?;
    equal!(loaded(&edu)? == VICTIM, !iommu());
    Ok(())
}

/// A page of the kernel that a root task can read, and the kernel does not write now: of the trace.
fn kernel_page() -> Result<(u64, u64), Stop> {
    let frames = hip(Field { offset: 0xa0, size: 8 });
    let (window, address) = (page_address(), frames + PAGE);
    check!((hip(page::NOVA_START)..hip(page::NOVA_END)).contains(&address), "{address:#x} is not the kernel's");
    map_physical(address, window, 0, perm::R, cache::WB)?;
    Ok((window, address))
}

fn kernel() -> Outcome {
    let edu = Edu::new()?;
    load(&edu, ATTACK)?;
    let (window, address) = kernel_page()?;
    check!(peek(window) != ATTACK, "the control run's attack is still there");
    edu.write_to(address, PAGE)?;
    equal!(peek(window) == ATTACK, !iommu());
    told(&edu, address, false, &NOT_ASSIGNED)
}

fn needs_iommu() -> Outcome {
    if iommu() { Ok(()) } else { Err(Stop::Skipped("there is no IOMMU")) }
}

fn parameters() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = selector();
    equal!(create_pd(space, root::pd(), create::DMA), SUCCESS);
    for address in [0, unit() + PAGE, !0xfff] {
        equal!(assign_dev(space, address, edu.source), BAD_DEV);
    }
    equal!(assign_dev(space, unit(), edu.source | 1 << 16), BAD_PAR);
    equal!(assign_dev(capability::reduced(space, perm::GRANT)?, unit(), edu.source), BAD_CAP);
    for other in [root::HST, root::pd(), selector()] {
        equal!(assign_dev(other, unit(), edu.source), BAD_CAP);
    }
    let grant = |dst| ctrl_pd(&Delegation { src: root::HST, dst, ssb: 0, dsb: 0, order: 0, mask: 0, mad: 0 });
    equal!(grant(capability::reduced(space, perm::ASSIGN)?), BAD_CAP);
    equal!(grant(space), SUCCESS);
    // Nothing can be taken from it.
    let take = Delegation { src: space, dst: root::HST, ssb: 0, dsb: 0, order: 0, mask: 0, mad: 0 };
    equal!(ctrl_pd(&take), BAD_CAP);
    equal!(assign_dev(space, unit() | 0xfff, edu.source), SUCCESS);
    Ok(())
}

/// Addresses in DMA spaces, in all of their tables.
const PLACES: [u64; 4] = [0x0, 0x7fff_f000, 0x40_0000_0000, 0x7fff_ffff_f000];

fn granted() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = assigned(&edu)?;
    // QEMU's device has addresses of 32 bits here.
    for place in PLACES.into_iter().filter(|place| *place < 1 << 32) {
        let (from, _) = filled(ATTACK ^ place);
        let (to, _) = filled(0);
        delegate(from, space, place, 0, perm::R | perm::W)?;
        edu.read(place, PAGE)?;
        delegate(to, space, place, 0, perm::R | perm::W)?;
        edu.write_to(place, PAGE)?;
        check!(holds(to, ATTACK ^ place), "at {place:#x}: {:#x}", peek(to));
        forget_faults();
        edu.write_to(place ^ PAGE, PAGE)?;
        told(&edu, place ^ PAGE, false, &NO_WRITE)?;
        check!(holds(to, ATTACK ^ place));
    }
    Ok(())
}

fn attack() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = assigned(&edu)?;
    let (own, _) = filled(ATTACK);
    delegate(own, space, 0, 0, perm::R | perm::W)?;
    edu.read(0, PAGE)?;
    let (window, kernel) = kernel_page()?;
    let (root, victim) = filled(VICTIM);
    let before = peek(window);
    forget_faults();
    for address in [kernel, victim] {
        edu.write_to(address, PAGE)?;
        told(&edu, address, false, &NO_WRITE)?;
        edu.read(address, PAGE)?;
        told(&edu, address, true, &NO_READ)?;
        edu.read(0, PAGE)?;
    }
    check!(peek(window) == before && holds(root, VICTIM));
    Ok(())
}

/// Physical addresses with neither RAM nor a device.
const NOWHERE: [u64; 2] = [0x4000_0000, 0xc000_0000];

/// A program in a domain of its own watches a page of its own while it is attacked: at its physical address, and at the
/// address at which another device has it.
fn others() -> Outcome {
    let edu = Edu::new()?;
    let (page, address) = filled(VICTIM);
    let (looks, changed) = (lab::number(0), lab::number(0));
    let program = Domain::new()?;
    program.spawn(1, move |_| {
        loop {
            changed.fetch_add(u64::from(!holds(page, VICTIM)), SeqCst);
            looks.fetch_add(1, SeqCst);
        }
    })?;
    let mut targets = alloc::vec![address];
    if iommu() {
        let space = assigned(&edu)?;
        let (own, _) = filled(ATTACK);
        delegate(own, space, 0, 0, perm::R | perm::W)?;
        let neighbour = selector();
        must(create_pd(neighbour, root::pd(), create::DMA))?;
        must(assign_dev(neighbour, unit(), edu.source ^ 8))?;
        delegate(page, neighbour, 0x5000, 0, perm::R | perm::W)?;
        edu.read(0, PAGE)?;
        targets.push(0x5000);
        targets.extend(NOWHERE);
    } else {
        load(&edu, ATTACK)?;
    }
    forget_faults();
    for target in targets {
        edu.write_to(target, PAGE)?;
        told(&edu, target, false, &NO_WRITE)?;
        if iommu() {
            edu.read(target, PAGE)?;
            told(&edu, target, true, &NO_READ)?;
            edu.read(0, PAGE)?;
        }
    }
    let before = looks.load(SeqCst);
    while looks.load(SeqCst) < before + 2 {
        time::pause(1)?;
    }
    equal!(changed.load(SeqCst) == 0, iommu());
    equal!(holds(page, VICTIM), iommu());
    must(destroy(program.pd, root::pd()))
}

fn permissions() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = assigned(&edu)?;
    let (readable, _) = filled(VICTIM);
    delegate(readable, space, 0, 0, perm::R)?;
    edu.read(0, PAGE)?;
    fill(readable, 0);
    // Where the unit has kept the page's right to be read QEMU refuses without a word.
    edu.write_to(0, PAGE)?;
    check!(holds(readable, 0));
    forget_faults();
    delegate(readable, space, 0, 0, perm::R | perm::W)?;
    edu.write_to(0, PAGE)?;
    check!(holds(readable, VICTIM));
    // Fewer again.
    delegate(readable, space, 0, 0, perm::R)?;
    fill(readable, 0);
    // The unit has forgotten the page, and looks at its table.
    edu.write_to(0, PAGE)?;
    told(&edu, 0, false, &NO_WRITE)?;
    check!(holds(readable, 0));
    Ok(())
}

fn revoke(space: Selector, place: u64, order: u64) -> Outcome {
    must(ctrl_pd(&Delegation { src: root::HST, dst: space, ssb: 0, dsb: place >> 12, order, mask: 0, mad: 0 }))
}

fn revoked() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = assigned(&edu)?;
    let (page, _) = filled(ATTACK);
    for round in 0..20 {
        delegate(page, space, 0x5000, 0, perm::R | perm::W)?;
        fill(page, ATTACK);
        // The unit has it in its cache then.
        edu.read(0x5000, PAGE)?;
        edu.write_to(0x5000, PAGE)?;
        forget_faults();
        revoke(space, 0x5000, 0)?;
        fill(page, VICTIM);
        edu.write_to(0x5000, PAGE)?;
        check!(holds(page, VICTIM), "round {round}: {:#x}", peek(page));
        told(&edu, 0x5000, false, &NO_WRITE)?;
    }
    Ok(())
}

fn split() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let space = assigned(&edu)?;
    let large = memory::large();
    check!(physical(large).is_multiple_of(2 << 20) || large.is_multiple_of(2 << 20));
    let from = physical(large).next_multiple_of(2 << 20);
    let window = large + (from - physical(large));
    let whole = Delegation {
        src: root::NOVA_HST,
        dst: space,
        ssb: from >> 12,
        dsb: 0x4000_0000 >> 12,
        order: 9,
        mask: perm::R | perm::W,
        mad: 0,
    };
    equal!(ctrl_pd(&whole), SUCCESS);
    let at = 0x4000_0000;
    fill(window + 5 * PAGE, ATTACK);
    edu.read(at + 5 * PAGE, PAGE)?;
    edu.write_to(at + 6 * PAGE, PAGE)?;
    check!(holds(window + 6 * PAGE, ATTACK));
    revoke(space, at + 5 * PAGE, 0)?;
    fill(window + 5 * PAGE, VICTIM);
    forget_faults();
    edu.write_to(at + 5 * PAGE, PAGE)?;
    check!(holds(window + 5 * PAGE, VICTIM));
    told(&edu, at + 5 * PAGE, false, &NO_WRITE)?;
    for neighbour in [4, 6] {
        fill(window + neighbour * PAGE, VICTIM);
        edu.write_to(at + neighbour * PAGE, PAGE)?;
        check!(holds(window + neighbour * PAGE, ATTACK));
    }
    Ok(())
}

fn moved() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let ((one, _), (other, _)) = (filled(ATTACK), filled(VICTIM));
    let first = assigned(&edu)?;
    delegate(one, first, 0, 0, perm::R | perm::W)?;
    edu.read(0, PAGE)?;
    let second = assigned(&edu)?;
    delegate(other, second, 0x1000, 0, perm::R | perm::W)?;
    forget_faults();
    edu.write_to(0x1000, PAGE)?;
    check!(holds(other, ATTACK));
    fill(one, VICTIM);
    edu.write_to(0, PAGE)?;
    told(&edu, 0, false, &NO_WRITE)?;
    check!(holds(one, VICTIM));
    // The old space has no hold on it any more.
    equal!(destroy(first, root::pd()), SUCCESS);
    fill(other, VICTIM);
    edu.write_to(0x1000, PAGE)?;
    check!(holds(other, ATTACK));
    Ok(())
}

fn destroyed() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let (page, _) = filled(ATTACK);
    // By destruction, with its protection domain, and with its last capability.
    for way in 0..3 {
        let (owner, space) = (selector(), selector());
        must(create_pd(owner, root::pd(), create::PD))?;
        must(create_pd(space, owner, create::DMA))?;
        must(assign_dev(space, unit(), edu.source))?;
        delegate(page, space, 0, 0, perm::R | perm::W)?;
        fill(page, ATTACK);
        edu.read(0, PAGE)?;
        edu.write_to(0, PAGE)?;
        fill(page, VICTIM);
        forget_faults();
        match way {
            0 => equal!(destroy(space, owner), SUCCESS),
            1 => equal!(destroy(owner, root::pd()), SUCCESS),
            _ => capability::drop(space)?,
        }
        edu.write_to(0, PAGE)?;
        check!(holds(page, VICTIM), "way {way}");
        told(&edu, 0, false, &NOT_ASSIGNED)?;
    }
    Ok(())
}

fn cycles() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let (page, _) = filled(ATTACK);
    let space = selector();
    let cycle = || {
        must(create_pd(space, root::pd(), create::DMA))?;
        must(assign_dev(space, unit(), edu.source))?;
        (0..4).try_for_each(|place| delegate(page, space, place << 21, 0, perm::R))?;
        must(destroy(space, root::pd()))
    };
    cycle()?;
    let before = crate::operations::balance(root::pd());
    // More than there are domains.
    (0..1100).try_for_each(|_| cycle())?;
    equal!(crate::operations::balance(root::pd()), before);
    Ok(())
}

/// Interrupts of devices that the first CPU has counted.
fn interrupts(counters: u64) -> u64 {
    peek(counters + 22 * 8)
}

fn storm() -> Outcome {
    needs_iommu()?;
    let edu = Edu::new()?;
    let counters = page_address();
    map_physical(hip(Field { offset: 0xa0, size: 8 }), counters, 0, perm::R, cache::WB)?;
    let (_, address) = filled(VICTIM);
    time::sleep(200)?;
    while faults()?.down_until(1) == SUCCESS {}
    forget_faults();
    for _ in 0..3 {
        let before = interrupts(counters);
        for _ in 0..200 {
            edu.write_to(address, 64)?;
        }
        equal!(interrupts(counters), before + 1);
        equal!(faults()?.down_until(1), SUCCESS);
        check!(faults()?.down_until(1) != SUCCESS, "more than one signal");
        // That arms it again.
        check!(next_fault().is_some());
        forget_faults();
    }
    Ok(())
}
