//! Memory capabilities: host spaces, the NOVA host space, attributes (2.1.2, 4.1.3, 4.3, 5.4.1, 6.1.3.2, 8.2.1, 8.7.5).

use lab::domain::Domain;
use lab::entry::{hip, hip_address};
use lab::hypercall::{Delegation, ctrl_pd};
use lab::memory::{self, PAGE, delegate, page_address, pages, peek, physical, poke};
use lab::probe::{self, FETCH, Fault, PRESENT, Prober, RETURN, USER, WRITE};
use lab::report::{Outcome, Stop};
use lab::spec::{BAD_PAR, SUCCESS, Status, cache, event, hip, perm};
use lab::utcb::Utcb;
use lab::{acpi, check, equal, root, tests};

tests! {
    "memory::a delegated page is the same page" => same_page,
    "memory::nothing is mapped without a delegation" => unmapped,
    "memory::without W a page cannot be written" => read_only,
    "memory::without X a page cannot be executed" => no_execute,
    "memory::with X a page can be executed" => execute,
    "memory::permissions are those of source and mask" => masked,
    "memory::what is taken away is gone when the call returns" => taken_away,
    "memory::permissions taken away are gone when the call returns" => reduced,
    "memory::another page replaces what was there" => replaced,
    "memory::a hole in the source makes a hole in the destination" => hole,
    "memory::every order maps all pages and no other" => orders,
    "memory::a large range can be cut in pieces" => pieces,
    "memory::spaces of two PDs are apart" => apart,
    "memory::the NOVA host space is physical memory" => nova_host,
    "memory::the kernel's memory is protected" => kernel_protected,
    "memory::interrupt controllers are protected" => controllers_protected,
    "memory::a UTCB cannot be delegated" => utcb,
    "memory::the information page cannot be delegated" => information_page,
    "memory::cacheability has five values" => cacheability,
    "memory::key identifiers end with KIMAX" => keys,
    "memory::undefined bits of the attributes are ignored" => undefined_attributes,
    "memory::attributes are ignored if the source is not the NOVA host space" => ignored_attributes,
}

/// A page of the image with a pattern, and an address where it is not mapped yet.
fn page() -> (u64, u64) {
    let page = pages(1);
    poke(page, 0x1122_3344_5566_7788);
    (page, page_address())
}

fn fault(error: u64, address: u64) -> Option<Fault> {
    Some(Fault { number: event::PF, error, address })
}

fn probe() -> Result<&'static Prober, Stop> {
    probe::root()
}

fn same_page() -> Outcome {
    let (page, there) = page();
    delegate(page, root::HST, there, 0, perm::R | perm::W)?;
    equal!(probe()?.value(there)?, 0x1122_3344_5566_7788);
    equal!(probe()?.write(there + 8, 99)?, None);
    equal!(peek(page + 8), 99);
    poke(page + PAGE - 8, 77);
    equal!(probe()?.value(there + PAGE - 8)?, 77);
    Ok(())
}

fn unmapped() -> Outcome {
    let there = page_address();
    equal!(probe()?.read(there + 16)?, fault(USER, there + 16));
    equal!(probe()?.write(there, 0)?, fault(USER | WRITE, there));
    let (page, there) = page();
    delegate(page, root::HST, there, 0, perm::R)?;
    equal!(probe()?.read(there + PAGE)?, fault(USER, there + PAGE));
    equal!(probe()?.read(there - 8)?, fault(USER, there - 8));
    Ok(())
}

fn read_only() -> Outcome {
    let (page, there) = page();
    delegate(page, root::HST, there, 0, perm::R)?;
    equal!(probe()?.read(there)?, None);
    equal!(probe()?.write(there, 1)?, fault(PRESENT | USER | WRITE, there));
    equal!(peek(page), 0x1122_3344_5566_7788);
    Ok(())
}

/// A page with a return, whose capability in the NOVA host space has all permissions.
fn code(mask: u64) -> Result<u64, Stop> {
    let (page, there) = page();
    poke(page, RETURN);
    memory::map_physical(physical(page), there, 0, mask, cache::WB)?;
    Ok(there)
}

fn no_execute() -> Outcome {
    let there = code(perm::R | perm::W)?;
    equal!(probe()?.execute(there)?, fault(PRESENT | USER | FETCH, there));
    Ok(())
}

fn execute() -> Outcome {
    for mask in [perm::R | perm::XU, perm::R | perm::W | perm::XU, perm::R | perm::W | perm::XU | perm::XS] {
        equal!(probe()?.execute(code(mask)?)?, None);
    }
    Ok(())
}

fn masked() -> Outcome {
    let (page, first) = page();
    let second = page_address();
    delegate(page, root::HST, first, 0, perm::R)?;
    // The mask gives nothing that the source has not.
    delegate(first, root::HST, second, 0, perm::R | perm::W | perm::XU)?;
    equal!(probe()?.read(second)?, None);
    equal!(probe()?.write(second, 1)?, fault(PRESENT | USER | WRITE, second));
    equal!(probe()?.execute(second)?, fault(PRESENT | USER | FETCH, second));
    Ok(())
}

