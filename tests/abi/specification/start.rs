//! What the root protection domain begins with (6.1.3, 6.2, 8.1.2, 8.3.1).

use core::sync::atomic::Ordering::Relaxed;

use lab::capability::{copy, exists, idle_thread, reduced};
use lab::entry::{hip, loader_information, loader_magic, user_end};
use lab::hypercall::{Delegation, create, create_pd, create_pt, create_sc, ctrl_ec, ctrl_pd, ctrl_sc, ctrl_sm, flag};
use lab::memory::{self, PAGE, peek, physical};
use lab::portal::Local;
use lab::probe::{self, FETCH, PRESENT, RETURN, USER, WRITE};
use lab::report::{Outcome, Stop, must};
use lab::spec::{ABORTED, BAD_CAP, BAD_PAR, SUCCESS, Selector, TIMEOUT, event, field, hip, mtd, perm};
use lab::{acpi, check, equal, number, provoke, root, selector, tests};

tests! {
    "start::RSP points to the information page, at the end of user addresses" => stack_pointer,
    "start::RDI and RSI are the boot loader's EAX and EBX" => loader,
    "start::the boot loader's information has a memory map" => memory_map,
    "start::the image's segments are mapped with their permissions" => segments,
    "start::the image is where the boot loader put it" => in_place,
    "start::nothing else is mapped" => nothing_else,
    "start::the root UTCB is below the information page" => utcb,
    "start::the root object space holds five capabilities" => capabilities,
    "start::the root PD's capability has all permissions" => pd,
    "start::the root EC's capability has all permissions" => ec,
    "start::the root EC's event base is 0" => event_base,
    "start::the NOVA object space can be taken from, not granted to" => nova_object_space,
    "start::the NOVA spaces can be taken from, not granted to" => nova_spaces,
    "start::the root spaces have all permissions" => root_spaces,
    "start::the console semaphore has permissions UP and DOWN" => console,
}

fn stack_pointer() -> Outcome {
    equal!(hip(hip::SIGNATURE), hip::MAGIC);
    let end = user_end();
    check!(end.is_power_of_two() && (1 << 47..=1 << 56).contains(&end), "user addresses end at {end:#x}");
    Ok(())
}

/// What multiboot2 loaders leave in EAX, and what multiboot1 loaders do.
const MULTIBOOT: [u64; 2] = [0x36d7_6289, 0x2bad_b002];

/// The multiboot2 information.
fn information() -> Result<alloc::vec::Vec<u8>, Stop> {
    if loader_magic() != MULTIBOOT[0] {
        return Err(Stop::Skipped("not booted by multiboot2"));
    }
    let head = acpi::read(loader_information(), 8).unwrap_or_default();
    let size = head.first_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size)) as usize;
    acpi::read(loader_information(), size.min(1 << 20)).ok_or(Stop::Skipped("its information cannot be had"))
}

fn loader() -> Outcome {
    if !MULTIBOOT.contains(&loader_magic()) {
        return Err(Stop::Skipped("not booted by multiboot"));
    }
    let information = information()?;
    equal!(information[4..8], [0; 4]);
    // The last tag ends it.
    equal!(information[information.len() - 8..], [0, 0, 0, 0, 8, 0, 0, 0]);
    Ok(())
}

fn memory_map() -> Outcome {
    let information = information()?;
    let mut rest = &information[8..];
    while let Some((kind, size)) = rest.first_chunk::<8>().map(|tag| (tag[0], usize::from(tag[4]) | usize::from(tag[5]) << 8)) {
        if kind == 6 {
            return Ok(());
        }
        rest = rest.get(size.max(8).next_multiple_of(8)..).unwrap_or_default();
    }
    Err(lab::report::failed("no memory map".into()))
}

fn segments() -> Outcome {
    for (start, _, executable, writable) in memory::segments() {
        check!(probe::read(start)?.is_none(), "{start:#x} cannot be read");
        // The same value, so that nothing is damaged.
        let fault = probe::root()?.write(start, peek(start))?.map(|fault| fault.error);
        equal!(fault, if writable { None } else { Some(PRESENT | USER | WRITE) });
        if !executable {
            equal!(probe::root()?.execute(start)?.map(|fault| fault.error), Some(PRESENT | USER | FETCH));
        }
    }
    let page = memory::pages(1);
    memory::poke(page, RETURN);
    check!(probe::root()?.execute(page)?.is_some(), "data can be executed");
    Ok(())
}

fn in_place() -> Outcome {
    for (start, end, ..) in memory::segments() {
        for address in [start, end - PAGE] {
            check!(physical(address) >= hip(hip::ROOT_START) && physical(address) + PAGE <= hip(hip::ROOT_END));
            let window = memory::page_address();
            memory::map_physical(physical(address), window, 0, perm::R, 0)?;
            equal!(peek(window + 8), peek(address + 8));
        }
    }
    Ok(())
}

fn nothing_else() -> Outcome {
    let [(start, ..), _, (_, end, ..)] = memory::segments();
    let neighbours = [0, PAGE, start - PAGE, end.next_multiple_of(PAGE), 1 << 30, 1 << 39, user_end() / 2];
    for address in neighbours.into_iter().chain([user_end() - 3 * PAGE]) {
        check!(probe::read(address)?.is_some(), "{address:#x} is mapped");
    }
    Ok(())
}

