//! The system file: a user's description of a system in TOML, checked here, so that the target needs no text parser.

pub mod devices;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use plan::{Console, GuestKind, OnReset, PlanError, Restart, RestartAfter, SystemPlan, VmConfig, VmPlan};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Unexpected, Visitor};
use toml::Spanned;

use crate::guest::{Recipe, RecipeKind};
use crate::source::Source;
use crate::workspace;

/// RAM in MiB that the kernel, the root task and the programs take at most, beside the virtual machines' own.
const SYSTEM_MEMORY: u32 = 192;

/// The programs that can be a virtual machine's monitor; the second one goes wrong as its command line says.
const MONITORS: [&str; 2] = [plan::MONITOR, "faulty"];

/// A system file's content.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    iommu: devices::IommuWord,
    #[serde(default)]
    machine: MachineTable,
    #[serde(default)]
    driver: InOrder<devices::DriverTable>,
    #[serde(default)]
    switch: InOrder<devices::SwitchTable>,
    #[serde(default)]
    vm: InOrder<VmTable>,
}

/// The emulated machine, where a system needs a particular one.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct MachineTable {
    memory: Option<Spanned<String>>,
    cpus: Option<u32>,
    #[serde(default)]
    disk: InOrder<devices::MachineDisk>,
    #[serde(default)]
    nic: InOrder<devices::MachineNic>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmTable {
    memory: Spanned<String>,
    vcpus: Option<Spanned<u32>>,
    cpus: Option<Spanned<Vec<u32>>>,
    kernel: Spanned<String>,
    initrd: Option<Spanned<String>>,
    #[serde(default)]
    cmdline: String,
    console: Option<ConsoleWord>,
    exec: Option<Spanned<bool>>,
    #[serde(default)]
    on_reset: OnResetWord,
    slice: Option<Spanned<u16>>,
    monitor: Option<Spanned<String>>,
    #[serde(default)]
    restart: RestartWord,
    restart_limit: Option<Spanned<u32>>,
    restart_delay: Option<Spanned<u32>>,
    #[serde(default)]
    entropy: bool,
    #[serde(default)]
    disk: InOrder<devices::DiskTable>,
    #[serde(default)]
    nic: InOrder<devices::NicTable>,
    #[serde(default)]
    pci: InOrder<devices::FunctionTable>,
}

/// `true`, `false`, or what the console is reached by.
#[derive(Clone, Copy)]
struct ConsoleWord(Console);

impl<'de> Deserialize<'de> for ConsoleWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;
        impl Visitor<'_> for Word {
            type Value = ConsoleWord;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"virtio\"")
            }
            fn visit_bool<E: de::Error>(self, there: bool) -> Result<ConsoleWord, E> {
                Ok(ConsoleWord(if there { Console::Serial } else { Console::None }))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<ConsoleWord, E> {
                match word {
                    "virtio" => Ok(ConsoleWord(Console::Virtio)),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Word)
    }
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum OnResetWord {
    #[default]
    Restart,
    Stop,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum RestartWord {
    #[default]
    Never,
    OnCrash,
    Always,
}

/// A system that was checked: what the target gets and where its files come from.
#[derive(Debug)]
pub struct System {
    /// The plan, as the root task carries it out.
    pub plan: SystemPlan,
    /// RAM of the machine in MiB.
    pub memory: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Devices of the machine.
    pub devices: Vec<devices::Device>,
    /// Archive path and origin of every guest file.
    pub files: BTreeMap<String, Origin>,
}

/// Numbers of CPUs other than the system file's.
#[derive(Clone, Copy, Default, Debug)]
pub struct Size {
    /// CPUs of the machine.
    pub cpus: Option<u32>,
    /// Virtual CPUs of the first virtual machine.
    pub vcpus: Option<u32>,
}

/// Where a guest's file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Made by the recipe of this name.
    Recipe(String),
    /// A file of the user's.
    File(PathBuf),
    /// Bytes made for this run.
    Bytes(Vec<u8>),
}

/// The path of a system file, which the user may have named instead.
pub fn find(system: &str) -> Result<PathBuf> {
    let named = workspace::root().join("tests/systems").join(format!("{system}.toml"));
    let given = Path::new(system);
    if given.is_file() {
        return Ok(given.to_path_buf());
    }
    if !system.contains(['/', '.']) && named.is_file() {
        return Ok(named);
    }
    bail!("there is no system {system:?}: neither a file nor one of tests/systems ({})", names().join(", "));
}

fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(workspace::root().join("tests/systems"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".toml")?.to_string()))
        .collect();
    names.sort();
    names
}

