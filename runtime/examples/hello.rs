//! The smallest program: a line in the log.
#![no_std]
#![no_main]
runtime::main!(main);

fn main() {
    runtime::log!("hello from {}", runtime::manifest().name);
}