fn utcb() -> Outcome {
    let utcb = user_end() - 2 * PAGE;
    for offset in [0, PAGE - 8] {
        equal!(probe::root()?.write(utcb + offset, 0x55)?, None);
    }
    check!(probe::root()?.execute(utcb)?.is_some(), "the UTCB is executable");
    Ok(())
}

fn capabilities() -> Outcome {
    for own in [root::nova_obj(), root::obj(), root::pd(), root::ec(), root::sc()] {
        check!(exists(own), "nothing at {own:#x}");
    }
    let last = root::sc() - 1;
    for empty in (0x100..0x400).chain(last - 64..=last) {
        check!(!exists(empty), "something at {empty:#x}");
    }
    equal!(ctrl_sc(root::sc()).0, SUCCESS);
    Ok(())
}

fn pd() -> Outcome {
    for operation in [create::PD, create::PIO] {
        equal!(create_pd(selector(), root::pd(), operation), SUCCESS);
    }
    // It has both of these already.
    for operation in [create::OBJ, create::HST] {
        equal!(create_pd(selector(), root::pd(), operation), ABORTED);
    }
    let ec = idle_thread()?;
    equal!(create_sc(selector(), root::pd(), ec, lab::spec::scd(1, 1, 0)), SUCCESS);
    equal!(create_pt(selector(), root::pd(), Local::new()?.ec, 0), SUCCESS);
    lab::semaphore::Semaphore::new(0).map(|_| ())
}

fn ec() -> Outcome {
    // A global thread that has its SC: what is missing is not the permission.
    equal!(create_sc(selector(), root::pd(), root::ec(), lab::spec::scd(1, 1, 0)), ABORTED);
    let without = reduced(root::ec(), perm::ALL & !perm::CTRL)?;
    equal!(ctrl_ec(without, 0), BAD_CAP);
    // A recall needs a portal.
    let pt = u64::from(lab::event::recall());
    let count = number(0);
    Local::new()?.portal_at(pt, mtd::RIP, move |_| {
        count.fetch_add(1, Relaxed);
        0
    })?;
    equal!(ctrl_ec(root::ec(), flag::RECALL_STRONG), SUCCESS);
    equal!(count.load(Relaxed), 1);
    lab::capability::drop(pt)
}

fn event_base() -> Outcome {
    let pt = u64::from(event::UD);
    let aside = selector();
    must(copy(pt, aside, perm::ALL))?;
    lab::capability::drop(pt)?;
    let count = number(0);
    Local::new()?.portal_at(pt, mtd::RIP, move |message| {
        count.fetch_add(1, Relaxed);
        message.utcb.set(field::RIP, message.utcb.get(field::RIP) + 2);
        mtd::RIP
    })?;
    provoke::undefined();
    equal!(count.load(Relaxed), 1);
    must(copy(aside, pt, perm::ALL))
}

fn take(src: Selector, dst: Selector, at: u64) -> lab::spec::Status {
    ctrl_pd(&Delegation { src, dst, ssb: at, dsb: at, order: 0, mask: 0, mad: 0 })
}

fn nova_object_space() -> Outcome {
    equal!(take(root::nova_obj(), root::obj(), selector()), SUCCESS);
    equal!(take(root::obj(), root::nova_obj(), selector()), BAD_CAP);
    // It holds itself, no better.
    let again = selector();
    equal!(root::from_nova(root::selector_count() - 2, again, perm::ALL), SUCCESS);
    equal!(take(again, root::obj(), selector()), SUCCESS);
    equal!(take(root::obj(), again, selector()), BAD_CAP);
    Ok(())
}

fn nova_spaces() -> Outcome {
    let msr = lab::capability::space(root::pd(), create::MSR)?;
    for (nova, own, at) in
        [(root::NOVA_HST, root::HST, 0x10), (root::NOVA_PIO, root::PIO, 0x80), (root::NOVA_MSR, msr, 0x10)]
    {
        equal!(take(nova, own, at), SUCCESS);
        equal!(take(own, nova, at), BAD_CAP);
    }
    Ok(())
}

fn root_spaces() -> Outcome {
    let own = selector();
    equal!(root::from_nova(root::selector_count() - 6, own, perm::ALL), SUCCESS);
    for (space, at) in [(own, selector()), (root::HST, memory::page_address() >> 12), (root::PIO, 0x80), (root::obj(), selector())] {
        equal!(take(space, space, at), SUCCESS);
    }
    // The PIO space is the first of the root PD: a reply could assign it, and what it holds is the root EC's.
    equal!(lab::hypercall::ctrl_pd(&Delegation { src: root::PIO, dst: root::PIO, ssb: 0, dsb: 1, order: 0, mask: 0, mad: 0 }), BAD_PAR);
    Ok(())
}

fn console() -> Outcome {
    equal!(ctrl_sm(root::CONSOLE, 0, 0), SUCCESS);
    equal!(ctrl_sm(root::CONSOLE, flag::SM_DOWN | flag::SM_ZERO, 0), SUCCESS);
    equal!(ctrl_sm(root::CONSOLE, flag::SM_DOWN, 1), TIMEOUT);
    Ok(())
}
