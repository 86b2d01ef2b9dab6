//! Keeps the virtual machines, and drivers and switches: when one has ended, and the kernel has taken back what it used, its memory is free again,
//! and the plan says whether it is started anew.

use crate::authority::selector;
use crate::child::Place;
use crate::drivers::Server;
use crate::workshop::{VmRings, Workshop};
use crate::{passthrough, reclaim, scrub, service};
use abi::Status;
use abi::scd::Scd;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use plan::VmPlan;
use roottask::restart::{Decision, History};
use runtime::manifest::selector as own;
use runtime::sync::Semaphore;
use runtime::{log, syscall, thread, time};

/// Above all programs, so that none keeps another from being started anew; below the watchdog.
const SCD: Scd = Scd { budget: 10, priority: 115, cos: 0 };

static OVER: AtomicBool = AtomicBool::new(false);

/// A virtual machine of the plan.
pub struct Machine {
    place: Place,
    plan: VmPlan,
    rings: VmRings,
    /// Numbers of the functions that it has to itself.
    functions: Vec<usize>,
    history: History,
    /// STC value at its last start.
    started: u64,
    state: State,
}

enum State {
    Runs,
    /// Is started anew at this STC value.
    Waits(u64),
    Over,
}

/// Whether all virtual machines have ended and none will be started anew.
pub fn over() -> bool {
    OVER.load(Ordering::Acquire)
}

/// Has the keeper look again.
pub fn wake() {
    Semaphore::from_selector(selector::SETTLED).up();
}

/// Starts the thread that keeps `machines` and `servers`, which run.
pub fn start(mut workshop: Workshop, mut machines: Vec<Machine>, mut servers: Vec<Server>) -> Result<(), Status> {
    syscall::create_sm(selector::SETTLED, own::PROTECTION_DOMAIN, 0)?;
    scrub::start()?;
    thread::spawn(SCD, move || {
        while !machines.iter().all(|machine| matches!(machine.state, State::Over)) {
            // Spurious wake-ups do no harm.
            let _ = Semaphore::from_selector(selector::SETTLED).wait(next(&machines, &servers));
            servers.iter_mut().for_each(|server| server.keep(&mut workshop));
            machines.iter_mut().for_each(|machine| machine.keep(&mut workshop));
        }
        OVER.store(true, Ordering::Release);
        Semaphore::from_selector(selector::EVENTS).up();
    })?;
    Ok(())
}

/// When the next machine or server is due; 0: none is.
fn next(machines: &[Machine], servers: &[Server]) -> u64 {
    let due = |machine: &Machine| match machine.state {
        State::Waits(due) => Some(due.max(1)),
        _ => None,
    };
    machines.iter().filter_map(due).chain(servers.iter().filter_map(Server::due)).min().unwrap_or(0)
}

impl Machine {
    /// The machine of `plan`, just started at `place`.
    pub fn new(place: Place, plan: VmPlan, rings: VmRings, functions: Vec<usize>) -> Self {
        let (history, started) = (History::default(), time::now());
        Self { place, plan, rings, functions, history, started, state: State::Runs }
    }

    /// Does what is to be done now.
    fn keep(&mut self, workshop: &mut Workshop) {
        passthrough::serve(self.place.id, &self.functions, &mut workshop.platform);
        if matches!(self.state, State::Runs)
            && let Some((how, taken_back)) = service::settled(self.place.id)
        {
            let name = &self.plan.config.name;
            // The kernel has taken their DMA space already; they are to raise no interrupts either.
            self.functions.iter().for_each(|function| workshop.platform.quiet(*function));
            if taken_back {
                let memory = self.place.vacate(&mut workshop.free);
                let free = workshop.free.total();
                log!("root: vm {name}: {} KiB of memory came back, {} KiB are free", memory >> 10, free >> 10);
            }
            let lived = time::nanoseconds(time::now() - self.started, time::frequency()) / 1_000_000;
            self.state = match self.history.decide(&self.plan.restart, how, lived, taken_back) {
                Decision::Start(ms) => {
                    if ms != 0 {
                        log!("root: vm {name} is started again in {ms} ms");
                    }
                    State::Waits(time::now() + time::ticks_from_ms(ms))
                }
                Decision::Leave => State::Over,
                Decision::Refuse(why) => {
                    log!("root: vm {name} is not started again: {why}");
                    State::Over
                }
            };
        }
        if matches!(self.state, State::Waits(due) if time::now() >= due) {
            self.start(workshop);
        }
    }

    /// Starts it anew.
    fn start(&mut self, workshop: &mut Workshop) {
        let name = &self.plan.config.name;
        self.rings.recover();
        self.started = time::now();
        let Err(failure) = workshop.monitor(&mut self.place, &self.plan, &self.rings, &self.functions) else {
            let number = self.history.restarts();
            match self.plan.restart.limit {
                Some(limit) => log!("root: started vm {name} again ({number} of {limit})"),
                None => log!("root: started vm {name} again ({number})"),
            }
            self.state = State::Runs;
            return;
        };
        log!("root: vm {name} cannot be started again: {failure}");
        // Without a protection domain there is nothing to take back.
        let gone = matches!(reclaim::destroy(self.place.id), Ok(()) | Err(Status::BadCap));
        service::settle(self.place.id, gone);
        self.functions.iter().for_each(|function| workshop.platform.quiet(*function));
        if gone {
            self.place.vacate(&mut workshop.free);
        }
        self.state = State::Over;
    }
}
