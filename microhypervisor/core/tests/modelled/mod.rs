//! `loom`'s atomics behind the interface of the processor's: made in constants, and known to `loom` from their first
//! use, which must therefore be one that no other thread competes with: tests call `touch` before they spawn threads.

use core::sync::atomic::Ordering;
use std::sync::OnceLock;

pub use loom::sync::atomic::fence;

macro_rules! modelled {
    ($($name:ident: $value:ty),*) => {$(
        /// See the module.
        #[derive(Debug, Default)]
        pub struct $name {
            initial: $value,
            atomic: OnceLock<loom::sync::atomic::$name>,
        }

        #[allow(dead_code, missing_docs)]
        impl $name {
            pub const fn new(initial: $value) -> Self {
                Self { initial, atomic: OnceLock::new() }
            }

            fn atomic(&self) -> &loom::sync::atomic::$name {
                self.atomic.get_or_init(|| loom::sync::atomic::$name::new(self.initial))
            }

            pub fn touch(&self) {
                self.atomic();
            }

            pub fn load(&self, order: Ordering) -> $value {
                self.atomic().load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                self.atomic().store(value, order)
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                self.atomic().swap(value, order)
            }

            pub fn compare_exchange(&self, old: $value, new: $value, success: Ordering, failure: Ordering) -> Result<$value, $value> {
                self.atomic().compare_exchange(old, new, success, failure)
            }

            pub fn compare_exchange_weak(&self, old: $value, new: $value, success: Ordering, failure: Ordering) -> Result<$value, $value> {
                self.atomic().compare_exchange_weak(old, new, success, failure)
            }

            pub fn fetch_update(&self, set: Ordering, fetch: Ordering, change: impl FnMut($value) -> Option<$value>) -> Result<$value, $value> {
                self.atomic().fetch_update(set, fetch, change)
            }

            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.atomic().fetch_add(value, order)
            }

            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.atomic().fetch_sub(value, order)
            }

            pub fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                self.atomic().fetch_max(value, order)
            }

            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                self.atomic().fetch_or(value, order)
            }

            pub fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                self.atomic().fetch_and(value, order)
            }
        }
    )*};
}

modelled!(AtomicU32: u32, AtomicU64: u64, AtomicI64: i64);
