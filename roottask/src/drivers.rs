//! Drivers and switches: built, and built anew when they have died.
//!
//! When a driver has died its device is quiet before anything else happens: before its memory is free, before its clients'
//! rings are made ready for a successor. The clients ask that one again for what the dead one had not done.

use crate::child::{Builder, Failure, Place, Shape, kernel};
use crate::links::{End, Links};
use crate::service::Purpose;
use crate::workshop::{Workshop, must};
use crate::{platform, reclaim, service, window};
use abi::Status;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{DriverPlan, Restart, RestartAfter, SystemPlan};
use roottask::frames::PhysRange;
use roottask::pci::Use;
use roottask::restart::{Decision, History};
use runtime::{log, time};

/// Most interrupts of a driver.
const INTERRUPTS: u16 = 4;
/// Largest BAR that a driver gets.
const BAR_MAX: u64 = 1 << 30;
/// Where devices find memory, if DMA is remapped: below 4 GiB, as some have no more bits, and below the messages.
const DEVICE_ADDRESSES: PhysRange = PhysRange::new(0x1000_0000, 0xf000_0000);
/// Each piece begins at a large page.
const DEVICE_STEP: u64 = 2 << 20;
/// A program that lived this long, in milliseconds, has served somebody; its successor is started without delay.
const SETTLED_MS: u64 = 200;
/// What follows the end of a driver or a switch; nobody can do without them.
const RESTART: Restart = Restart { after: RestartAfter::Any, limit: None, delay: 10 };

/// A driver or a switch.
pub struct Server {
    place: Place,
    name: String,
    program: String,
    config: Vec<u8>,
    ends: Vec<End>,
    device: Option<Device>,
    history: History,
    /// STC value at its last start.
    started: u64,
    /// When it is killed for a test, as an STC value, and how often, in milliseconds.
    kill: Option<(u64, u32)>,
    state: State,
}

/// What a driver has beside its rings.
struct Device {
    /// Number of its function.
    function: usize,
    /// Bytes of memory that it shares with it.
    dma: u64,
}

enum State {
    Runs,
    /// Is started anew at this STC value.
    Waits(u64),
    Over,
}

/// A program with `ends` ends of links.
fn shape(ends: usize) -> Shape {
    Shape {
        purpose: Purpose::Driver,
        heap: 4 << 20,
        stacks: 4 + u64::from(INTERRUPTS),
        spaces: false,
        kernel_frames: 512 + 16 * ends as u64,
        priority: 90,
    }
}

impl Workshop {
    /// Starts all drivers and switches of `system`, with their ends of `links`.
    pub fn start_servers(&mut self, system: &SystemPlan, links: Links) -> Vec<Server> {
        let mut servers = Vec::new();
        for (plan, ends) in system.drivers.iter().zip(links.drivers) {
            let who = format!("driver {}", plan.name);
            let device = must(&who, self.device(plan, &who));
            let config = system.driver_config(&plan.name).encode();
            let mut server = Server::new(self.next_place(), &plan.name, &plan.program, config, ends);
            server.device = Some(device);
            server.kill = plan.kill_every.map(|ms| (0, ms));
            must(&who, self.start_server(&mut server));
            servers.push(server);
        }
        for (plan, ends) in system.switches.iter().zip(links.switches) {
            let config = system.switch_config(&plan.name).encode();
            let mut server = Server::new(self.next_place(), &plan.name, plan::SWITCH, config, ends);
            server.kill = plan.kill_every.map(|ms| (0, ms));
            must(&format!("switch {}", plan.name), self.start_server(&mut server));
            servers.push(server);
        }
        servers
    }

    fn device(&mut self, plan: &DriverPlan, who: &str) -> Result<Device, Failure> {
        let function = self.platform.choose(plan.device, who, Use::Driver).map_err(Failure::Device)?;
        Ok(Device { function, dma: plan.dma })
    }

    /// Starts the program, with its device as a reset leaves it.
    fn start_server(&mut self, server: &mut Server) -> Result<(), Failure> {
        let Server { place, name, program, config, ends, device, .. } = server;
        let file = self.file(&plan::program_path(program));
        let shape = shape(ends.len());
        let mut interrupts = 0;
        let mut builder = match device {
            Some(device) => {
                self.platform.reset(device.function).map_err(Failure::Device)?;
                let mut builder = Builder::new(place, name, shape, self.bounded, &mut self.free)?;
                builder.program(file)?;
                interrupts = self.platform.give(device, name, ends, &mut builder)?;
                self.platform.start(device.function);
                builder
            }
            None => {
                let mut builder = Builder::new(place, name, shape, self.bounded, &mut self.free)?;
                builder.program(file)?;
                ends.iter().try_for_each(|end| end.give(&mut builder, None))?;
                builder
            }
        };
        builder.config(config)?;
        builder.start()?;
        match device {
            Some(device) => {
                let address = self.platform.function(device.function).address;
                log!("root: started driver {name} for {address}, with {interrupts} interrupt(s)");
            }
            None => log!("root: started switch {name} with {} port(s)", ends.len()),
        }
        server.started = time::now();
        if let Some((at, every)) = &mut server.kill {
            *at = server.started + time::ticks_from_ms((*every).into());
        }
        server.state = State::Runs;
        Ok(())
    }
}

