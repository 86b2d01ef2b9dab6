//! First program: owns everything at start, carries out the system plan.
#![no_std]
#![no_main]
