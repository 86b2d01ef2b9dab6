//! Protection domains.

use core::sync::atomic::{AtomicU32, Ordering};

use spin::{Mutex, Once};

use crate::memory::Account;
use crate::object::Ref;
use crate::space::{HostSpace, ObjectSpace, PioSpace};

/// A protection domain: who pays for what is created in it, and the spaces of its host ECs.
#[repr(C, align(64))]
pub struct Pd {
    own_account: Account,
    payer: &'static Account,
    /// Number of the account that pays: that of `payer`, or its own.
    account: AtomicU32,
    /// Object space.
    pub objects: Once<&'static ObjectSpace>,
    /// Host space.
    pub host: Once<&'static HostSpace>,
    /// First PIO space.
    pub pio: Once<&'static PioSpace>,
    /// The root protection domain may control the hardware.
    pub root: bool,
    /// Its own reference.
    pub reference: Ref<Pd>,
    /// Whether it is being destroyed; locked while the list of what it owns changes.
    pub dying: Mutex<bool>,
}

impl Pd {
    /// A protection domain without spaces whose objects `payer` pays for.
    pub fn new(reference: Ref<Pd>, payer: &'static Account, root: bool) -> Self {
        Self {
            own_account: Account::new(0),
            payer,
            account: AtomicU32::new(payer.id()),
            objects: Once::new(),
            host: Once::new(),
            pio: Once::new(),
            root,
            reference,
            dying: Mutex::new(false),
        }
    }

    /// The account that pays for what is created in this protection domain.
    pub fn account(&self) -> &'static Account {
        Account::by_id(self.account.load(Ordering::Acquire))
    }

    /// Gives its own allowance back to who created it.
    pub fn return_allowance(&self) -> bool {
        self.own_account.allowance.transfer(&self.payer.allowance, self.own_account.allowance.balance())
    }

    /// Moves `frames` frames from `account` to the protection domain's own account, which it pays from henceforth.
    pub fn give_allowance(&self, account: &Account, frames: u32) -> bool {
        let moved = account.allowance.transfer(&self.own_account.allowance, frames);
        if moved {
            self.account.store(self.own_account.id(), Ordering::Release);
        }
        moved
    }
}
