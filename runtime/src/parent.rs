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
    /// Something about a PCI function that the virtual machine has to itself. Words: its number in the machine's
    /// configuration, [`super::FunctionWish`]. The answer's word 0 says whether a wish is still being granted.
    pub const FUNCTION: u64 = 5;
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

/// What a monitor wants of a PCI function of its own. One wish is granted at a time; a later one takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum FunctionWish {
    /// Nothing: to know whether the last wish was granted.
    Nothing = 0,
    /// It may send requests: DMA and messages.
    Send = 1,
    /// It may not.
    Hold = 2,
    /// It is reset, and may send nothing then.
    Reset = 3,
}

impl FunctionWish {
    /// The wish with this number.
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nothing),
            1 => Some(Self::Send),
            2 => Some(Self::Hold),
            3 => Some(Self::Reset),
            _ => None,
        }
    }
}

/// Most bytes of text in one message; the rest is cut off.
pub const TEXT_MAX: usize = 480;

#[cfg(target_os = "none")]
mod calls {
    use super::{Ended, FunctionWish, TEXT_MAX, operation};
    use crate::{syscall, thread};
    use abi::Mtd;

    fn call(op: u64, argument: u64, text: &[u8]) {
        ask(op, argument, text.len() as u64, text);
    }

    fn ask(op: u64, argument: u64, second: u64, text: &[u8]) -> u64 {
        let mut utcb = thread::current_utcb();
        let text = &text[..text.len().min(TEXT_MAX)];
        let words = 3 + text.len().div_ceil(8);
        let mut saved = [0; 3 + TEXT_MAX.div_ceil(8)];
        for (i, word) in saved[..words].iter_mut().enumerate() {
            *word = utcb.word(i);
        }
        utcb.set_word(0, op);
        utcb.set_word(1, argument);
        utcb.set_word(2, second);
        utcb.put_bytes(3, text);
        // A root task that does not answer leaves nobody to tell.
        let called = syscall::ipc_call(thread::current_parent(), Mtd::regular(words));
        let answer = if called.is_ok() { utcb.word(0) } else { 0 };
        for (i, word) in saved[..words].iter().enumerate() {
            utcb.set_word(i, *word);
        }
        answer
    }

    /// Tells what is wanted of function `number` of the virtual machine, and waits until that is done.
    pub fn function(number: usize, wish: FunctionWish) {
        /// Between two looks, in milliseconds.
        const LOOK_MS: u64 = 1;
        let mut busy = ask(operation::FUNCTION, number as u64, wish as u64, &[]);
        while busy != 0 {
            crate::sync::sleep_until(crate::time::now() + crate::time::ticks_from_ms(LOOK_MS));
            busy = ask(operation::FUNCTION, number as u64, FunctionWish::Nothing as u64, &[]);
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
pub use calls::{exit, function, log, vm_ended};
