//! Library of the user programs: entry, hypercalls, heap, portals, rings.
#![no_std]

pub mod manifest;
