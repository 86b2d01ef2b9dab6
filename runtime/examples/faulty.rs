//! Stands in for a monitor and goes wrong as the command line of its virtual machine says: for tests of what the root
//! task makes of it. `work` does nothing wrong.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::asm;
use core::hint::black_box;
use plan::VmConfig;
use runtime::parent::{self, Ended};
use runtime::sync::sleep_until;
use runtime::thread::{self, Server};
use runtime::utcb::Utcb;
use runtime::{log, manifest, syscall, time};

runtime::main!(main);

/// How long `work` works: longer than the watchdog's patience.
const WORK_MS: u64 = 15_000;
/// Where nothing is mapped.
const NOWHERE: u64 = 0xdead_0000;

fn main() {
    let range = manifest().config;
    // SAFETY: the manifest says that this memory is mapped read-only, for ever.
    let bytes = unsafe { core::slice::from_raw_parts(range.address as *const u8, range.length as usize) };
    let config = VmConfig::decode(bytes).unwrap_or_else(|error| panic!("the configuration {error}"));
    log!("{}", config.cmdline);
    match config.cmdline.as_str() {
        // SAFETY: none: this is the fault that is asked for.
        "wild store" => unsafe { (NOWHERE as *mut u8).write_volatile(1) },
        // SAFETY: raises #UD.
        "undefined instruction" => unsafe { asm!("ud2") },
        "stack overflow" => log!("{}", deep(1)),
        "endless loop" => endless_loop(),
        "endless loop in a portal" => portal_loop(),
        "panic" => panic!("a panic was asked for"),
        "exit" => return,
        "kernel address" => {
            // SAFETY: none: this is the fault that is asked for.
            log!("{}", unsafe { (u64::MAX as *const u8).read_volatile() });
        }
        "work" => {
            for second in 0..WORK_MS / 1000 {
                sleep_until(time::now() + time::ticks_from_ms(1000));
                log!("worked {} s", second + 1);
            }
        }
        other => panic!("unknown fault {other:?}"),
    }
    parent::vm_ended(Ended::PoweredOff, "");
}

#[inline(never)]
fn deep(level: u64) -> u64 {
    let frame = black_box([level; 16]);
    if level == 0 { 0 } else { deep(level + 1) + frame[3] }
}

#[inline(never)]
fn endless_loop() {
    let mut count = 0u64;
    loop {
        count = black_box(count + 1);
    }
}

fn portal_loop() {
    let spin = |_: u64, _: u32, _: Utcb| -> u32 {
        endless_loop();
        0
    };
    let call = || {
        let portal = thread::selectors(1)?;
        Server::new(manifest().cpu, spin)?.portal(portal, 0, abi::Mtd::empty())?;
        syscall::ipc_call(portal, 0)
    };
    log!("the call returned {:?}", call());
}
