//! Mailboxes against a naive model; between threads; and, modelled, in every interleaving.

use super::*;

mod host;
#[cfg(loom)]
mod interleaved;

struct Cells<const N: usize>([MailCell; N]);

impl<const N: usize> Cells<N> {
    const fn new() -> Self {
        Self([const { MailCell::empty() }; N])
    }
}

impl<const N: usize> MailCells for Cells<N> {
    fn cell(&self, id: u32) -> &MailCell {
        &self.0[id as usize]
    }
}
