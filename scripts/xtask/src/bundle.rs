//! The bundle: the root task's ELF file, padded to whole pages, and behind it an archive with the plan, the programs
//! and the guests' files, each starting on a page so that it can be mapped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use plan::GuestKind;
use plan::observation::Wanted;

use crate::cpio::Archive;
use crate::emulator::Boot;
use crate::guest::{self, Recipe};
use crate::programs::Programs;
use crate::source::Source;
use crate::system::devices::Device;
use crate::system::{self, Origin, Size, System};
use crate::workspace;

/// The program of every bundle, beside the monitors of its virtual machines.
const SERIAL: &str = "serial";

/// What can be booted.
pub struct Built {
    /// The system's name.
    pub name: String,
    /// What the boot loader starts.
    pub boot: Boot,
    /// RAM that the machine needs, in MiB.
    pub memory: u32,
    /// CPUs that the machine has unless the user says otherwise.
    pub cpus: u32,
    /// Devices that it has.
    pub devices: Vec<Device>,
}

/// Builds the kernel, the programs and the bundle of a system: a file, or the name of one in `tests/systems`. The name
/// `none` means the kernel alone. With `exec`, the system runs this command in its Linux and ends.
/// `size` changes the numbers of CPUs.
pub fn build(system: &str, size: Size, kernel: Option<&Path>, exec: Option<&str>, observe: Wanted) -> Result<Built> {
    if system == "none" {
        let programs = Programs::build(packages(kernel, BTreeSet::new()))?;
        let boot = Boot { kernel: kernel_file(kernel, &programs)?, module: None, linux: None };
        return Ok(Built { name: system.into(), boot, memory: 256, cpus: size.cpus.unwrap_or(1), devices: Vec::new() });
    }
    let mut system = load(system, exec)?;
    system.resize(size)?;
    system.plan.observe = observe;
    let programs = Programs::build(packages(kernel, needed(&system)?))?;
    let file = write(&mut system, &programs, if exec.is_some() { "-exec" } else { "" })?;
    let boot = Boot { kernel: kernel_file(kernel, &programs)?, module: Some(file), linux: None };
    let System { memory, cpus, devices, .. } = system;
    Ok(Built { boot, memory, cpus, devices, name: system.plan.name })
}

/// The same for a system that starts nothing, but lists the devices of its machine.
pub fn build_listing(system: &str) -> Result<Built> {
    let mut system = load(system, None)?;
    system.plan.list_devices = true;
    system.files.clear();
    let mut needed = disk_programs(&system)?;
    needed.extend(["microhypervisor".into(), "roottask".into()]);
    let programs = Programs::build(needed)?;
    let module = Some(write(&mut system, &programs, "-devices")?);
    let boot = Boot { kernel: programs.file("microhypervisor"), module, linux: None };
    let System { plan, memory, cpus, devices, .. } = system;
    Ok(Built { boot, memory, cpus, devices, name: format!("{}-devices", plan.name) })
}

/// Reads a system and makes it run a command, if there is one.
pub fn load(system: &str, exec: Option<&str>) -> Result<System> {
    let mut system = System::parse(&Source::read(&system::find(system)?)?)?;
    if let Some(command) = exec {
        system.execute(guest::script(command))?;
    }
    Ok(system)
}

/// The programs that the root task starts.
fn started(system: &System) -> BTreeSet<String> {
    let plan = &system.plan;
    if plan.list_devices {
        return BTreeSet::new();
    }
    let monitors = plan.vms.iter().map(|vm| vm.monitor.clone());
    let drivers = plan.drivers.iter().map(|driver| driver.program.clone());
    let switches = plan.switches.iter().map(|_| plan::SWITCH.into());
    monitors.chain(drivers).chain(switches).chain([SERIAL.into()]).collect()
}

/// The workspace's programs that a system's bundle is made of.
fn needed(system: &System) -> Result<BTreeSet<String>> {
    let mut needed = started(system);
    needed.insert("roottask".into());
    for origin in system.files.values() {
        if let Origin::Recipe(name) = origin {
            needed.extend(Recipe::read(name)?.programs()?);
        }
    }
    needed.extend(disk_programs(system)?);
    Ok(needed)
}

