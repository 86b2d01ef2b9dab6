//! create_ec (2.2, 4.3, 5.3.2).

use lab::capability::{self, empty_pd, global_thread, guests, idle_thread, space};
use lab::entry::{hip, user_end};
use lab::hypercall::{NewEc, create, create_ec, create_pt, create_sc, ctrl_ec, flag};
use lab::memory::{self, PAGE};
use lab::portal::Local;
use lab::report::{Outcome, Stop, must};
use lab::spec::{ABORTED, BAD_CPU, BAD_FTR, BAD_PAR, SUCCESS, Selector, Status, feature, hip, scd};
use lab::{check, equal, probe, root, selector, tests};

tests! {
    "create_ec::local and global threads can be created" => threads,
    "create_ec::a thread comes with all its defined permissions" => permissions,
    "create_ec::the UTCB is mapped at its page, readable and writable" => utcb_mapped,
    "create_ec::the UTCB begins with zeros" => utcb_zero,
    "create_ec::the UTCB must lie in user-accessible memory" => utcb_address,
    "create_ec::the CPU must exist" => cpu,
    "create_ec::a host EC needs object, host and PIO space" => host_spaces,
    "create_ec::a guest EC needs object and host space" => guest_spaces,
    "create_ec::a guest EC needs virtualization" => guest_feature,
    "create_ec::the vAPIC page of a guest EC is mapped" => vapic,
    "create_ec::on SVM a guest EC's page is ignored" => page_ignored,
}

fn new(flags: u8, change: impl Fn(&mut NewEc)) -> Status {
    let mut new = NewEc { flags, ..global_thread() };
    change(&mut new);
    create_ec(selector(), &new)
}

fn threads() -> Outcome {
    for flags in [0, flag::EC_GLOBAL, flag::EC_FPU, flag::EC_GLOBAL | flag::EC_FPU] {
        equal!(new(flags, |_| ()), SUCCESS);
    }
    Ok(())
}

fn permissions() -> Outcome {
    let local = Local::new()?;
    equal!(create_pt(selector(), root::pd(), local.ec, 0), SUCCESS);
    equal!(ctrl_ec(local.ec, 0), SUCCESS);
    let global = idle_thread()?;
    equal!(create_sc(selector(), root::pd(), global, scd(1, 1, 0)), SUCCESS);
    Ok(())
}

fn utcb_mapped() -> Outcome {
    let page = memory::page_address();
    check!(probe::read(page)?.is_some(), "something is mapped there before");
    equal!(new(0, |new| new.page = page), SUCCESS);
    for offset in [0, 8, PAGE - 8] {
        equal!(probe::root()?.write(page + offset, 0x1234 + offset)?, None);
        equal!(probe::root()?.value(page + offset)?, 0x1234 + offset);
    }
    let fault = probe::root()?.execute(page)?;
    check!(fault.is_some_and(|fault| fault.number == lab::spec::event::PF), "a UTCB is executable: {fault:?}");
    check!(probe::read(page + PAGE)?.is_some(), "more than a page is mapped");
    Ok(())
}

fn utcb_zero() -> Outcome {
    let page = memory::page_address();
    equal!(new(0, |new| new.page = page), SUCCESS);
    for offset in (0..PAGE).step_by(8) {
        equal!(memory::peek(page + offset), 0);
    }
    Ok(())
}

fn utcb_address() -> Outcome {
    let last = memory::page_address();
    equal!(new(0, |new| new.page = last), SUCCESS);
    let sel = selector();
    for page in [user_end(), user_end() + PAGE, 1 << 56, 0xffff_8000_0000_0000, 0xffff_ffff_8000_0000, !0xfff] {
        for flags in [0, flag::EC_GLOBAL] {
            let status = create_ec(sel, &NewEc { page, flags, ..global_thread() });
            check!(status == BAD_PAR, "UTCB at {page:#x}: {status:?}");
        }
    }
    check!(!capability::exists(sel));
    Ok(())
}

fn cpu() -> Outcome {
    for cpu in [root::cpus(), root::cpus() + 1, 0x7ff, 0xfff] {
        for flags in [0, flag::EC_GLOBAL] {
            let status = new(flags, |new| new.cpu = cpu);
            check!(status == BAD_CPU, "CPU {cpu:#x}: {status:?}");
        }
        if guests() {
            equal!(new(flag::EC_GUEST, |new| new.cpu = cpu), BAD_CPU);
        }
    }
    Ok(())
}

/// A protection domain with these spaces.
fn domain(operations: &[u8]) -> Result<Selector, Stop> {
    let pd = empty_pd()?;
    operations.iter().try_for_each(|&operation| space(pd, operation).map(|_| ()))?;
    Ok(pd)
}

fn host_spaces() -> Outcome {
    use create::{HST, OBJ, PIO};
    for operations in [&[][..], &[OBJ], &[HST], &[PIO], &[HST, PIO], &[OBJ, PIO], &[OBJ, HST]] {
        let pd = domain(operations)?;
        for flags in [0, flag::EC_GLOBAL] {
            let status = new(flags, |new| new.pd = pd);
            check!(status == ABORTED, "with spaces {operations:?}: {status:?}");
        }
    }
    let pd = domain(&[OBJ, HST, PIO])?;
    equal!(new(0, |new| new.pd = pd), SUCCESS);
    equal!(new(flag::EC_GLOBAL, |new| new.pd = pd), SUCCESS);
    Ok(())
}

fn guest_spaces() -> Outcome {
    use create::{GST, HST, MSR, OBJ, PIO};
    if !guests() {
        return Err(Stop::Skipped("no virtualization"));
    }
    for operations in [&[][..], &[OBJ, PIO, GST, MSR], &[HST, PIO, GST, MSR]] {
        let pd = domain(operations)?;
        let status = new(flag::EC_GUEST, |new| new.pd = pd);
        check!(status == ABORTED, "with spaces {operations:?}: {status:?}");
    }
    let pd = domain(&[OBJ, HST])?;
    equal!(new(flag::EC_GUEST, |new| new.pd = pd), SUCCESS);
    equal!(new(flag::EC_GUEST | flag::EC_GLOBAL, |new| new.pd = pd), SUCCESS);
    equal!(new(flag::EC_GUEST | flag::EC_FPU, |new| new.pd = pd), SUCCESS);
    Ok(())
}

fn guest_feature() -> Outcome {
    let expected = if guests() { SUCCESS } else { BAD_FTR };
    equal!(new(flag::EC_GUEST, |_| ()), expected);
    Ok(())
}

fn vmx() -> bool {
    hip(hip::PLATFORM_FEATURES) & feature::VMX != 0
}

fn vapic() -> Outcome {
    if !vmx() {
        return Err(Stop::Skipped("no VMX"));
    }
    let page = memory::page_address();
    must(new(flag::EC_GUEST, |new| new.page = page))?;
    equal!(probe::root()?.write(page + 0x80, 0x20)?, None);
    equal!(probe::root()?.value(page + 0x80)?, 0x20);
    equal!(new(flag::EC_GUEST, |new| new.page = user_end()), BAD_PAR);
    Ok(())
}

fn page_ignored() -> Outcome {
    if vmx() || !guests() {
        return Err(Stop::Skipped("no SVM"));
    }
    let page = memory::page_address();
    equal!(new(flag::EC_GUEST, |new| new.page = page), SUCCESS);
    check!(probe::read(page)?.is_some(), "a page is mapped");
    equal!(new(flag::EC_GUEST, |new| new.page = user_end()), SUCCESS);
    equal!(new(flag::EC_GUEST, |new| new.page = !0xfff), SUCCESS);
    Ok(())
}
