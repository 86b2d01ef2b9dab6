//! Builds drivers and switches.

use crate::child::{Builder, Failure, Place, Shape};
use crate::links::{End, Links};
use crate::platform;
use crate::service::Purpose;
use crate::workshop::{Workshop, must};
use alloc::format;
use alloc::vec::Vec;
use plan::{DriverPlan, SwitchPlan, SystemPlan};
use roottask::frames::PhysRange;
use runtime::log;

/// Most interrupts of a driver.
const INTERRUPTS: u16 = 4;
/// Largest BAR that a driver gets.
const BAR_MAX: u64 = 1 << 30;

/// A driver that runs, or did.
struct Driver {
    place: Place,
    plan: DriverPlan,
    config: Vec<u8>,
    ends: Vec<End>,
    /// Number of its function.
    function: usize,
}

/// A switch that runs, or did.
struct Switch {
    place: Place,
    plan: SwitchPlan,
    config: Vec<u8>,
    ends: Vec<End>,
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
    pub fn start_drivers(&mut self, system: &SystemPlan, links: Links) {
        for (plan, ends) in system.drivers.iter().zip(links.drivers) {
            must(&format!("driver {}", plan.name), self.driver(system, plan, ends));
        }
        for (plan, ends) in system.switches.iter().zip(links.switches) {
            must(&format!("switch {}", plan.name), self.switch(system, plan, ends));
        }
    }

    /// Starts the driver `plan` of `system`.
    fn driver(&mut self, system: &SystemPlan, plan: &DriverPlan, ends: Vec<End>) -> Result<Driver, Failure> {
        let function = self.platform.choose(plan.device, &plan.name).map_err(Failure::Device)?;
        let config = system.driver_config(&plan.name).encode();
        let mut driver = Driver { place: self.next_place(), plan: plan.clone(), config, ends, function };
        self.start_driver(&mut driver)?;
        Ok(driver)
    }

    /// Resets a driver's function and starts its program with it.
    fn start_driver(&mut self, driver: &mut Driver) -> Result<(), Failure> {
        let Driver { place, plan, config, ends, function: number } = driver;
        let program = self.file(&plan::program_path(&plan.program));
        self.platform.reset(*number).map_err(Failure::Device)?;
        let mut builder = Builder::new(place, &plan.name, shape(ends.len()), self.bounded, &mut self.free)?;
        builder.program(program)?;
        let function = self.platform.function(*number);
        let table = function.capabilities.msix.and_then(|msix| platform::table(function, &msix));
        for (bar, range) in function.bars.iter().enumerate() {
            let Some(range) = range.as_ref().and_then(|bar| bar.memory()) else { continue };
            if range.length() > BAR_MAX {
                log!("root: driver {} does not get bar{bar}: {} MiB are too many", plan.name, range.length() >> 20);
                continue;
            }
            builder.registers(&format!("bar{bar}"), range, table)?;
        }
        if let Some(page) = self.platform.config_page(*number) {
            // All of it is protected as the table is.
            builder.registers("config", page, Some(page))?;
        }
        builder.dma("dma", plan.dma, |memory| Ok(memory.start))?;
        let mut device = |memory: PhysRange| Ok(memory.start);
        ends.iter().try_for_each(|end| end.give(&mut builder, Some(&mut device)))?;
        builder.config(config)?;
        let interrupts = self.platform.interrupts(*number, INTERRUPTS, builder.cpu_number());
        let interrupts = interrupts.map_err(|status| Failure::Kernel("an interrupt of a device", status))?;
        for (index, semaphore) in interrupts.iter().enumerate() {
            builder.message(&format!("msi{index}"), *semaphore)?;
        }
        self.platform.start(*number);
        builder.start()?;
        let address = self.platform.function(*number).address;
        log!("root: started driver {} for {address}, with {} interrupt(s)", plan.name, interrupts.len());
        Ok(())
    }

    /// Starts the switch `plan` of `system`.
    fn switch(&mut self, system: &SystemPlan, plan: &SwitchPlan, ends: Vec<End>) -> Result<Switch, Failure> {
        let config = system.switch_config(&plan.name).encode();
        let mut switch = Switch { place: self.next_place(), plan: plan.clone(), config, ends };
        self.start_switch(&mut switch)?;
        Ok(switch)
    }

    /// Starts the program of a switch.
    fn start_switch(&mut self, switch: &mut Switch) -> Result<(), Failure> {
        let Switch { place, plan, config, ends } = switch;
        let program = self.file(&plan::program_path(plan::SWITCH));
        let mut builder = Builder::new(place, &plan.name, shape(ends.len()), self.bounded, &mut self.free)?;
        builder.program(program)?;
        ends.iter().try_for_each(|end| end.give(&mut builder, None))?;
        builder.config(config)?;
        builder.start()?;
        log!("root: started switch {} with {} port(s)", plan.name, ends.len());
        Ok(())
    }
}
