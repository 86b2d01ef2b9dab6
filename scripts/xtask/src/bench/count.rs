//! What a window holds, counted: instructions by who executes them, and what costs more than an instruction.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};

use super::window::{Step, Window};

/// Who executes an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The kernel, which has the upper half of all address spaces.
    Kernel,
    /// A program.
    User,
    /// Anything in a virtual machine.
    Guest,
}

/// What a window holds.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Instructions of the kernel.
    pub kernel: u64,
    /// Instructions of programs.
    pub user: u64,
    /// Instructions of guests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub guest: u64,
    /// Lines of 64 bytes that the kernel executes from.
    pub code_lines: u64,
    /// Lines of 64 bytes that the kernel reads or writes.
    pub data_lines: u64,
    /// Pages of 4 KiB that the kernel executes from.
    pub code_pages: u64,
    /// Pages of 4 KiB that the kernel reads or writes.
    pub data_pages: u64,
    /// What the kernel executes that costs more than an instruction, by name.
    #[serde(default, flatten)]
    pub events: BTreeMap<String, u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Counts {
    /// What `window` holds.
    pub fn of(window: &Window) -> Self {
        let mut counts = Self::default();
        let (mut code_lines, mut data_lines) = (BTreeSet::new(), BTreeSet::new());
        let (mut code_pages, mut data_pages) = (BTreeSet::new(), BTreeSet::new());
        for (step, mode) in window.steps.iter().zip(modes(&window.steps)) {
            match mode {
                Mode::Kernel => counts.kernel += 1,
                Mode::User => counts.user += 1,
                Mode::Guest => counts.guest += 1,
            }
            if mode != Mode::Kernel {
                continue;
            }
            for byte in [0, step.code.len().saturating_sub(1) as u64] {
                code_lines.insert((step.address + byte) >> 6);
                code_pages.insert((step.address + byte) >> 12);
            }
            for access in &step.accesses {
                data_lines.insert(access.place >> 6);
                data_pages.insert(access.address >> 12);
            }
            if let Some(event) = event(&decode(step)) {
                *counts.events.entry(event.into()).or_default() += 1;
            }
        }
        counts.code_lines = code_lines.len() as u64;
        counts.data_lines = data_lines.len() as u64;
        counts.code_pages = code_pages.len() as u64;
        counts.data_pages = data_pages.len() as u64;
        counts
    }
}

impl Counts {
    /// One count by its name. `lines` and `pages` are those of code and data, `vmload_vmsave` is both.
    pub fn number(&self, name: &str) -> u64 {
        let event = |name: &str| self.events.get(name).copied().unwrap_or_default();
        match name {
            "lines" => self.code_lines + self.data_lines,
            "pages" => self.code_pages + self.data_pages,
            "vmload_vmsave" => event("vmload") + event("vmsave"),
            _ => event(name),
        }
    }
}

/// An instruction as the processor reads it.
pub fn decode(step: &Step) -> Instruction {
    Decoder::with_ip(64, &step.code, step.address, DecoderOptions::NONE).decode()
}

/// Who executes each step. A guest runs from the instruction that enters it to one behind that (SVM, and entries that
/// fail), or to one of the kernel's (VMX): the guests that are measured run at low addresses.
pub fn modes(steps: &[Step]) -> Vec<Mode> {
    let mut guest = false;
    let mut behind = None;
    let mut modes = Vec::with_capacity(steps.len());
    // A window may begin in a guest: then the kernel is entered by no call, and enters the guest again.
    if let Some(first) = steps.iter().position(is_kernel) {
        let call = steps[..first]
            .last()
            .is_none_or(|step| matches!(decode(step).mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter));
        guest = !call && steps.iter().any(enters_guest);
    }
    for step in steps {
        if guest && (is_kernel(step) || Some(step.address) == behind) {
            guest = false;
        }
        modes.push(match (guest, is_kernel(step)) {
            (true, _) => Mode::Guest,
            (false, true) => Mode::Kernel,
            (false, false) => Mode::User,
        });
        if enters_guest(step) {
            guest = true;
            behind = Some(step.address + step.code.len() as u64);
        }
    }
    modes
}

