//! One virtual CPU: its first state, and what it leaves the guest for.

use std::arch::x86_64::_rdtsc;
use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use abi::utcb::{Architectural, Segment};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use machine::board::{Board, Effect};
use machine::bus::Width;
use machine::loader::Entry;
use rustix::io::Errno;

/// CPUID leaf 1, ECX: x2APIC, TSC deadline, hypervisor.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// The time that the devices' models live by.
#[allow(unsafe_code)]
pub fn now() -> u64 {
    // SAFETY: every 64-bit CPU has it, and Linux lets programs use it.
    unsafe { _rdtsc() }
}

/// Makes virtual CPU `index` of `count`.
pub fn create(kvm: &Kvm, vm: &VmFd, index: usize, count: usize) -> Result<VcpuFd, Box<dyn Error>> {
    let vcpu = vm.create_vcpu(index as u64)?;
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    place(&mut cpuid, index as u32, count as u32);
    vcpu.set_cpuid2(&cpuid)?;
    Ok(vcpu)
}

/// Says in CPUID which CPU this is, and what KVM's LAPIC has.
fn place(cpuid: &mut CpuId, index: u32, count: u32) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | index << 24 | count << 16;
                entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
                entry.edx |= 1 << 28;
            }
            0xb | 0x1f => entry.edx = index,
            _ => {}
        }
    }
}

/// Sets the state in which a loader leaves the first CPU.
pub fn enter(vcpu: &VcpuFd, entry: &Entry) -> Result<(), Box<dyn Error>> {
    let mut state = Architectural::default();
    entry.apply(&mut state);
    let mut special = vcpu.get_sregs()?;
    for (to, from) in [
        (&mut special.cs, state.cs),
        (&mut special.ds, state.ds),
        (&mut special.es, state.es),
        (&mut special.fs, state.fs),
        (&mut special.gs, state.gs),
        (&mut special.ss, state.ss),
        (&mut special.tr, state.tr),
        (&mut special.ldt, state.ldtr),
    ] {
        *to = segment(from);
    }
    (special.cr0, special.cr4, special.efer) = (state.cr0, 0, 0);
    vcpu.set_sregs(&special)?;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, ..] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    vcpu.set_regs(&kvm_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rip, rflags, ..Default::default() })?;
    Ok(())
}

fn segment(from: Segment) -> kvm_segment {
    let bit = |number: u32| (from.access >> number & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.access & 0xf) as u8,
        s: bit(4),
        dpl: (from.access >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(8),
        l: bit(9),
        db: bit(10),
        g: bit(11),
        unusable: bit(12),
        padding: 0,
    }
}

/// A virtual CPU that runs.
pub struct Runner {
    vcpu: VcpuFd,
    board: Arc<Mutex<Board>>,
}

/// How it goes on.
enum Next {
    Resume,
    PowerOff,
}

impl Runner {
    /// With the devices that all share.
    pub fn new(vcpu: VcpuFd, board: Arc<Mutex<Board>>) -> Self {
        Self { vcpu, board }
    }

    /// Runs it until the guest powers off.
    pub fn run(mut self) -> Result<(), Box<dyn Error>> {
        loop {
            let next = match self.vcpu.run() {
                Ok(exit) => serve(exit, &self.board)?,
                // The guest has started it, or not yet.
                Err(error) if error.errno() == Errno::AGAIN.raw_os_error() => Next::Resume,
                Err(error) => return Err(error.into()),
            };
            if matches!(next, Next::PowerOff) {
                return Ok(());
            }
        }
    }
}

fn serve(exit: VcpuExit, board: &Mutex<Board>) -> Result<Next, Box<dyn Error>> {
    // The board has no state that a panic would leave half done.
    let lock = || board.lock().unwrap_or_else(PoisonError::into_inner);
    match exit {
        VcpuExit::IoOut(port, data) => {
            let Some(width) = Width::from_bytes(data.len()) else { return Ok(Next::Resume) };
            let effect = lock().io_write(port, width, value(data) as u32, now());
            return Ok(carry_out(effect, &mut lock()));
        }
        VcpuExit::IoIn(port, data) => {
            let read = |width| lock().io_read(port, width, now());
            let value = Width::from_bytes(data.len()).map_or(u32::MAX, read);
            data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        }
        VcpuExit::MmioRead(address, data) => {
            let read = |width| lock().mmio_read(address, width);
            let value = Width::from_bytes(data.len()).map_or(u64::MAX, read);
            data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        }
        VcpuExit::MmioWrite(address, data) => {
            if let Some(width) = Width::from_bytes(data.len()) {
                lock().mmio_write(address, width, value(data), now());
            }
        }
        VcpuExit::IoapicEoi(vector) => lock().end_of_interrupt(vector),
        other => return Err(format!("the guest left for {other:?}").into()),
    }
    Ok(Next::Resume)
}

fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn carry_out(effect: Effect, board: &mut Board) -> Next {
    match effect {
        Effect::SerialOutput => {
            let mut bytes = [0; 64];
            let length = board.drain_serial(&mut bytes);
            // Nobody could be told that it failed.
            let _ = std::io::stdout().write_all(&bytes[..length]);
        }
        Effect::PowerOff | Effect::Reset => return Next::PowerOff,
        _ => {}
    }
    Next::Resume
}