fn taken_away() -> Outcome {
    let (page, there) = page();
    for _ in 0..3 {
        delegate(page, root::HST, there, 0, perm::R | perm::W)?;
        equal!(probe()?.read(there)?, None);
        equal!(peek(there), 0x1122_3344_5566_7788);
        delegate(there, root::HST, there, 0, 0)?;
        equal!(probe()?.read(there)?, fault(USER, there));
    }
    // The source still has it.
    equal!(probe()?.read(page)?, None);
    Ok(())
}

fn reduced() -> Outcome {
    let (page, there) = page();
    delegate(page, root::HST, there, 0, perm::R | perm::W)?;
    equal!(probe()?.write(there, 5)?, None);
    delegate(there, root::HST, there, 0, perm::R)?;
    equal!(probe()?.write(there, 6)?, fault(PRESENT | USER | WRITE, there));
    equal!(probe()?.value(there)?, 5);
    Ok(())
}

fn replaced() -> Outcome {
    let ((one, there), (other, _)) = (page(), page());
    poke(other, 42);
    delegate(one, root::HST, there, 0, perm::R)?;
    equal!(probe()?.value(there)?, 0x1122_3344_5566_7788);
    delegate(other, root::HST, there, 0, perm::R)?;
    equal!(probe()?.value(there)?, 42);
    Ok(())
}

fn hole() -> Outcome {
    let (page, there) = page();
    delegate(page, root::HST, there, 0, perm::R)?;
    delegate(page_address(), root::HST, there, 0, perm::R)?;
    equal!(probe()?.read(there)?, fault(USER, there));
    Ok(())
}

fn orders() -> Outcome {
    let memory = memory::large();
    for order in 0..=memory::LARGE {
        let there = memory::address(order);
        for page in 0..1 << order {
            poke(memory + page * PAGE, u64::from(order) << 32 | page);
        }
        delegate(memory, root::HST, there, u64::from(order), perm::R)?;
        for page in 0..1 << order {
            equal!(probe()?.value(there + page * PAGE)?, u64::from(order) << 32 | page);
        }
        let end = there + (PAGE << order);
        equal!(probe()?.read(end)?, fault(USER, end));
        equal!(probe()?.read(there - 8)?, fault(USER, there - 8));
        delegate(there, root::HST, there, u64::from(order), 0)?;
        for page in 0..1 << order {
            check!(probe()?.read(there + page * PAGE)?.is_some(), "order {order}: page {page:#x} is still there");
        }
    }
    Ok(())
}

fn pieces() -> Outcome {
    let (memory, order) = (memory::large(), memory::LARGE);
    let there = memory::address(order);
    (0..1 << order).for_each(|page| poke(memory + page * PAGE, page));
    delegate(memory, root::HST, there, u64::from(order), perm::R | perm::W)?;
    // A page in the middle goes, some become read-only, one becomes another.
    delegate(there + 600 * PAGE, root::HST, there + 600 * PAGE, 0, 0)?;
    delegate(there + 608 * PAGE, root::HST, there + 608 * PAGE, 3, perm::R)?;
    delegate(memory, root::HST, there + 700 * PAGE, 0, perm::R)?;
    for page in [0, 1, 511, 512, 599, 601, 607, 608, 615, 616, 699, 701, 1023] {
        equal!(probe()?.value(there + page * PAGE)?, page);
        let written = probe()?.write(there + page * PAGE, page)?;
        equal!(written.is_some(), (608..616).contains(&page));
    }
    equal!(probe()?.read(there + 600 * PAGE)?, fault(USER, there + 600 * PAGE));
    equal!(probe()?.value(there + 700 * PAGE)?, 0);
    Ok(())
}

fn apart() -> Outcome {
    let domain = Domain::new()?;
    let there = Prober::within(&domain)?;
    let ((one, address), (other, _)) = (page(), page());
    poke(other, 0x77);
    delegate(one, root::HST, address, 0, perm::R | perm::W)?;
    equal!(there.read(address)?, fault(USER, address));
    delegate(other, domain.hst, address, 0, perm::R)?;
    equal!(there.value(address)?, 0x77);
    equal!(probe()?.value(address)?, 0x1122_3344_5566_7788);
    equal!(there.write(address, 1)?, fault(PRESENT | USER | WRITE, address));
    equal!(probe()?.write(address, 2)?, None);
    equal!(peek(other), 0x77);
    // And it is gone there when the call returns.
    delegate(other, domain.hst, address, 0, 0)?;
    equal!(there.read(address)?, fault(USER, address));
    Ok(())
}

fn nova_host() -> Outcome {
    let (page, there) = page();
    memory::map_physical(physical(page), there, 0, perm::R | perm::W, cache::WB)?;
    equal!(probe()?.value(there)?, 0x1122_3344_5566_7788);
    equal!(probe()?.write(there + 8, 3)?, None);
    equal!(peek(page + 8), 3);
    Ok(())
}

