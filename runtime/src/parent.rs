//! Calls to the root task through the parent portal (selector 0x37): a word that names the operation, then arguments.
//!
//! The calls keep the words of the UTCB that they use, so that a portal server may log in the middle of handling an
//! event.

/// What to ask the root task for: word 0 of the message.
pub mod operation {
    /// The virtual machine ended. Words: [`super::Ended`], length, then the explanation's bytes.
    pub const VM_ENDED: u64 = 1;
    /// A line for the log. Words: 0, length, then the bytes.
    pub const LOG: u64 = 2;
    /// The program has finished. No further words.
    pub const EXIT: u64 = 3;
    /// The program panicked and will now raise #UD. Words: 0, length, then the message's bytes.
    pub const PANIC: u64 = 4;
}

/// How a virtual machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Ended {
    /// The guest switched its machine off.
    PoweredOff = 0,
    /// The guest reset its machine, and the plan says to stop then.
    Reset = 1,
    /// The guest did what no machine survives, e.g. a triple fault.
    Crashed = 2,
    /// The machine could not be built from its configuration.
    BadConfig = 3,
}

impl Ended {
    /// The reason with this number.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::PoweredOff),
            1 => Some(Self::Reset),
            2 => Some(Self::Crashed),
            3 => Some(Self::BadConfig),
            _ => None,
        }
    }
}

/// Most bytes of text in one message; the rest is cut off.
pub const TEXT_MAX: usize = 480;

#[cfg(target_os = "none")]
mod calls {
    use super::{Ended, TEXT_MAX, operation};
    use crate::{syscall, thread};
    use abi::Mtd;

    fn call(op: u64, argument: u64, text: &[u8]) {
        let mut utcb = thread::current_utcb();
        let text = &text[..text.len().min(TEXT_MAX)];
        let words = 3 + text.len().div_ceil(8);
        let mut saved = [0; 3 + TEXT_MAX.div_ceil(8)];
        for (i, word) in saved[..words].iter_mut().enumerate() {
            *word = utcb.word(i);
        }
        utcb.set_word(0, op);
        utcb.set_word(1, argument);
        utcb.set_word(2, text.len() as u64);
        utcb.put_bytes(3, text);
        // A root task that does not answer leaves nobody to tell.
        let _ = syscall::ipc_call(thread::current_parent(), Mtd::regular(words));
        for (i, word) in saved[..words].iter().enumerate() {
            utcb.set_word(i, *word);
        }
    }

    /// Tells how the virtual machine ended, with an explanation for the log.
    pub fn vm_ended(how: Ended, explanation: &str) {
        call(operation::VM_ENDED, how as u64, explanation.as_bytes());
    }

    /// Writes a line to the log on this program's behalf.
    pub fn log(line: &str) {
        call(operation::LOG, 0, line.as_bytes());
    }

    /// Tells that the program has finished, and stops this thread.
    pub fn exit() -> ! {
        call(operation::EXIT, 0, &[]);
        crate::sync::park()
    }

    /// Tells why the program panics.
    pub(crate) fn panic(message: &str) {
        call(operation::PANIC, 0, message.as_bytes());
    }
}

#[cfg(target_os = "none")]
pub(crate) use calls::panic;
#[cfg(target_os = "none")]
pub use calls::{exit, log, vm_ended};
