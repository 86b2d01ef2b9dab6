//! Finds programs that loop for ever: an EC whose sign of life ([`runtime::pulse`]) says that it runs, and has said so
//! without change for [`LIMIT_MS`], is recalled, so that the report can tell where it is, and killed.

use crate::authority::selector;
use crate::service;
use abi::capability::Permissions;
use abi::scd::Scd;
use abi::{Selector, Status};
use alloc::vec::Vec;
use runtime::manifest::selector as own;
use runtime::pulse::{Pulse, SLOTS};
use runtime::{sync, syscall, thread, time};

/// Milliseconds between looks.
const INTERVAL_MS: u64 = 1000;
/// Milliseconds without a change after which an EC counts as stuck. The longest honest piece of work is loading a
/// guest, which takes a second or two in the slowest emulator.
const LIMIT_MS: u64 = 10_000;
/// Above everything: a program that loops must not keep the watchdog from running.
const SCD: Scd = Scd { budget: 10, priority: 126, cos: 0 };

/// A child as the watchdog sees it.
pub struct Watched {
    /// Its number.
    pub id: usize,
    /// Which of the children that had this number.
    pub instance: u32,
    /// Its object space, in the root object space.
    pub objects: Selector,
    /// Its signs of life.
    pub pulses: &'static [Pulse; SLOTS],
}

/// What was seen of one EC: its counter, and since when.
#[derive(Clone, Copy, Default)]
struct Seen {
    count: Option<u64>,
    since: u64,
    recalled: bool,
}

/// Starts watching all children.
pub fn start() -> Result<(), Status> {
    let mut children: Vec<_> = (0..service::count()).map(|_| (0, [Seen::default(); SLOTS])).collect();
    let mut accused = false;
    thread::spawn(SCD, move || {
        loop {
            sync::sleep_until(time::now() + time::ticks_from_ms(INTERVAL_MS));
            // A conviction clears the others: they may have been kept from running.
            if core::mem::replace(&mut accused, false) && service::nobody_suspected() {
                children.iter_mut().for_each(|(_, seen)| *seen = [Seen::default(); SLOTS]);
            }
            for (id, (instance, seen)) in children.iter_mut().enumerate() {
                let Some(child) = service::watched(id) else { continue };
                if core::mem::replace(instance, child.instance) != child.instance {
                    *seen = [Seen::default(); SLOTS];
                }
                accused |= look(&child, seen);
            }
        }
    })?;
    Ok(())
}

/// Looks at one child; whether it has been recalled.
fn look(child: &Watched, seen: &mut [Seen; SLOTS]) -> bool {
    let mut accused = false;
    let now = time::now();
    for (pulse, seen) in child.pulses.iter().zip(seen) {
        let count = pulse.running();
        if count.is_none() || count != seen.count {
            *seen = Seen { count, since: now, recalled: false };
        } else if now.saturating_sub(seen.since) >= time::ticks_from_ms(LIMIT_MS) {
            let ec = pulse.ec.load(core::sync::atomic::Ordering::Relaxed);
            accused = true;
            // The second time around the recall has not been answered.
            if core::mem::replace(&mut seen.recalled, true) || recall(child, ec).is_err() {
                service::end_stuck(child);
            }
            seen.since = now;
        }
    }
    accused
}

/// Makes the child's EC at its selector `ec` enter the portal where [`service`] reports and kills it.
fn recall(child: &Watched, ec: Selector) -> Result<(), Status> {
    syscall::delegate_object(child.objects, ec, own::OBJECT_SPACE, selector::STUCK, Permissions::CTRL)?;
    service::suspect(child.id);
    syscall::ctrl_ec(selector::STUCK, false)
}
