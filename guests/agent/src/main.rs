//! Runs a command inside a Linux guest and sends its output and status through the execution port.
//!
//! `agent FILE` runs `/bin/sh FILE`; `agent mark N` tells the virtual machine monitor that milestone N is reached. A
//! static Linux program without a C library: the guest's user space is busybox and this.
#![no_std]
#![no_main]