impl System {
    /// Parses and checks a system file.
    pub fn parse(source: &Source) -> Result<Self> {
        let file: File = source.parse()?;
        let mut files = BTreeMap::new();
        let mut machine = devices::machine(source, file.machine.disk, file.machine.nic, &file.driver)?;
        let drivers = devices::drivers(source, &file.driver)?;
        let passes = file.vm.0.iter().any(|(_, vm)| !vm.pci.0.is_empty());
        let wants_iommu = match file.iommu {
            devices::IommuWord::Required => true,
            devices::IommuWord::Preferred => !drivers.is_empty() || passes,
            devices::IommuWord::Off => false,
        };
        if wants_iommu {
            machine.insert(0, devices::iommu());
        }
        let switches = devices::switches(source, &file.switch, &drivers)?;
        let mut plan = SystemPlan { drivers, switches, iommu: file.iommu.into(), ..SystemPlan::default() };
        let mut guest_memory: u64 = 0;
        let mut console_taken = false;
        for (name, vm) in file.vm.0 {
            let memory = mebibytes(source, &vm.memory)?;
            guest_memory += u64::from(memory);
            let kernel = format!("guests/{}/kernel", name.get_ref());
            let (origin, guest) = kernel_of(source, &vm.kernel)?;
            files.insert(kernel.clone(), origin);
            let mut initrd = Vec::new();
            if let Some(named) = &vm.initrd {
                let path = format!("guests/{}/initrd", name.get_ref());
                files.insert(path.clone(), origin_of(source, named, RecipeKind::Initramfs)?);
                initrd.push(path);
            }
            let console = vm.console.map_or(if console_taken { Console::None } else { Console::Serial }, |word| word.0);
            console_taken |= console != Console::None;
            let (disks, sources) = devices::disks(source, &vm.disk, &plan.drivers)?;
            let (nics, switches) = devices::nics(source, plan.vms.len(), &vm.nic, &plan.switches)?;
            let (functions, choices) = devices::functions(source, &vm.pci)?;
            let config = VmConfig {
                name: name.get_ref().clone(),
                memory: u64::from(memory) << 20,
                vcpus: vm.vcpus.as_ref().map_or(1, |vcpus| *vcpus.get_ref()),
                cpus: vm.cpus.as_ref().map(|cpus| cpus.get_ref().clone()).unwrap_or_default(),
                slice: vm.slice.as_ref().map_or(plan::SLICE_MS, |slice| *slice.get_ref()),
                cmdline: vm.cmdline,
                guest,
                console,
                exec: vm.exec.as_ref().is_some_and(|exec| *exec.get_ref()),
                on_reset: match vm.on_reset {
                    OnResetWord::Restart => OnReset::Restart,
                    OnResetWord::Stop => OnReset::Stop,
                },
                entropy: vm.entropy,
                disks,
                nics,
                functions,
            };
            let monitor = monitor_of(source, vm.monitor.as_ref())?;
            let restart = restart_of(source, vm.restart, vm.restart_limit.as_ref(), vm.restart_delay.as_ref())?;
            let functions = choices;
            plan.vms.push(VmPlan { config, monitor, kernel, initrd, restart, disks: sources, switches, functions });
            // What the plan itself forbids is found with the first machine that breaks it, and shown at that machine.
            plan.validate().map_err(|error| {
                let place = match error {
                    PlanError::BadMemory(..) => Some(vm.memory.span()),
                    PlanError::BadVcpus(..) => vm.vcpus.as_ref().map(Spanned::span),
                    PlanError::BadCpu(..) => vm.cpus.as_ref().map(Spanned::span),
                    PlanError::NoSlice(..) => vm.slice.as_ref().map(Spanned::span),
                    PlanError::SecondExec(..) => vm.exec.as_ref().map(Spanned::span),
                    PlanError::TakenFunction(_, ref device) => devices::place_of(&vm.pci, device),
                    PlanError::Overlap(ref disk, _) => {
                        let named = |(key, _): &&(Spanned<String>, _)| {
                            *disk == plan::client_name(name.get_ref(), key.get_ref())
                        };
                        vm.disk.0.iter().find(named).map(|(key, _)| key.span())
                    }
                    _ => None,
                };
                source.error(place.unwrap_or_else(|| name.span()), error)
            })?;
        }
        plan.name = source.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        plan.validate().map_err(|error| source.error(0..0, error))?;
        let memory = match &file.machine.memory {
            Some(memory) => mebibytes(source, memory)?,
            None => u32::try_from(guest_memory).unwrap_or(u32::MAX).saturating_add(SYSTEM_MEMORY).next_multiple_of(64),
        };
        Ok(Self { plan, memory, cpus: file.machine.cpus.unwrap_or(1), devices: machine, files })
    }