impl platform::Platform {
    /// Gives a driver what is its device's; how many interrupts it has.
    fn give(&mut self, device: &Device, name: &str, ends: &[End], builder: &mut Builder<'_>) -> Result<usize, Failure> {
        let function = self.function(device.function);
        let table = function.capabilities.msix.and_then(|msix| platform::table(function, &msix));
        for (bar, range) in function.bars.iter().enumerate() {
            let Some(range) = range.as_ref().and_then(|bar| bar.memory()) else { continue };
            if range.length() > BAR_MAX {
                log!("root: driver {name} does not get bar{bar}: {} MiB are too many", range.length() >> 20);
                continue;
            }
            builder.registers(&format!("bar{bar}"), range, table)?;
        }
        if let Some(page) = self.config_page(device.function) {
            // All of it is protected as the table is.
            builder.registers("config", page, Some(page))?;
        }
        let space = if self.is_remapped() { Some(builder.dma_space()?) } else { None };
        let mut next = DEVICE_ADDRESSES.start;
        let mut place = |memory: PhysRange| {
            let Some(space) = space else { return Ok(memory.start) };
            let address = next;
            next += memory.length().next_multiple_of(DEVICE_STEP);
            if next > DEVICE_ADDRESSES.end {
                return Err(Failure::Device(format!("{} has more memory than it has addresses", function.address)));
            }
            window::grant_device(space, memory, address).map_err(kernel("memory of a device"))?;
            Ok(address)
        };
        builder.dma("dma", device.dma, &mut place)?;
        ends.iter().try_for_each(|end| end.give(builder, Some(&mut place)))?;
        if let Some(space) = space {
            self.assign(device.function, space).map_err(kernel("a device"))?;
        }
        let interrupts = self.interrupts(device.function, INTERRUPTS, builder.cpu_number());
        let interrupts = interrupts.map_err(kernel("an interrupt of a device"))?;
        for (index, semaphore) in interrupts.iter().enumerate() {
            builder.message(&format!("msi{index}"), *semaphore)?;
        }
        Ok(interrupts.len())
    }
}

impl Server {
    fn new(place: Place, name: &str, program: &str, config: Vec<u8>, ends: Vec<End>) -> Self {
        Self {
            place,
            name: name.into(),
            program: program.into(),
            config,
            ends,
            device: None,
            history: History::new(SETTLED_MS),
            started: 0,
            kill: None,
            state: State::Over,
        }
    }

    /// When something is to be done about it, as an STC value.
    pub fn due(&self) -> Option<u64> {
        match self.state {
            State::Waits(due) => Some(due.max(1)),
            State::Runs => self.kill.map(|(at, _)| at),
            State::Over => None,
        }
    }

    /// Does what is to be done now.
    pub fn keep(&mut self, workshop: &mut Workshop) {
        if matches!(self.state, State::Runs)
            && let Some((at, every)) = &mut self.kill
            && time::now() >= *at
        {
            *at = time::now() + time::ticks_from_ms((*every).into());
            service::kill(self.place.id, "killed, as the plan wants");
        }
        if matches!(self.state, State::Runs)
            && let Some((how, taken_back)) = service::settled(self.place.id)
        {
            self.clear(workshop, taken_back);
            let lived = time::nanoseconds(time::now() - self.started, time::frequency()) / 1_000_000;
            self.state = match self.history.decide(&RESTART, how, lived, taken_back) {
                Decision::Start(ms) => State::Waits(time::now() + time::ticks_from_ms(ms)),
                Decision::Leave => State::Over,
                Decision::Refuse(why) => {
                    log!("root: program {} is not started again: {why}", self.name);
                    State::Over
                }
            };
        }
        if matches!(self.state, State::Waits(due) if time::now() >= due) {
            self.start(workshop);
        }
    }

    /// Puts an end to what the dead program had begun.
    fn clear(&mut self, workshop: &mut Workshop, taken_back: bool) {
        if let Some(device) = &self.device {
            workshop.platform.quiet(device.function);
        }
        if taken_back {
            self.place.vacate(&mut workshop.free);
        }
    }

    /// Starts it anew.
    fn start(&mut self, workshop: &mut Workshop) {
        self.ends.iter().for_each(End::recover);
        let Err(failure) = workshop.start_server(self) else {
            log!("root: program {} was started again ({})", self.name, self.history.restarts());
            return;
        };
        log!("root: program {} cannot be started again: {failure}", self.name);
        // Without a protection domain there is nothing to take back.
        let gone = matches!(reclaim::destroy(self.place.id), Ok(()) | Err(Status::BadCap));
        service::settle(self.place.id, gone);
        self.clear(workshop, gone);
        self.state = State::Over;
    }
}