fn is_kernel(step: &Step) -> bool {
    step.address >> 63 == 1
}

fn enters_guest(step: &Step) -> bool {
    is_kernel(step) && matches!(decode(step).mnemonic(), Mnemonic::Vmrun | Mnemonic::Vmlaunch | Mnemonic::Vmresume)
}

/// The name of what costs more than an instruction.
fn event(instruction: &Instruction) -> Option<&'static str> {
    Some(match instruction.mnemonic() {
        Mnemonic::Wrmsr => "wrmsr",
        Mnemonic::Rdmsr => "rdmsr",
        Mnemonic::Mov if instruction.op0_register() == Register::CR3 => "cr3",
        Mnemonic::Mov if instruction.op0_register().is_cr() || instruction.op0_register().is_dr() => "cr_dr",
        Mnemonic::Clts => "cr_dr",
        Mnemonic::Xsetbv => "xsetbv",
        Mnemonic::Vmread => "vmread",
        Mnemonic::Vmwrite => "vmwrite",
        Mnemonic::Vmptrld | Mnemonic::Vmclear => "vmptrld",
        Mnemonic::Invept | Mnemonic::Invvpid | Mnemonic::Invpcid | Mnemonic::Invlpg | Mnemonic::Invlpga => "invalidate",
        Mnemonic::Vmload => "vmload",
        Mnemonic::Vmsave => "vmsave",
        Mnemonic::Clgi => "clgi",
        Mnemonic::Stgi => "stgi",
        Mnemonic::Vmrun | Mnemonic::Vmlaunch | Mnemonic::Vmresume => "vmentry",
        Mnemonic::Swapgs => "swapgs",
        Mnemonic::Iretq => "iret",
        Mnemonic::Cpuid => "cpuid",
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => "rdtsc",
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => "fence",
        Mnemonic::In | Mnemonic::Out => "port",
        Mnemonic::Xchg if instruction.op0_kind() == OpKind::Memory => "locked",
        _ if instruction.has_lock_prefix() => "locked",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::window::Access;

    const KERNEL: u64 = 0xffff_ffff_8020_0000;

    fn window(steps: &[(u64, &[u8])]) -> Window {
        let step = |(address, code): &(u64, &[u8])| Step {
            address: *address,
            place: 0,
            code: code.to_vec(),
            accesses: vec![Access { address: *address, place: address & 0xfff }],
        };
        Window { number: 0, steps: steps.iter().map(step).collect() }
    }

    #[test]
    fn a_call_is_the_programs_and_the_kernels() {
        let counts = Counts::of(&window(&[
            (0x1000, &[0x0f, 0x05]),
            (KERNEL, &[0x0f, 0x22, 0xd8]),
            (KERNEL + 0x3e, &[0xf0, 0x48, 0xff, 0x00]),
            (0x1002, &[0x90]),
        ]));
        assert_eq!((counts.kernel, counts.user, counts.guest), (2, 2, 0));
        // The second one lies across two lines.
        assert_eq!((counts.code_lines, counts.data_lines, counts.number("lines")), (2, 1, 3));
        assert_eq!((counts.number("cr3"), counts.number("locked"), counts.number("wrmsr")), (1, 1, 0));
    }

    #[test]
    fn an_exit_is_the_guests_and_the_kernels() {
        for entry in [[0x0f, 0x01, 0xd8], [0x0f, 0x01, 0xc3]] {
            let counts = Counts::of(&window(&[
                (0x1000, &[0x0f, 0xa2]),
                (KERNEL, &[0x90]),
                (0x2000, &[0x0f, 0x05]),
                (KERNEL, &entry),
                (0x1002, &[0x90]),
            ]));
            assert_eq!((counts.kernel, counts.user, counts.guest), (2, 1, 2));
            assert_eq!(counts.number("vmentry"), 1);
        }
    }

    #[test]
    fn an_interrupted_program_is_no_guest() {
        let counts = Counts::of(&window(&[(0x1000, &[0xee]), (KERNEL, &[0x90])]));
        assert_eq!((counts.kernel, counts.user, counts.guest), (1, 1, 0));
    }
}
