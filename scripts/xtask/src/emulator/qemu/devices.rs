//! QEMU's devices, as a system file names them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::super::text;
use super::IOMMU;
use crate::system::devices::{Device, DeviceKind, DiskContent, DiskInterface, NicInterface};
use crate::workspace;

/// Where a disk's content is during a run, in the run's folder, and after it.
pub fn image(folder: &Path, disk: &str) -> PathBuf {
    folder.join(format!("{disk}.img"))
}

/// The arguments for `devices`, whose disks get a fresh copy of their content in `folder`.
pub fn arguments(devices: &[Device], folder: &Path) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for device in devices {
        let name = &device.name;
        let others = |other: &&Device| other.address.device() == device.address.device();
        let several = if devices.iter().filter(others).count() > 1 { ",multifunction=on" } else { "" };
        let (slot, function) = (device.address.device(), device.address.function());
        let place = format!("bus=pcie.0,addr={slot:02x}.{function}{several}");
        // Virtio devices without `iommu_platform` go past an IOMMU.
        let modern = "disable-legacy=on,iommu_platform=on";
        match &device.kind {
            DeviceKind::Iommu => arguments.extend(IOMMU.map(String::from)),
            DeviceKind::Disk(interface, content) => {
                let content = match content {
                    DiskContent::Nothing(size) => format!("driver=null-co,read-zeroes=on,size={size}"),
                    content => {
                        let file = image(folder, name);
                        fill(&file, content)?;
                        // What the host's own crash would lose does not matter.
                        format!("file={},format=raw,cache=unsafe", text(&file))
                    }
                };
                arguments.extend(["-drive".into(), format!("{content},if=none,id=drive-{name}")]);
                let backend = format!("drive=drive-{name}");
                let device = match interface {
                    DiskInterface::Nvme => format!("nvme,{backend},serial={name},{place}"),
                    DiskInterface::Virtio => format!("virtio-blk-pci,{backend},{modern},{place}"),
                    DiskInterface::Ahci => {
                        arguments.extend(["-device".into(), format!("ahci,id={name},{place}")]);
                        format!("ide-hd,{backend},bus={name}.0")
                    }
                };
                arguments.extend(["-device".into(), device]);
            }
            DeviceKind::Nic(interface) => {
                arguments.extend(["-netdev".into(), format!("user,id=net-{name}")]);
                // Without a ROM, which would only look for something to boot.
                let backend = format!("netdev=net-{name},romfile=,{place}");
                let device = match interface {
                    NicInterface::Virtio => format!("virtio-net-pci,{modern},{backend}"),
                    NicInterface::E1000e => format!("e1000e,{backend}"),
                };
                arguments.extend(["-device".into(), device]);
            }
        }
    }
    Ok(arguments)
}

fn fill(file: &Path, content: &DiskContent) -> Result<()> {
    let failed = || format!("cannot write {}", workspace::shown(file));
    match content {
        DiskContent::Empty(size) => {
            fs::File::create(file).and_then(|file| file.set_len(*size)).with_context(failed)?;
        }
        DiskContent::Image(from, size) => {
            let length = fs::copy(from, file).with_context(failed)?;
            fs::OpenOptions::new()
                .write(true)
                .open(file)
                .and_then(|file| file.set_len(length.max(*size)))
                .with_context(failed)?;
        }
        DiskContent::Recipe(name, _) => bail!("the disk of recipe {name} was not made"),
        DiskContent::Nothing(_) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::PciAddress;

    fn device(name: &str, device: u8, function: u8, kind: DeviceKind) -> Device {
        Device { name: name.into(), address: PciAddress::new(0, device, function), kind }
    }

    #[test]
    fn each_run_starts_with_the_same_content() {
        let folder = workspace::folder("test/devices").expect("can be made");
        let original = folder.join("original");
        fs::write(&original, b"as it was").expect("can be written");
        let kind = DeviceKind::Disk(DiskInterface::Nvme, DiskContent::Image(original, 12));
        let devices = [device("d0", 4, 0, kind)];
        for _ in 0..2 {
            arguments(&devices, &folder).expect("can be prepared");
            let copy = image(&folder, "d0");
            assert_eq!(fs::read(&copy).expect("is there"), b"as it was\0\0\0");
            fs::write(&copy, b"changed").expect("can be written");
        }
        let empty = DeviceKind::Disk(DiskInterface::Nvme, DiskContent::Empty(1 << 20));
        arguments(&[device("d0", 4, 0, empty)], &folder).expect("can be prepared");
        assert_eq!(fs::read(image(&folder, "d0")).expect("is there"), vec![0; 1 << 20]);
    }

    #[test]
    fn functions_of_one_device_say_so() {
        let folder = workspace::folder("test/devices").expect("can be made");
        let nic = |function| device("n", 0x1e, function, DeviceKind::Nic(NicInterface::E1000e));
        let line = |devices: &[Device]| arguments(devices, &folder).expect("can be prepared").join(" ");
        let one = "-netdev user,id=net-n -device e1000e,netdev=net-n,romfile=,bus=pcie.0,addr=1e.0";
        assert_eq!(line(&[nic(0)]), one);
        assert!(line(&[nic(0), nic(1)]).ends_with("bus=pcie.0,addr=1e.1,multifunction=on"));
    }
}
