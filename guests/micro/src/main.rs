//! Micro guests that test and measure single mechanisms.
#![no_std]
#![no_main]
