//! One virtual machine: its memory, its devices, its virtual CPUs.
#![allow(unsafe_code)] // Gives memory of this process to the guest.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};
use machine::backplane::Backplane;
use machine::board::{Board, Config};
use machine::clock::WallClock;
use machine::loader::{Images, multiboot1};
use machine::memory::GuestMemory;

use crate::host;
use crate::ram::HostRam;
use crate::vcpu::{self, Runner};

/// What the system file of Kilonova's guest has, too.
const MEMORY: usize = 128 << 20;
const VCPUS: usize = 2;
/// Pages below 4 GiB, outside RAM, that KVM wants on Intel CPUs.
const TASK_STATE: usize = 0xfffb_d000;
const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Pins of the I/O APIC, which is one of our models.
const IOAPIC_PINS: u64 = 24;

/// Runs the guest until it powers off.
pub fn run(guest: &[u8], words: &str) -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    if kvm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TASK_STATE)?;
        vm.set_identity_map_address(IDENTITY_MAP)?;
    }
    // LAPICs in the kernel; the I/O APIC and everything older are models in user space.
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS, 0, 0, 0], ..Default::default() })?;
    let ram = give_memory(&vm)?;
    let entry = multiboot1::load(&ram, &Images { kernel: guest, initrds: &[], cmdline: words })
        .map_err(|error| error.to_string())?;
    println!(
        "peer: KVM, API {}, split irqchip, {VCPUS} CPUs, {} MiB, {}",
        kvm.get_api_version(),
        MEMORY >> 20,
        entry.description
    );

    let mut vcpus = Vec::new();
    for index in 0..VCPUS {
        vcpus.push(vcpu::create(&kvm, &vm, index, VCPUS)?);
    }
    vcpu::enter(&vcpus[0], &entry)?;
    let frequency = u64::from(vcpus[0].get_tsc_khz()?) * 1000;
    let config = Config {
        stc_frequency: frequency,
        wall_clock: WallClock::default(),
        memory_below_4g: ram.ram().below_4g(),
        memory_above_4g: 0,
        exec_channel: false,
    };
    let backplane = Arc::new(Backplane::new(VCPUS));
    let board = Arc::new(Mutex::new(Board::new(&config, backplane, Arc::default(), vcpu::now())));
    let first = vcpus.remove(0);
    for other in vcpus {
        let runner = Runner::new(other, board.clone());
        thread::spawn(move || {
            if let Err(error) = runner.run() {
                println!("peer: failed: {error}");
                host::power_off();
            }
        });
    }
    Runner::new(first, board).run()
}

fn give_memory(vm: &VmFd) -> Result<HostRam, Box<dyn Error>> {
    let ram = HostRam::new(MEMORY);
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: ram.address(),
    };
    // SAFETY: the memory stays, and nobody holds a reference into it.
    unsafe { vm.set_user_memory_region(region)? };
    Ok(ram)
}