    /// Changes the numbers of CPUs, and checks that virtual machines run on CPUs that there are.
    pub fn resize(&mut self, size: Size) -> Result<()> {
        if let (Some(vcpus), Some(vm)) = (size.vcpus, self.plan.vms.first_mut()) {
            vm.config.vcpus = vcpus;
        }
        self.cpus = size.cpus.unwrap_or(self.cpus);
        self.plan.validate().map_err(|error| anyhow!("{error}"))?;
        for config in self.plan.vms.iter().map(|vm| &vm.config) {
            if let Some(cpu) = config.cpus.iter().find(|&&cpu| cpu >= self.cpus) {
                let (name, cpus) = (&config.name, self.cpus);
                bail!("vm {name} is to run on CPU {cpu}, but the machine's are 0 to {} (--cpus {})", cpus - 1, cpu + 1);
            }
        }
        Ok(())
    }

    /// Makes the system run one command in its first Linux and stop then. `script` is an archive with it.
    pub fn execute(&mut self, script: Vec<u8>) -> Result<()> {
        let Some(vm) = self.plan.vms.iter_mut().find(|vm| vm.config.guest == GuestKind::Linux && !vm.initrd.is_empty())
        else {
            bail!("system {} has no Linux with an initrd in which a command could run (--exec)", self.plan.name);
        };
        let path = format!("guests/{}/exec", vm.config.name);
        vm.initrd.push(path.clone());
        vm.config.exec = true;
        vm.config.on_reset = OnReset::Stop;
        vm.restart = Restart::NEVER;
        self.files.insert(path, Origin::Bytes(script));
        Ok(())
    }
}

/// A size like `512M` or `2G`, in MiB.
fn mebibytes(source: &Source, size: &Spanned<String>) -> Result<u32> {
    let text = size.get_ref().as_str();
    let parsed = match text.char_indices().last() {
        Some((end, 'M')) => text[..end].parse().ok(),
        Some((end, 'G')) => text[..end].parse::<u32>().ok().and_then(|number| number.checked_mul(1024)),
        _ => None,
    };
    // More than any machine has, and few enough that sums stay in range.
    const MOST: u32 = 1 << 20;
    parsed.filter(|&size| (1..=MOST).contains(&size)).ok_or_else(|| {
        let message = format!("impossible memory size {text:?}: write a number of MiB or GiB like \"512M\" or \"2G\"");
        source.error(size.span(), message)
    })
}

fn kernel_of(source: &Source, name: &Spanned<String>) -> Result<(Origin, GuestKind)> {
    let origin = origin_of(source, name, RecipeKind::Kernel)?;
    let guest = match &origin {
        Origin::Recipe(recipe) => Recipe::read(recipe)?.guest_kind(),
        Origin::File(path) if workspace::read(path)?.starts_with(b"\x7fELF") => GuestKind::Multiboot,
        Origin::File(_) | Origin::Bytes(_) => GuestKind::Linux,
    };
    Ok((origin, guest))
}

