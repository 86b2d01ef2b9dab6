//! What a root task has at its start (6.2.3.1), and what it takes from the NOVA object space (6.1.3.1).

use super::event::Event;
use super::portal::Local;
use crate::entry::{hip, stop, testing};
use crate::hypercall::{Delegation, ctrl_pd};
use crate::report::{Outcome, must};
use crate::spec::{SUCCESS, Selector, field, hip as page, mtd, perm};
use crate::{console, println};

/// Selector base of execution contexts that raise no events: there are no portals.
pub const NO_EVENTS: Selector = 0x800;

/// The NOVA host space.
pub const NOVA_HST: Selector = 0x40;
/// The NOVA PIO space.
pub const NOVA_PIO: Selector = 0x41;
/// The NOVA MSR space.
pub const NOVA_MSR: Selector = 0x42;
/// The root host space.
pub const HST: Selector = 0x43;
/// The root PIO space.
pub const PIO: Selector = 0x44;
/// Signalled at the end of the kernel's lines.
pub const CONSOLE: Selector = 0x45;

/// Number of selectors in an object space.
pub fn selector_count() -> u64 {
    hip(page::SEL_NUM)
}

/// The NOVA object space.
pub fn nova_obj() -> Selector {
    selector_count() - 1
}

/// The root object space.
pub fn obj() -> Selector {
    selector_count() - 2
}

/// The root protection domain.
pub fn pd() -> Selector {
    selector_count() - 3
}

/// The root execution context.
pub fn ec() -> Selector {
    selector_count() - 4
}

/// The root scheduling context.
pub fn sc() -> Selector {
    selector_count() - 5
}

/// The CPU on which the root execution context runs.
pub fn cpu() -> u64 {
    hip(page::CPU_BSP)
}

/// Number of CPUs.
pub fn cpus() -> u64 {
    hip(page::CPU_NUM)
}

/// Number of exceptions.
pub fn host_events() -> u16 {
    hip(page::SEL_HST_ARCH) as u16
}

/// Takes a capability of the NOVA object space to `to`, with `mask`.
pub fn from_nova(selector: Selector, to: Selector, mask: u64) -> crate::spec::Status {
    ctrl_pd(&Delegation { src: nova_obj(), dst: obj(), ssb: selector, dsb: to, order: 0, mask, mad: 0 })
}

/// Takes what every test may use, and the console's ports. Without them nothing can be said: the machine stops.
pub(crate) fn take() {
    let last = selector_count();
    let taken = [(1, CONSOLE), (3, NOVA_HST), (4, NOVA_PIO), (5, NOVA_MSR), (7, HST), (8, PIO)]
        .into_iter()
        .all(|(from, to)| from_nova(last - from, to, perm::ALL) == SUCCESS);
    let com1 = u64::from(console::COM1);
    let ports = Delegation { src: NOVA_PIO, dst: PIO, ssb: com1, dsb: com1, order: 3, mask: perm::A, mad: 0 };
    if !taken || ctrl_pd(&ports) != SUCCESS {
        stop();
    }
}

/// Installs handlers for what the root execution context itself does wrong: a last word.
pub(crate) fn guard() {
    if install_guard().is_err() {
        println!("# the root execution context is not guarded");
    }
}

fn install_guard() -> Outcome {
    let handler = Local::new()?;
    for number in 0..host_events() {
        let mtd = mtd::RIP | mtd::QUAL | mtd::GPR_0_7;
        handler.portal_at(u64::from(number), mtd, move |message| {
            last_words(&Event { number, mtd: message.mtd, utcb: message.utcb });
            mtd::POISON
        })?;
    }
    must(SUCCESS)
}

/// Says what event nobody expected.
pub fn last_words(event: &Event) {
    println!(
        "Bail out! {}: event {:#x} at RIP {:#x}, RSP {:#x}, qualifications {:#x} {:#x}",
        testing(),
        event.number,
        event.utcb.get(field::RIP),
        event.utcb.get(field::RSP),
        event.utcb.get(field::QUALIFICATION_1),
        event.utcb.get(field::QUALIFICATION_2),
    );
}
