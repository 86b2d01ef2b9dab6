//! The conformance root task: whether a kernel keeps to the specification of its interface.
//!
//! It begins as the root task of any kernel with this interface, writes a report on COM1, and ends the machine. Each test
//! is of one or a few clauses; `docs/abi.md` lists the clauses and names their tests.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
lab::suite![
    hypercall,
    information_page,
    create,
    create_pd,
    create_ec,
    create_sc,
    portal,
    semaphore,
    ctrl_pd,
    memory,
    ports,
    ipc,
    exception,
    event,
    recall,
    scheduling,
    platform,
    interrupt,
    start,
    guest_exit,
    guest_state,
    smp,
    exhaustion
];

/// The program exists only for the freestanding target.
#[cfg(not(target_os = "none"))]
fn main() {}