fn monitor_of(source: &Source, name: Option<&Spanned<String>>) -> Result<String> {
    let Some(name) = name else { return Ok(plan::MONITOR.into()) };
    if !MONITORS.contains(&name.get_ref().as_str()) {
        let message = format!("no monitor is named {:?}, these are: {}", name.get_ref(), MONITORS.join(", "));
        return Err(source.error(name.span(), message));
    }
    Ok(name.get_ref().clone())
}

fn restart_of(
    source: &Source,
    word: RestartWord,
    limit: Option<&Spanned<u32>>,
    delay: Option<&Spanned<u32>>,
) -> Result<Restart> {
    let after = match word {
        RestartWord::Never => RestartAfter::Never,
        RestartWord::OnCrash => RestartAfter::Crash,
        RestartWord::Always => RestartAfter::Any,
    };
    if let (RestartAfter::Never, Some(key)) = (after, limit.or(delay)) {
        return Err(source.error(key.span(), "this says nothing without restart = \"on-crash\" or \"always\""));
    }
    let delay = delay.map_or(plan::RESTART_DELAY_MS, |delay| *delay.get_ref());
    Ok(Restart { after, limit: limit.map(|limit| *limit.get_ref()), delay })
}

/// A word names a recipe in `guests/`; anything with a slash is a path relative to the system file.
fn origin_of(source: &Source, name: &Spanned<String>, kind: RecipeKind) -> Result<Origin> {
    let text = name.get_ref();
    if text.contains('/') {
        let path = source.beside(text);
        if !path.is_file() {
            return Err(source.error(name.span(), format!("there is no file {text:?} beside the system file")));
        }
        return Ok(Origin::File(path));
    }
    let makers = Recipe::names(kind)?;
    if !makers.contains(text) {
        let message = format!("no recipe in guests/ makes a {kind} {text:?}, these do: {}", makers.join(", "));
        return Err(source.error(name.span(), message));
    }
    Ok(Origin::Recipe(text.clone()))
}

