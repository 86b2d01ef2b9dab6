//! What the words of the command line do.

mod apic;
mod devices;
mod exits;
mod fpu;
mod further;
mod guard;
mod hostile;
mod instructions;
mod measure;

use crate::console::Text;
use crate::words::{Words, number};
use crate::{cpu, ending, say};

/// Why a check has no success to tell.
pub enum Stop {
    /// Something was not as it should be.
    Failed(Text),
    /// This machine has not what it needs.
    Skipped(Text),
}

/// Of one check.
pub type Outcome = Result<(), Stop>;

/// Ends a check unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::tests::Stop::Failed($crate::console::Text::of(format_args!($($text)+))));
        }
    };
}

/// Ends a check where a condition makes it impossible.
#[macro_export]
macro_rules! skip {
    ($condition:expr, $($text:tt)+) => {
        if $condition {
            return Err($crate::tests::Stop::Skipped($crate::console::Text::of(format_args!($($text)+))));
        }
    };
}

/// A check and its name.
type Check = (&'static str, fn() -> Outcome);

enum Action {
    /// Checks, in this order.
    Checks(&'static [&'static [Check]]),
    /// One that looks at further words.
    With(fn(Words) -> Outcome),
    /// One that wants a number of its own, for which this stands if it has none.
    Number(fn(Words, u64) -> Outcome, Option<u64>),
    /// One that does not come back.
    End(fn() -> !),
}

/// A word.
pub struct Test {
    /// How it is written.
    pub word: &'static str,
    /// What it does.
    pub about: &'static str,
    action: Action,
}

impl Test {
    const fn new(word: &'static str, action: Action, about: &'static str) -> Self {
        Self { word, about, action }
    }
}

use Action::{Checks, End, Number, With};

/// All words.
pub const TESTS: &[Test] = &[
    Test::new("hello", Checks(&[instructions::FIRST, apic::FIRST]), "port output, CPUID, HLT"),
    Test::new(
        "basic",
        Checks(&[instructions::FIRST, instructions::CHECKS, devices::CHECKS, apic::CHECKS, fpu::CHECKS]),
        "everything that is quick",
    ),
    Test::new("refused", Checks(&[instructions::REFUSED]), "values that control registers refuse, but not in QEMU"),
    Test::new("mmio", Checks(&[devices::MMIO]), "device accesses by many kinds of instructions"),
    Test::new("badmmio", Checks(&[devices::NOTHING]), "accesses where there is neither RAM nor a device"),
    Test::new(
        "fpu",
        With(fpu::check),
        "registers keep their values: rounds=N or preemptions=N, limit=MS gap=US seed=S",
    ),
    Test::new("spin", Number(measure::spin, Some(0)), "loops with interrupts off: spin=MS, or for ever"),
    Test::new("count", Number(measure::count, None), "count=MS: iterations of a loop in a time"),
    Test::new("guard", Number(guard::check, None), "guard=MS: nobody writes to its memory in a time: size=MIB"),
    Test::new("exits", Number(exits::check, None), "what exits cost: exits=BATCHES only=NAME"),
    Test::new("smp", With(further::check), "several CPUs: start-up, IPIs, HLT, NMI, INIT: rounds=N"),
    Test::new("hostile", With(hostile::storm), "random accesses: rounds=N seed=S trace=N strict=1"),
    Test::new("halt", End(cpu::stop), "halts with interrupts off"),
    Test::new("idle", End(idle), "halts with interrupts on, for ever"),
    Test::new("poweroff", End(power_off), "powers off at once"),
    Test::new("reset", End(ending::reset), "resets the machine"),
    Test::new("triple", End(ending::triple_fault), "triple fault"),
    Test::new("jump", End(ending::jump_into_nothing), "jumps to where there is nothing"),
];

/// Words that are no tests but say how they run.
pub const PARAMETERS: &[&str] = &["rounds", "preemptions", "limit", "gap", "seed", "trace", "strict", "only", "size"];

impl Test {
    /// Runs it; returns how many checks failed.
    pub fn run(&self, words: Words, value: Option<&str>) -> u32 {
        let value = value.map(number);
        match self.action {
            Checks(lists) => lists.iter().copied().flatten().map(|(name, check)| verdict(name, check())).sum(),
            With(check) => verdict(self.word, check(words)),
            Number(check, default) => match value.unwrap_or(default) {
                Some(number) => verdict(self.word, check(words, number)),
                None => {
                    say!("failed {}: it needs a number", self.word);
                    1
                }
            },
            End(end) => {
                say!("{}: {}", self.word, self.about);
                end()
            }
        }
    }
}

fn idle() -> ! {
    loop {
        cpu::halt();
    }
}

fn power_off() -> ! {
    ending::finish(true)
}

fn verdict(name: &str, outcome: Outcome) -> u32 {
    match outcome {
        Ok(()) => say!("ok {name}"),
        Err(Stop::Skipped(why)) => say!("skipped {name}: {why}"),
        Err(Stop::Failed(what)) => {
            say!("failed {name}: {what}");
            return 1;
        }
    }
    0
}
