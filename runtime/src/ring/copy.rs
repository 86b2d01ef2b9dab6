//! Copies between a ring's shared bytes and private memory, eight bytes at a time where the shared side is aligned.
//!
//! Both widths touch the same bytes, but honest sides never at the same time: an index's release and acquire lies
//! between one's stores and the other's loads. A dishonest peer is another program; it can spoil only what is read.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering::Relaxed};

#[cfg(not(loom))]
fn split(bytes: &[AtomicU8]) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
    // SAFETY: any eight aligned `AtomicU8` are a valid `AtomicU64`: plain bytes, which both may change through a shared
    // reference.
    unsafe { bytes.align_to::<AtomicU64>() }
}

/// Copies `from` to the beginning of `to`, which is at least as long.
#[cfg(not(loom))]
pub fn store(to: &[AtomicU8], from: &[u8]) {
    let (head, words, tail) = split(&to[..from.len()]);
    let (first, rest) = from.split_at(head.len());
    let (middle, last) = rest.split_at(words.len() * 8);
    head.iter().zip(first).for_each(|(to, &from)| to.store(from, Relaxed));
    for (to, from) in words.iter().zip(middle.as_chunks().0) {
        to.store(u64::from_ne_bytes(*from), Relaxed);
    }
    tail.iter().zip(last).for_each(|(to, &from)| to.store(from, Relaxed));
}

/// Copies the beginning of `from` to all of `to`, which is at most as long.
#[cfg(not(loom))]
pub fn load(to: &mut [u8], from: &[AtomicU8]) {
    let (head, words, tail) = split(&from[..to.len()]);
    let (first, rest) = to.split_at_mut(head.len());
    let (middle, last) = rest.split_at_mut(words.len() * 8);
    first.iter_mut().zip(head).for_each(|(to, from)| *to = from.load(Relaxed));
    for (to, from) in middle.as_chunks_mut().0.iter_mut().zip(words) {
        *to = from.load(Relaxed).to_ne_bytes();
    }
    last.iter_mut().zip(tail).for_each(|(to, from)| *to = from.load(Relaxed));
}

/// As above; loom's atomic bytes are no bytes.
#[cfg(loom)]
pub fn store(to: &[AtomicU8], from: &[u8]) {
    to[..from.len()].iter().zip(from).for_each(|(to, &from)| to.store(from, Relaxed));
}

/// As above.
#[cfg(loom)]
pub fn load(to: &mut [u8], from: &[AtomicU8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Relaxed));
}
