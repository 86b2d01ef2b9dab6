//! The micro guest: a kernel of its own that exercises one mechanism of the virtual machine at a time.
//!
//! Words on its command line choose what runs; the table in [`tests`] lists them. It checks itself, writes what it saw
//! to COM1 and to the execution channel, if there is one, and switches the machine off. A multiboot loader starts it:
//! that of our virtual machine monitor, or QEMU's own for a comparison with the bare machine:
//!
//! ```text
//! qemu-system-x86_64 -cpu max -kernel micro -append basic -serial stdio -display none \
//!     -device isa-debug-exit,iobase=0xf4,iosize=4
//! ```
#![no_std]
#![no_main]

mod clock;
mod console;
mod cpu;
mod ending;
mod entry;
mod further;
mod interrupts;
mod lapic;
mod random;
mod tests;
mod words;

use words::Words;

/// The program, in 64-bit mode, with the command line.
fn main(line: &str) -> ! {
    console::open();
    interrupts::set_up();
    mask_legacy_interrupts();
    let words = Words(line);
    let mut found = 0;
    let mut failed = 0;
    for (word, value) in words.iter() {
        if tests::PARAMETERS.contains(&word) {
            continue;
        }
        let Some(test) = tests::TESTS.iter().find(|test| test.word == word) else {
            say!("failed {word}: no such word; there are:");
            tests::TESTS.iter().for_each(|test| say!("  {:<10} {}", test.word, test.about));
            ending::finish(false);
        };
        found += 1;
        failed += test.run(words, value);
    }
    if found == 0 {
        say!("failed: no word on the command line says what to do");
    }
    ending::finish(found > 0 && failed == 0)
}

/// The 8259A pair is not used; before it is set up it would raise exceptions' vectors.
fn mask_legacy_interrupts() {
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}
