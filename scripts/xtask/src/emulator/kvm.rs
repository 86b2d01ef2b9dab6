//! QEMU on the host's own hardware virtualization, which has to be offered to guests in turn ("nested").

use std::fs;

use anyhow::{Result, bail};

use super::qemu::Execution;

/// The host's CPU as it is.
pub const NESTED: Execution = Execution::native("kvm", "host");

/// What KVM needs from the host, as the host's own files tell it.
struct Host {
    cpu_flags: String,
    device: Result<(), String>,
    nested: Option<String>,
}

/// Fails with everything that is missing.
pub fn check_host() -> Result<()> {
    let cpu_flags = fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':').map(|(_, flags)| flags.to_string()))
        .unwrap_or_default();
    let device = match fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    let nested = ["kvm_intel", "kvm_amd"]
        .iter()
        .find_map(|module| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok());
    let missing = missing(&Host { cpu_flags, device, nested });
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this machine cannot run the system on KVM: {}; `--on qemu` and `--on bochs` need none of it",
        missing.join("; ")
    );
}

fn missing(host: &Host) -> Vec<String> {
    let mut missing = Vec::new();
    if !host.cpu_flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") {
        missing.push("its CPU offers neither VT-x nor SVM (no `vmx` or `svm` among the flags in /proc/cpuinfo)".into());
    }
    if let Err(error) = &host.device {
        missing.push(format!("/dev/kvm cannot be opened ({error})"));
    }
    match host.nested.as_deref().map(str::trim) {
        Some("Y" | "1") => {}
        Some(_) => missing.push("nested virtualization is off (load kvm_intel or kvm_amd with `nested=1`)".into()),
        None => missing.push("neither kvm_intel nor kvm_amd is loaded".into()),
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &str, nested: Option<&str>) -> Host {
        Host { cpu_flags: flags.into(), device: Ok(()), nested: nested.map(String::from) }
    }

    #[test]
    fn a_host_with_nested_virtualization_misses_nothing() {
        assert!(missing(&host("fpu svm sse", Some("1\n"))).is_empty());
        assert!(missing(&host("fpu vmx", Some("Y\n"))).is_empty());
    }

    #[test]
    fn the_device_file_alone_is_not_enough() {
        let missing = missing(&host("fpu sse", None));
        assert_eq!(missing.len(), 2);
        assert!(missing[0].contains("neither VT-x nor SVM"), "{missing:?}");
    }

    #[test]
    fn nested_off_is_named() {
        let missing = missing(&host("vmx", Some("N\n")));
        assert_eq!(missing, ["nested virtualization is off (load kvm_intel or kvm_amd with `nested=1`)"]);
    }
}