/// The workspace's programs that are on disks.
fn disk_programs(system: &System) -> Result<Vec<String>> {
    let recipes = system.devices.iter().filter_map(|device| device.recipe());
    let programs: Vec<Vec<String>> = recipes.map(|name| Recipe::read(name)?.programs()).collect::<Result<_>>()?;
    Ok(programs.concat())
}

/// Makes the disks of the machine that recipes make, in the build directory.
fn make_disks(system: &mut System, programs: &Programs, suffix: &str) -> Result<()> {
    let folder = workspace::folder("bundle")?;
    for device in &mut system.devices {
        let Some(recipe) = device.recipe() else { continue };
        let file = folder.join(format!("{}{suffix}.{}.img", system.plan.name, device.name));
        Recipe::read(recipe)?.make_disk(programs, &file)?;
        device.made(file);
    }
    Ok(())
}

/// Writes a system's bundle, and the disks of its machine, into the build directory.
pub fn write(system: &mut System, programs: &Programs, suffix: &str) -> Result<PathBuf> {
    make_disks(system, programs, suffix)?;
    let bundle = workspace::folder("bundle")?.join(format!("{}{suffix}.bundle", system.plan.name));
    workspace::write(&bundle, &assemble(system, programs)?)?;
    Ok(bundle)
}

/// The first Linux of a system as it would run without any of ours: on the machine itself, with the machine's memory
/// and CPUs those of its virtual machine.
pub fn build_bare(system: &str, size: Size) -> Result<Built> {
    let source = Source::read(&system::find(system)?)?;
    let mut system = System::parse(&source)?;
    system.resize(Size { cpus: None, ..size })?;
    let name = format!("{}-bare", system.plan.name);
    let programs = Programs::build(disk_programs(&system)?)?;
    make_disks(&mut system, &programs, "-bare")?;
    let Some(vm) = system.plan.vms.into_iter().find(|vm| vm.config.guest == GuestKind::Linux) else {
        bail!("system {} has no Linux that could run bare", system.plan.name);
    };
    let folder = workspace::folder("bundle")?;
    let place = |path: &String| -> Result<PathBuf> {
        let origin = &system.files[path];
        let programs = match origin {
            Origin::Recipe(name) => Programs::build(Recipe::read(name)?.programs()?)?,
            _ => Programs::build::<&str>([])?,
        };
        let file = folder.join(format!("{name}.{}", path.rsplit('/').next().unwrap_or_default()));
        workspace::write(&file, &content(origin, &programs)?)?;
        Ok(file)
    };
    let kernel = place(&vm.kernel)?;
    let module = vm.initrd.first().map(place).transpose()?;
    let memory = u32::try_from(vm.config.memory >> 20)?;
    let (cpus, devices) = (vm.config.vcpus, system.devices);
    Ok(Built { boot: Boot { kernel, module, linux: Some(vm.config.cmdline) }, memory, cpus, devices, name })
}

fn packages(kernel: Option<&Path>, mut programs: BTreeSet<String>) -> BTreeSet<String> {
    if kernel.is_none() {
        programs.insert("microhypervisor".into());
    }
    programs
}

fn kernel_file(kernel: Option<&Path>, programs: &Programs) -> Result<PathBuf> {
    match kernel {
        Some(file) => file.canonicalize().with_context(|| format!("cannot read {}", file.display())),
        None => Ok(programs.file("microhypervisor")),
    }
}

fn assemble(system: &System, programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.page_aligned_file(plan::ARCHIVE_PATH, &system.plan.encode());
    for program in started(system) {
        archive.page_aligned_file(&plan::program_path(&program), &programs.stripped(&program)?);
    }
    for (path, origin) in &system.files {
        let content = content(origin, programs)?;
        if u32::try_from(content.len()).is_err() {
            bail!("{path} has {} bytes; the archive takes files up to 4 GiB", content.len());
        }
        archive.page_aligned_file(path, &content);
    }
    let mut bundle = programs.stripped("roottask")?;
    bundle.resize(bundle.len().next_multiple_of(4096), 0);
    bundle.extend(archive.finish());
    Ok(bundle)
}

fn content(origin: &Origin, programs: &Programs) -> Result<Vec<u8>> {
    match origin {
        Origin::Recipe(name) => Recipe::read(name)?.make(programs),
        Origin::File(file) => workspace::read(file),
        Origin::Bytes(bytes) => Ok(bytes.clone()),
    }
}
