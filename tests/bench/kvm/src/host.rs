//! The Linux around: what its first process has to do.

use std::error::Error;
use std::fs::{self, File};
use std::io::stdout;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::tcdrain;

/// KVM's modules, in the order of their dependencies; of the last two only the CPU's vendor's loads.
const MODULES: [&str; 4] = ["irqbypass", "kvm", "kvm-intel", "kvm-amd"];

/// Mounts what is needed, and loads KVM.
pub fn prepare() -> Result<(), Box<dyn Error>> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, place, kind, MountFlags::empty(), None).map_err(|error| format!("mounting {place}: {error}"))?;
    }
    for module in MODULES {
        let path = format!("/modules/{module}.ko");
        let loaded = File::open(&path).and_then(|file| Ok(finit_module(file, c"", 0)?));
        if let Err(error) = loaded {
            println!("peer: module {module}: {error}");
        }
    }
    if !Path::new("/dev/kvm").exists() {
        return Err("there is no /dev/kvm: this CPU has no virtualization that KVM knows".into());
    }
    Ok(())
}

/// Says which kernel this is, and how it and its modules were told to work.
pub fn describe() {
    let show = |path: &Path| {
        if let Ok(value) = fs::read_to_string(path) {
            println!("peer: {}: {}", path.display(), value.trim());
        }
    };
    for file in ["/proc/version", "/proc/cmdline", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        show(Path::new(file));
    }
    for folder in ["kvm", "kvm_intel", "kvm_amd"].map(|module| format!("/sys/module/{module}/parameters")) {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut values: Vec<String> = entries
            .filter_map(|entry| {
                let value = fs::read_to_string(entry.path()).ok()?;
                Some(format!("{}={}", entry.file_name().display(), value.trim()))
            })
            .collect();
        values.sort();
        if !values.is_empty() {
            println!("peer: {folder}: {}", values.join(" "));
        }
    }
    let mut problems: Vec<_> =
        fs::read_dir("/sys/devices/system/cpu/vulnerabilities").into_iter().flatten().flatten().collect();
    problems.sort_by_key(|entry| entry.file_name());
    problems.iter().for_each(|entry| show(&entry.path()));
}

/// Ends the machine, when what was printed has left the serial port.
pub fn power_off() -> ! {
    let _ = tcdrain(stdout());
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}
