//! Semaphores, sleeping, and a lock for the threads of one program.
#![allow(unsafe_code)]

use crate::manifest::selector;
use crate::syscall::{self, Result};
use crate::thread::waiting;
use abi::{Selector, Status};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering, fence};

/// A kernel semaphore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Semaphore(Selector);

impl Semaphore {
    /// The semaphore whose capability is at `sel`.
    pub const fn from_selector(sel: Selector) -> Self {
        Self(sel)
    }

    /// A new semaphore with counter `count`.
    pub fn new(count: u64) -> Result<Self> {
        let sel = crate::thread::selectors(1)?;
        syscall::create_sm(sel, selector::PROTECTION_DOMAIN, count)?;
        Ok(Self(sel))
    }

    /// The capability.
    pub const fn selector(&self) -> Selector {
        self.0
    }

    /// Wakes the longest waiter or increments the counter. A counter that would overflow is as good as one more.
    pub fn up(&self) {
        let _ = syscall::sm_up(self.0);
    }

    /// Waits until the counter is positive and decrements it.
    pub fn down(&self) -> Result<()> {
        waiting(|| syscall::sm_down(self.0, false, 0))
    }

    /// As [`Self::down`], and forgets all other pending ups: for waking on changes. Until the system time counter
    /// reaches `deadline` (0: for ever); false if it did.
    pub fn wait(&self, deadline: u64) -> Result<bool> {
        match waiting(|| syscall::sm_down(self.0, true, deadline)) {
            Ok(()) => Ok(true),
            Err(Status::Timeout) => Ok(false),
            Err(status) => Err(status),
        }
    }
}

/// Sleeps until the system time counter reaches `deadline`.
pub fn sleep_until(deadline: u64) {
    let _ = waiting(|| syscall::sm_down(selector::SLEEP, false, deadline.max(1)));
}

/// Stops this thread for ever.
pub fn park() -> ! {
    loop {
        let _ = waiting(|| syscall::sm_down(selector::SLEEP, false, 0));
    }
}

/// A lock: an atomic counter when free, a kernel semaphore when contended, so that a waiter never spins while the
/// owner, of whatever priority, cannot run. Before the program's start-up created the semaphores nobody contends.
pub struct Mutex<T> {
    waiters: AtomicU32,
    semaphore: Selector,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out one reference at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// Access to what a [`Mutex`] protects.
pub struct Guard<'a, T>(&'a Mutex<T>);

impl<T> Mutex<T> {
    /// A lock whose semaphore, with counter 0, is at `semaphore` when the first contention happens. Several locks may
    /// share a semaphore only if they are never held at the same time by different threads.
    pub const fn new(value: T, semaphore: Selector) -> Self {
        Self { waiters: AtomicU32::new(0), semaphore, value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        if self.waiters.fetch_add(1, Ordering::Acquire) != 0 {
            // An up by the owner is certain to come; a failing down would mean a semaphore that does not exist.
            while syscall::sm_down(self.semaphore, false, 0).is_err() {}
            fence(Ordering::Acquire);
        }
        Guard(self)
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let taken = self.waiters.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed);
        taken.ok().map(|_| Guard(self))
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the guard is the proof of exclusive access.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard is the proof of exclusive access.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.0.waiters.fetch_sub(1, Ordering::Release) != 1 {
            let _ = syscall::sm_up(self.0.semaphore);
        }
    }
}
