//! Runs a command inside a Linux guest and sends its output and status through the exec port.
#![no_std]
#![no_main]
