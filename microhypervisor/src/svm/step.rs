//! What SVM leaves to software: interrupt and NMI windows, and exits when the task priority sinks below a threshold.
//!
//! An interrupt window is a virtual interrupt that is intercepted instead of delivered (AMD APM vol. 2, 15.21.4).
//! An injected NMI blocks others until its handler's IRET is done. The IRET exits (AMD APM vol. 2, 15.13), and then is
//! executed alone, by a single step of which the guest sees nothing. Single steps also take a guest that can soon take
//! an NMI out of an interrupt shadow, and let it write CR8 while there is a threshold, or a virtual interrupt: with one QEMU
//! cannot bear it (see `docs/emulators.md`).

use super::Svm;
use super::spec::{CR8_WRITE, INFO_VALID, code, first, virtual_interrupt};
use crate::lapic;
use crate::vcpu::register::DR6_CONDITIONS;
use crate::vcpu::vector;
use abi::event::guest;
use abi::mtd::injection;

/// RFLAGS: single step.
const TF: u64 = 1 << 8;
/// DR6: a single step is done.
const DR6_STEP: u64 = 1 << 14;
/// DR6 without any condition.
const DR6_NONE: u64 = 0xffff_0ff0;
/// What exits during a step, lest the guest find TF in what an exception saves. Not #BP and #OF: they cannot be
/// injected again where the CPU does not tell the length of their instruction.
const STEP_EXCEPTIONS: u32 = !(1 << vector::BREAKPOINT | 1 << vector::OVERFLOW);

/// Whether the guest can take an NMI.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Nmi {
    /// It can.
    #[default]
    Open,
    /// Until an IRET.
    Blocked,
    /// Until this IRET.
    Leaving(u64),
}

/// Why and how software watches a guest.
#[derive(Default)]
pub struct Watch {
    /// Blocking of NMIs.
    pub nmi: Nmi,
    /// The latest entry injects an NMI.
    injects_nmi: bool,
    /// Task priority below which the VMM wants an exit.
    pub threshold: u64,
    /// A write of CR8 is about to be executed.
    writes_priority: bool,
    /// During a single step: the guest's own TF and DR6.
    step: Option<(u64, u64)>,
}

impl Watch {
    /// Whether nothing is watched.
    pub fn is_idle(&self) -> bool {
        let steps = self.injects_nmi || self.writes_priority || self.step.is_some();
        self.nmi == Nmi::Open && self.threshold == 0 && !steps
    }
}

