//! The peer of `cargo xtask bench`: a minimal virtual-machine monitor over /dev/kvm, which runs the micro guest that
//! Kilonova runs, with the same models of its devices behind it.
//!
//! It is the first and only process of a Linux on the emulated machine (`/init`, linked statically). It loads KVM's
//! modules, says what it found, runs `/guest` with the words of `/words` as its command line, and powers the machine off.
//! KVM has its best configuration: LAPICs in the kernel, memory touched before, large pages, no timer of ours.

mod host;
mod ram;
mod vcpu;
mod vm;

use std::error::Error;
use std::fs;

fn main() {
    let outcome = run();
    if let Err(error) = &outcome {
        println!("peer: failed: {error}");
    }
    println!("peer: end");
    host::power_off();
}

fn run() -> Result<(), Box<dyn Error>> {
    host::prepare()?;
    host::describe();
    let words = fs::read_to_string("/words").map_err(|error| format!("/words: {error}"))?;
    let guest = fs::read("/guest").map_err(|error| format!("/guest: {error}"))?;
    vm::run(&guest, words.trim())
}
