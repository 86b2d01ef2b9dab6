//! PCI functions that a virtual machine has to itself: pass-through.
//!
//! The function reaches the guest's memory at guest-physical addresses and nothing else, by a DMA space that goes with the
//! machine's monitor. Its configuration space and its table of interrupts stay with the root task: the monitor reads the one
//! and cannot write the other, and asks for the three things that change it ([`FunctionWish`]).

use crate::authority::selector;
use crate::child::{Builder, Failure, kernel};
use crate::platform::{self, Platform};
use crate::{keeper, service, window};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use plan::{FUNCTION_INTERRUPTS, HIGH_MEMORY_BASE, LOW_MEMORY_MAX, VmConfig, VmPlan};
use roottask::frames::{PAGE, PhysRange};
use roottask::pci::{Bar, Use};
use runtime::log;
use runtime::parent::FunctionWish;
use runtime::sync::Mutex;

/// Largest BAR of a function.
const BAR_MAX: u64 = 64 << 30;
/// Kernel frames for a function: the threads of its interrupts, tables.
const FRAMES: u64 = 16 + 8 * FUNCTION_INTERRUPTS as u64;
/// Bytes that a table of page tables maps.
const TABLE: u64 = 2 << 20;

/// What monitors want of their functions: child and number of the function, the monitor's instance and the wish. It stays
/// until it is granted.
static WISHES: Mutex<BTreeMap<(usize, u64), (u32, FunctionWish)>> = Mutex::new(BTreeMap::new(), selector::LOCK_WISHES);

/// A monitor wants something of a function; whether a wish of it is still to be granted.
pub fn ask((child, instance): (usize, u32), function: u64, wish: u64) -> bool {
    let key = (child, function);
    match FunctionWish::from_number(wish) {
        Some(FunctionWish::Nothing) => {}
        Some(wish) if function < plan::FUNCTIONS_MAX as u64 => {
            WISHES.lock().insert(key, (instance, wish));
            // On this CPU the keeper goes first, and the wish is granted at once.
            keeper::wake();
        }
        _ => return false,
    }
    let waits = WISHES.lock().get(&key).is_some_and(|(whose, _)| *whose == instance);
    if waits {
        // The keeper may not have been there yet.
        keeper::wake();
    }
    waits
}

/// Grants what the monitor that is child `child` wants of its functions.
pub fn serve(child: usize, functions: &[usize], platform: &mut Platform) {
    for (number, &function) in functions.iter().enumerate() {
        let key = (child, number as u64);
        let Some((instance, wish)) = WISHES.lock().get(&key).copied() else { continue };
        // A dead monitor's functions stay quiet.
        if service::instance(child) == Some(instance) {
            grant(wish, function, platform);
        }
        let mut wishes = WISHES.lock();
        if wishes.get(&key) == Some(&(instance, wish)) {
            wishes.remove(&key);
        }
    }
}

fn grant(wish: FunctionWish, function: usize, platform: &mut Platform) {
    match wish {
        FunctionWish::Nothing => {}
        FunctionWish::Send => platform.start(function),
        FunctionWish::Hold => platform.hold(function),
        FunctionWish::Reset => {
            if let Err(error) = platform.reset(function) {
                log!("root: {error}");
            }
            platform.hold(function);
            if let Err(status) = platform.interrupts(function, FUNCTION_INTERRUPTS, runtime::manifest().cpu) {
                log!("root: {} has no interrupts: {status:?}", platform.function(function).address);
            }
        }
    }
}

impl Platform {
    /// Claims the functions that a virtual machine is to have: their numbers.
    pub fn claim(&mut self, vm: &VmPlan) -> Result<Vec<usize>, String> {
        let who = format!("vm {}", vm.config.name);
        let mut numbers = Vec::new();
        for &choice in &vm.functions {
            let number = self.choose(choice, &who, Use::PassThrough)?;
            if numbers.contains(&number) {
                return Err(format!("the PCI function {choice} is wanted twice, and there is one of it"));
            }
            numbers.push(number);
        }
        Ok(numbers)
    }

    /// Kernel frames for passing functions to a machine with `memory` bytes.
    pub fn kernel_frames(&self, functions: &[usize], memory: u64) -> u64 {
        let bars = functions.iter().flat_map(|number| self.function(*number).bars.iter().flatten());
        let registers: u64 = bars.filter_map(Bar::memory).map(|range| 2 * (2 + range.length() / TABLE / 512)).sum();
        let dma = if functions.is_empty() { 0 } else { 8 + memory / TABLE / 512 };
        dma + registers + FRAMES * functions.len() as u64
    }

    /// Gives a virtual machine's monitor the functions, as a reset leaves them. `memory` is the guest's.
    pub fn pass(
        &mut self,
        functions: &[usize],
        config: &VmConfig,
        memory: PhysRange,
        builder: &mut Builder<'_>,
    ) -> Result<(), Failure> {
        if functions.is_empty() {
            return Ok(());
        }
        let space = builder.dma_space()?;
        let low = memory.length().min(LOW_MEMORY_MAX);
        let split = memory.start + low;
        for (part, address) in
            [(PhysRange::new(memory.start, split), 0), (PhysRange::new(split, memory.end), HIGH_MEMORY_BASE)]
        {
            if part.length() != 0 {
                window::grant_device(space, part, address).map_err(kernel("the guest's memory for a device"))?;
            }
        }
        for (&number, named) in functions.iter().zip(&config.functions) {
            self.reset(number).map_err(Failure::Device)?;
            self.hold(number);
            self.give_registers(number, &named.name, builder)?;
            self.assign(number, space).map_err(kernel("a device"))?;
            let most = plan::function_interrupts(config.vcpus);
            let interrupts = self.interrupts(number, most, builder.cpu_number());
            let interrupts = interrupts.map_err(kernel("an interrupt of a device"))?;
            for (index, semaphore) in interrupts.iter().enumerate() {
                builder.message(&format!("pci.{}.msi{index}", named.name), *semaphore)?;
            }
            let (vm, function) = (&config.name, self.function(number));
            log!(
                "root: passed {} through to vm {vm} as {}, with {} interrupt(s)",
                function.address,
                named.name,
                interrupts.len()
            );
        }
        Ok(())
    }

    fn give_registers(&self, number: usize, name: &str, builder: &mut Builder<'_>) -> Result<(), Failure> {
        let function = self.function(number);
        let table = function.capabilities.msix.and_then(|msix| platform::table(function, &msix));
        for (bar, range) in function.bars.iter().enumerate() {
            let Some(range) = range.as_ref().and_then(Bar::memory) else { continue };
            if range.length() > BAR_MAX {
                let (address, gib) = (function.address, range.length() >> 30);
                return Err(Failure::Device(format!(
                    "{address} has {gib} GiB of registers, {} are possible",
                    BAR_MAX >> 30
                )));
            }
            builder.registers(&format!("pci.{name}.bar{bar}"), range, table)?;
        }
        let Some(page) = self.config_page(number) else { return Ok(()) };
        builder.registers(&format!("pci.{name}.config"), PhysRange::new(page.start, page.start + PAGE), Some(page))
    }
}