impl Svm {
    /// Before an entry: sets up what has to be watched, or finds an event that is due.
    pub(super) fn watch(&mut self) -> Option<u16> {
        let (intercepts, exceptions) = (self.cr_intercepts, self.exception_intercepts());
        let [interrupt, nmi] =
            [injection::INTERRUPT_WINDOW, injection::NMI_WINDOW].map(|window| self.windows & window != 0);
        let (vmcb, watch) = self.parts();
        let injects = vmcb.injection & INFO_VALID != 0;
        watch.injects_nmi = injects && vmcb.injection as u32 & injection::TYPE_MASK == injection::TYPE_NMI;
        if matches!(watch.nmi, Nmi::Leaving(rip) if injects || rip != vmcb.rip) {
            watch.nmi = Nmi::Blocked;
        }
        let low = watch.threshold > vmcb.task_priority();
        let window = nmi && watch.nmi == Nmi::Open;
        let shadow = vmcb.interrupt_shadow & 1 != 0;
        if !injects && low {
            return Some(guest::TPR_BELOW_THRESHOLD);
        }
        if !injects && window && !shadow {
            self.windows &= !injection::NMI_WINDOW;
            return Some(guest::NMI_WINDOW);
        }
        if injects && !watch.injects_nmi && (low || window) {
            // The event is due behind the injection: a physical interrupt ends the guest's run there.
            lapic::send(lapic::id(), lapic::CALL_ATTENTION);
        }
        let iret = if watch.nmi == Nmi::Blocked || watch.injects_nmi { first::IRET } else { 0 };
        // QEMU may deliver an injected interrupt twice (`docs/emulators.md`): where it is taken at once a virtual one, that is
        // not intercepted, takes its place. RFLAGS bit 9: interrupts are on.
        let open = vmcb.rflags & 1 << 9 != 0 && !(shadow || interrupt || window || low);
        let taken = open && injects && vmcb.injection as u32 & injection::TYPE_MASK == injection::TYPE_EXTERNAL;
        let pending = u64::from(taken || interrupt && !watch.writes_priority) * virtual_interrupt::PENDING;
        let (vector, intercept) = if taken { (vmcb.injection as u8, 0) } else { (0, first::VIRTUAL_INTERRUPT) };
        vmcb.injection = if taken { 0 } else { vmcb.injection };
        vmcb.first_intercepts = vmcb.first_intercepts & !(first::IRET | first::VIRTUAL_INTERRUPT) | iret | intercept;
        // The vector is in bits 39:32.
        let others = vmcb.virtual_interrupt as u32 as u64 & !virtual_interrupt::PENDING;
        vmcb.virtual_interrupt = others | pending | (vector as u64) << 32;
        let priority = (watch.threshold != 0 || interrupt) && !watch.writes_priority;
        vmcb.cr_intercepts = intercepts | if priority { CR8_WRITE } else { 0 };
        vmcb.exception_intercepts = exceptions;
        if matches!(watch.nmi, Nmi::Leaving(_)) || watch.writes_priority || window && shadow && !injects {
            watch.step = Some((vmcb.rflags & TF, vmcb.dr6));
            vmcb.rflags |= TF;
            vmcb.dr6 = DR6_NONE;
            vmcb.exception_intercepts |= STEP_EXCEPTIONS;
        }
        None
    }

    /// After an exit: takes notice of what was watched. True if the exit has no other reason.
    pub(super) fn watched(&mut self, exit_code: u64) -> bool {
        const STEPPED: u64 = code::EXCEPTION + vector::DEBUG as u64;
        let wants_priority = self.cr_intercepts & CR8_WRITE != 0;
        let (vmcb, watch) = self.parts();
        let interrupted = vmcb.interrupted & INFO_VALID != 0;
        if core::mem::take(&mut watch.injects_nmi) && !interrupted && exit_code != code::INVALID {
            watch.nmi = Nmi::Blocked;
        }
        watch.writes_priority = false;
        if let Some((tf, dr6)) = watch.step.take() {
            let leaving = matches!(watch.nmi, Nmi::Leaving(_));
            // Of IRET QEMU does not say that it was a step.
            let stepped = exit_code == STEPPED && (leaving || vmcb.dr6 & DR6_STEP != 0);
            if leaving && (code::EXCEPTION..=code::EXCEPTION_LAST).contains(&exit_code) {
                watch.nmi = Nmi::Open;
            }
            // An IRET has loaded the TF that it found.
            if !(leaving && stepped) {
                vmcb.rflags = vmcb.rflags & !TF | tf;
            }
            // A step can also set the bits of breakpoints that are not on (Intel SDM vol. 3B, 18.2.3).
            let off = (0..4).filter(|n| vmcb.dr7 >> (2 * n) & 3 == 0).fold(0, |bits, n| bits | 1 << n);
            let conditions = vmcb.dr6 & DR6_CONDITIONS & !off & !if tf == 0 { DR6_STEP } else { 0 };
            vmcb.dr6 = dr6 | conditions;
            if stepped && conditions == 0 {
                return true;
            }
        }
        match exit_code {
            code::IRET => watch.nmi = Nmi::Leaving(vmcb.rip),
            code::CR8_WRITE if !wants_priority => watch.writes_priority = true,
            _ => return false,
        }
        true
    }
}
