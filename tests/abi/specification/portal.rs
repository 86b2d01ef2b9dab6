//! Portals: create_pt and ctrl_pt (2.4, 5.3.4, 5.4.4).

use lab::capability::{Kind, copy, drop, idle_thread, needs, only_kind};
use lab::hypercall::{NewEc, create_ec, create_pt, ctrl_pt, ipc_call};
use lab::memory::{self, page_address, stack};
use lab::report::{Outcome, Stop, must};
use lab::registers::{Record, bare_portal_address};
use lab::spec::{BAD_CAP, SUCCESS, Selector, perm, words};
use lab::{check, equal, root, selector, tests};

tests! {
    "portal::identifier and descriptor are 0 at first" => initial,
    "portal::the callee begins at the portal's address, with identifier and descriptor" => entry,
    "portal::the callee begins with the stack pointer of its creation" => stack_pointer,
    "portal::ctrl_pt changes the identifier for the next calls" => identifier,
    "portal::a call goes to what is at its selector then" => replaced,
    "portal::two portals of an EC have identifiers of their own" => two,
    "portal::ctrl_pt needs a PT with permission CTRL" => control,
    "portal::ipc_call needs a PT with permission CALL" => call,
    "portal::only a local thread can be bound" => only_local,
}

/// A local thread whose portals note their registers: its capability, and where the notes are.
pub fn noting() -> Result<(Selector, u64), Stop> {
    let (ec, record) = (selector(), stack() - 4096);
    let new = NewEc { pd: root::pd(), page: page_address(), cpu: root::cpu(), sp: record, events: 0, flags: 0 };
    must(create_ec(ec, &new))?;
    Ok((ec, record))
}

/// What was noted.
pub fn noted(record: u64) -> Record {
    let word = |index: u64| memory::peek(record + 8 * index);
    Record { pid: word(0), mtd: word(1), rcx: word(2), r11: word(3), rsp: word(4), rflags: word(5) }
}

fn bound() -> Result<(Selector, u64), Stop> {
    let (ec, record) = noting()?;
    let pt = selector();
    must(create_pt(pt, root::pd(), ec, bare_portal_address()))?;
    Ok((pt, record))
}

fn initial() -> Outcome {
    let (pt, record) = bound()?;
    memory::poke(record, 1);
    equal!(ipc_call(pt, words(1), 0), (SUCCESS, words(1)));
    equal!(noted(record).pid, 0);
    Ok(())
}

fn entry() -> Outcome {
    let (pt, record) = bound()?;
    for pid in [1, u64::MAX, 0x8000_0000_0000_0000, 0x1234_5678_9abc_def0] {
        equal!(ctrl_pt(pt, pid, 0), SUCCESS);
        equal!(ipc_call(pt, words(17), 0).0, SUCCESS);
        let noted = noted(record);
        let rcx = bare_portal_address();
        equal!(noted, Record { pid, mtd: u64::from(words(17)), rcx, r11: 0x202, rsp: record, rflags: noted.rflags });
        equal!(noted.rflags & !0xd5, 0x202);
    }
    Ok(())
}

fn stack_pointer() -> Outcome {
    let (pt, record) = bound()?;
    for _ in 0..3 {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(noted(record).rsp, record);
        memory::poke(record + 32, 0);
    }
    Ok(())
}

fn identifier() -> Outcome {
    let (pt, record) = bound()?;
    for pid in [5, 6, 0] {
        equal!(ctrl_pt(pt, pid, 0), SUCCESS);
        for _ in 0..2 {
            equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
            equal!(noted(record).pid, pid);
        }
    }
    Ok(())
}

fn replaced() -> Outcome {
    let (pt, record) = bound()?;
    let (ec, other_record) = noting()?;
    let other = selector();
    must(create_pt(other, root::pd(), ec, bare_portal_address()))?;
    must(ctrl_pt(pt, 1, 0))?;
    must(ctrl_pt(other, 2, 0))?;
    for _ in 0..2 {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
    }
    equal!(noted(record).pid, 1);
    for _ in 0..2 {
        must(copy(other, pt, perm::CALL))?;
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(noted(other_record).pid, 2);
        memory::poke(other_record, 0);
        must(copy(other, pt, perm::CTRL))?;
        equal!(ipc_call(pt, words(1), 0).0, BAD_CAP);
    }
    must(copy(other, pt, perm::CALL))?;
    equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
    drop(pt)?;
    equal!(ipc_call(pt, words(1), 0).0, BAD_CAP);
    Ok(())
}

fn two() -> Outcome {
    let (ec, record) = noting()?;
    let portals = [selector(), selector()];
    for (pid, pt) in portals.into_iter().enumerate() {
        equal!(create_pt(pt, root::pd(), ec, bare_portal_address()), SUCCESS);
        equal!(ctrl_pt(pt, 100 + pid as u64, 0), SUCCESS);
    }
    for (pid, pt) in portals.into_iter().enumerate().rev() {
        equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
        equal!(noted(record).pid, 100 + pid as u64);
    }
    Ok(())
}

fn control() -> Outcome {
    only_kind(&[Kind::Pt], |pt| ctrl_pt(pt, 1, 0))?;
    let (pt, record) = bound()?;
    needs(pt, perm::CTRL, |pt| ctrl_pt(pt, 9, 0))?;
    equal!(ipc_call(pt, words(1), 0).0, SUCCESS);
    equal!(noted(record).pid, 9);
    Ok(())
}

fn call() -> Outcome {
    only_kind(&[Kind::Pt], |pt| ipc_call(pt, words(1), 0).0)?;
    needs(bound()?.0, perm::CALL, |pt| ipc_call(pt, words(1), 0).0)
}

fn only_local() -> Outcome {
    let sel = selector();
    equal!(create_pt(sel, root::pd(), idle_thread()?, 0), BAD_CAP);
    equal!(create_pt(sel, root::pd(), root::ec(), 0), BAD_CAP);
    check!(!lab::capability::exists(sel));
    Ok(())
}
