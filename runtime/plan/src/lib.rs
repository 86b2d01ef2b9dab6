//! The system plan: what the root task carries out, in its compact binary form.
#![no_std]
