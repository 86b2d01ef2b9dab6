//! Each part against a naive model; and, modelled, CPUs that shoot down what others use, in every interleaving.

use super::*;

mod host;
#[cfg(loom)]
mod interleaved;