/// A table whose entries keep the order in which they were written.
pub struct InOrder<T>(Vec<(Spanned<String>, T)>);

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = InOrder<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a table of named entries")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", System::parse(&Source::from_text(text)).expect_err("is refused"))
    }

    const GOOD: &str = "[vm.b]\nmemory = \"64M\"\nkernel = \"micro\"\n\n[vm.a]\nmemory = \"1G\"\nkernel = \"debian-cloud\"\ninitrd = \"busybox\"\ncmdline = \"console=ttyS0\"\n";

    #[test]
    fn a_system_keeps_its_order_and_gets_defaults() {
        let system = System::parse(&Source::from_text(GOOD)).expect("is good");
        let names: Vec<&str> = system.plan.vms.iter().map(|vm| vm.config.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(system.plan.name, "system");
        assert_eq!(system.memory, 64 + 1024 + SYSTEM_MEMORY);
        let [first, second] = &system.plan.vms[..] else { panic!() };
        assert_eq!((first.config.console, second.config.console), (Console::Serial, Console::None));
        assert_eq!((first.config.guest, second.config.guest), (GuestKind::Multiboot, GuestKind::Linux));
        assert_eq!(second.initrd, ["guests/a/initrd"]);
        assert_eq!(system.files["guests/a/initrd"], Origin::Recipe("busybox".into()));
    }

    #[test]
    fn numbers_of_cpus() {
        let text = GOOD.replace("kernel = \"micro\"", "kernel = \"micro\"\nvcpus = 3\ncpus = [1, 0]");
        let parse = || System::parse(&Source::from_text(&text)).expect("is good");
        let resize = |cpus, vcpus| {
            let mut system = parse();
            system.resize(Size { cpus, vcpus }).map(|()| (system.cpus, system.plan.vms[0].config.vcpus))
        };
        assert_eq!((parse().plan.vms[0].config.vcpus, parse().plan.vms[1].config.vcpus), (3, 1));
        assert_eq!(resize(Some(2), Some(4)).expect("is good"), (2, 4));
        let error = |cpus, vcpus| resize(cpus, vcpus).expect_err("is refused").to_string();
        assert_eq!(error(None, None), "vm b is to run on CPU 1, but the machine's are 0 to 0 (--cpus 2)");
        assert_eq!(error(Some(2), Some(17)), "vm b: 17 virtual CPUs are not possible, 1 to 16 are");
        assert_eq!(error(Some(2), Some(0)), "vm b: 0 virtual CPUs are not possible, 1 to 16 are");
    }

    #[test]
    fn a_command_goes_to_the_first_linux() {
        let mut system = System::parse(&Source::from_text(GOOD)).expect("is good");
        system.execute(vec![1]).expect("has a Linux");
        assert_eq!(system.plan.vms[1].initrd, ["guests/a/initrd", "guests/a/exec"]);
        assert!(system.plan.vms[1].config.exec && !system.plan.vms[0].config.exec);
        assert_eq!(system.plan.vms[1].config.on_reset, OnReset::Stop);
        assert_eq!(system.plan.validate(), Ok(()));
    }

    #[test]
    fn a_console_is_reached_in_several_ways() {
        let consoles = |key: &str| {
            let text = GOOD.replacen("kernel = \"micro\"", &format!("kernel = \"micro\"\nconsole = {key}"), 1);
            let system = System::parse(&Source::from_text(&text)).expect("is good");
            [system.plan.vms[0].config.console, system.plan.vms[1].config.console]
        };
        assert_eq!(consoles("true"), [Console::Serial, Console::None]);
        assert_eq!(consoles("\"virtio\""), [Console::Virtio, Console::None]);
        assert_eq!(consoles("false"), [Console::None, Console::Serial]);
    }

    #[test]
    fn restarts_have_defaults() {
        let restart = |keys: &str| {
            let text = format!("[vm.a]\nkernel = \"micro\"\nmemory = \"4M\"\n{keys}");
            System::parse(&Source::from_text(&text)).expect("is good").plan.vms[0].restart
        };
        assert_eq!(restart(""), Restart::NEVER);
        let on_crash = Restart { after: RestartAfter::Crash, limit: None, delay: plan::RESTART_DELAY_MS };
        assert_eq!(restart("restart = \"on-crash\""), on_crash);
        let always = Restart { after: RestartAfter::Any, limit: Some(3), delay: 0 };
        assert_eq!(restart("restart = \"always\"\nrestart_limit = 3\nrestart_delay = 0"), always);
    }

    /// Each file in `tests/refused` begins with the place and the text of its error.
    #[test]
    fn refused_systems_say_why_and_where() {
        let mut wrong = String::new();
        for entry in std::fs::read_dir(workspace::root().join("tests/refused")).expect("is there") {
            let path = entry.expect("is readable").path();
            let source = Source::read(&path).expect("is readable");
            let first = std::fs::read_to_string(&path).expect("is readable");
            let expected = first.lines().next().and_then(|line| line.strip_prefix("# refused: ")).expect("says why");
            let error = format!("{:#}", System::parse(&source).expect_err("is refused"));
            if error != format!("{}:{expected}", workspace::shown(&path)) {
                wrong.push_str(&format!("\n{error}\n  instead of {expected}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    }

    #[test]
    fn impossible_memory_sizes_are_refused() {
        for size in ["0M", "512", "512MB", "-1M", "", "M", "5000000G", "99999999999M", "half"] {
            let text = format!("[vm.a]\nkernel = \"micro\"\nmemory = \"{size}\"\n");
            let expected = format!(
                "system.toml:3:10: impossible memory size {size:?}: write a number of MiB or GiB like \"512M\" or \"2G\""
            );
            assert_eq!(error(&text), expected);
        }
        for (size, bytes) in [("3M", 3 << 20), ("2M", 2 << 20), ("65M", 65 << 20)] {
            let text = format!("[vm.a]\nkernel = \"micro\"\nmemory = \"{size}\"\n");
            let expected = format!(
                "system.toml:3:10: vm a: impossible memory size {bytes} bytes: at least 4 MiB and a multiple of 2 MiB"
            );
            assert_eq!(error(&text), expected);
        }
    }

    #[test]
    fn every_system_of_the_tests_that_should_parse_does() {
        for name in names() {
            let source = Source::read(&find(&name).expect("is listed")).expect("is readable");
            if let Err(error) = System::parse(&source) {
                panic!("{error:#}");
            }
        }
    }
}