fn is_protected(page: u64) -> Outcome {
    let there = page_address();
    memory::map_physical(page, there, 0, perm::ALL, cache::UC)?;
    let fault = probe()?.read(there)?;
    check!(fault == self::fault(USER, there), "physical page {page:#x}: {fault:x?}");
    Ok(())
}

fn kernel_protected() -> Outcome {
    let (start, end) = (hip(hip::NOVA_START), hip(hip::NOVA_END));
    check!(start < end && start % PAGE == 0 && end % PAGE == 0, "{start:#x} to {end:#x}");
    let step = (end - start) / 64 / PAGE * PAGE;
    for page in (start..end).step_by(step.max(PAGE) as usize).chain([end - PAGE]) {
        let there = page_address();
        memory::map_physical(page, there, 0, perm::ALL, cache::WB)?;
        // What a kernel shows of itself, its own affair, can be read at most.
        let fault = probe()?.write(there, 0)?;
        check!(fault.is_some(), "physical page {page:#x} can be written");
    }
    for page in (start..end).step_by(PAGE as usize).take(16) {
        is_protected(page)?;
    }
    // Not even in the middle of a large range.
    let order = 9;
    let (first, there) = (start >> 21 << 21, memory::address(order));
    memory::map_physical(first, there, u64::from(order), perm::R, cache::WB)?;
    check!(probe()?.read(there + start - first)?.is_some(), "a large range uncovers the kernel");
    Ok(())
}

/// Physical addresses of the APICs, by the MADT (ACPI 6.5, 5.2.12).
fn controllers_protected() -> Outcome {
    let Some(madt) = acpi::find(b"APIC") else { return Err(Stop::Skipped("no MADT")) };
    let word = |at: usize| madt.get(at..at + 4).map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    is_protected(word(36).unwrap_or(0xfee0_0000))?;
    is_protected(0xfee0_0000)?;
    let mut at = 44;
    while let Some(&[kind, length]) = madt.get(at..at + 2)
        && length >= 2
    {
        if kind == 1 {
            is_protected(word(at + 4).unwrap_or(0))?;
        }
        at += usize::from(length);
    }
    // The first unit of an IOMMU (VT-d specification 8.3).
    let unit = acpi::find(b"DMAR").and_then(|dmar| dmar.get(56..64)?.try_into().ok().map(u64::from_le_bytes));
    unit.map_or(Ok(()), is_protected)
}

/// A delegation of what the kernel owns leaves a null capability.
fn cannot_be_delegated(page: u64) -> Outcome {
    let (other, there) = self::page();
    delegate(other, root::HST, there, 0, perm::R)?;
    delegate(page, root::HST, there, 0, perm::R | perm::W)?;
    equal!(probe()?.read(there)?, fault(USER, there));
    equal!(probe()?.read(page)?, None);
    Ok(())
}

fn utcb() -> Outcome {
    cannot_be_delegated(Utcb::root().address())?;
    cannot_be_delegated(lab::portal::Local::new()?.utcb.address())
}

fn information_page() -> Outcome {
    cannot_be_delegated(hip_address())
}

fn with_attributes(mad: u64) -> Status {
    let (page, there) = page();
    let delegation = Delegation {
        src: root::NOVA_HST,
        dst: root::HST,
        ssb: physical(page) / PAGE,
        dsb: there / PAGE,
        order: 0,
        mask: perm::R | perm::W,
        mad,
    };
    let status = ctrl_pd(&delegation);
    if status == SUCCESS {
        poke(there, 8);
        poke(there, peek(there) + 1);
    }
    status
}

fn cacheability() -> Outcome {
    for attribute in [cache::WB, cache::WT, cache::WC, cache::UC, cache::WP] {
        equal!(with_attributes(attribute), SUCCESS);
    }
    for reserved in 5..8 {
        equal!(with_attributes(reserved), BAD_PAR);
    }
    Ok(())
}

fn keys() -> Outcome {
    let last = hip(hip::KIMAX);
    if last < 0x7fff {
        equal!(with_attributes((last + 1) << 3), BAD_PAR);
        equal!(with_attributes(0x7fff << 3), BAD_PAR);
    }
    Ok(())
}

fn undefined_attributes() -> Outcome {
    equal!(with_attributes(1 << 18), SUCCESS);
    equal!(with_attributes(1 << 31), SUCCESS);
    equal!(with_attributes(0xfffc_0000), SUCCESS);
    // The parameter has 32 bits.
    equal!(with_attributes(1 << 32 | 1 << 63), SUCCESS);
    Ok(())
}

fn ignored_attributes() -> Outcome {
    let (page, there) = page();
    for mad in [7, 0x7fff << 3, u64::MAX] {
        let delegation = Delegation {
            src: root::HST,
            dst: root::HST,
            ssb: page / PAGE,
            dsb: there / PAGE,
            order: 0,
            mask: perm::R,
            mad,
        };
        equal!(ctrl_pd(&delegation), SUCCESS);
        equal!(probe()?.value(there)?, 0x1122_3344_5566_7788);
    }
    Ok(())
}
