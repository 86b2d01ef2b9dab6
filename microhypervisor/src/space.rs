#![allow(unsafe_code)]
//! Spaces: where selectors become capabilities (NOVA 2.1, 4.1, 6.1.3), and the kernel's own address space.
//!
//! Unsafe: reads and writes tables in pool frames.
//!
//! Every space has one lock for writers. What a delegation takes it reads under the lock of the destination: a right
//! that is revoked in the source and then in the destination does not come back. Hence the source is read without its
//! lock, or read again if it changed. Lock order: an object space, the list of what a protection domain
//! owns, a PIO space, a space of memory, an account's slabs, the pool.

mod kernel;
mod memory;

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use abi::Status;
use abi::capability::{Permissions, SELECTOR_COUNT};
use kernel_core::shootdown::Use;
use kernel_core::slots::{Entry, Named, Reference};
use spin::{Mutex, MutexGuard};

pub use self::kernel::{CPUS, DEVICES, build_kernel, map_counters, map_cpu, map_device, master, unmap_device};
pub use self::memory::{GuestSpace, HostSpace, Memory};
use crate::cpu::Cpu;
use crate::memory::{Frame, KERNEL, release};
use crate::object::{self, Found, Object, named, resolve};
use crate::pd::Pd;

/// The root of a table of capabilities with two levels of 512 entries.
#[repr(transparent)]
pub struct Selectors([AtomicU64; 512]);

impl Selectors {
    /// Where the capability at `selector` is, if there can be one.
    pub fn slot(&self, selector: u64) -> Option<&'static AtomicU64> {
        if selector >= SELECTOR_COUNT {
            return None;
        }
        let leaf = self.0[(selector >> 9) as usize & 511].load(Ordering::Acquire);
        // SAFETY: each word is 0 or the address of a leaf frame, never changed back.
        (leaf != 0).then(|| unsafe { &(*(leaf as *const [AtomicU64; 512]))[selector as usize & 511] })
    }

    /// The capability at `selector`, null if there is none, and what it names.
    #[inline(never)]
    pub fn find(&self, selector: u64) -> (Entry, Named) {
        let entry = self.slot(selector).map_or(Entry::NULL, |slot| Entry(slot.load(Ordering::Relaxed)));
        (entry, named(entry.reference()))
    }

    /// The object at `selector` if it is a `T` and the capability carries `permissions`.
    #[inline(always)]
    pub fn get<T: Object>(&self, selector: u64, permissions: Permissions) -> Found<T> {
        resolve(self.find(selector), permissions)
    }
}

/// Where a new object's capability will be, in an object space that nobody else changes meanwhile.
pub type Place<'a> = (&'static AtomicU64, MutexGuard<'a, ()>);

/// Object capabilities of a protection domain.
#[repr(C, align(64))]
pub struct ObjectSpace {
    root: Frame,
    lock: Mutex<()>,
    pd: &'static Pd,
}

impl ObjectSpace {
    /// An empty object space of `pd`.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        Ok(Self { root: pd.account().draft(0)?.keep(), lock: Mutex::new(()), pd })
    }

    /// Its table.
    pub fn selectors(&self) -> &'static Selectors {
        // SAFETY: a frame of 512 atomic words, for as long as somebody looks.
        unsafe { &*self.root.pointer().cast() }
    }

    /// Destruction: drops some more of its capabilities, frees its frames; `done` counts. True when all are gone.
    pub fn clear(&self, done: &mut u64) -> bool {
        const BATCH: u64 = 16;
        let first = *done;
        let Some(leaf) = self.selectors().0.get(first as usize >> 9) else {
            release(self.root);
            return true;
        };
        if self.selectors().slot(first).is_none() {
            *done += 512;
            return false;
        }
        *done += BATCH;
        for selector in first..*done {
            object::TABLE.drop_use(self.selectors().find(selector).0.reference());
        }
        let frame = Frame::from_physical(leaf.load(Ordering::Relaxed).wrapping_sub(KERNEL));
        frame.filter(|_| done.is_multiple_of(512)).into_iter().for_each(release);
        false
    }

    /// Puts what `entry` then is at `selector`, whatever was there.
    pub fn set(&self, selector: u64, entry: &dyn Fn() -> Entry) -> Result<(), Status> {
        let _guard = self.lock.lock();
        let entry = entry();
        let slot = match self.selectors().slot(selector) {
            Some(slot) => slot,
            None if entry == Entry::NULL => return Ok(()),
            None => self.provide(selector)?,
        };
        let Reference { index, generation } = entry.reference();
        let entry = if object::header(index).retain(generation) { entry } else { Entry::NULL };
        let old = Entry(slot.load(Ordering::Relaxed));
        slot.store(entry.to_raw(), Ordering::Release);
        object::TABLE.changes.0.fetch_add(1, Ordering::AcqRel);
        object::TABLE.drop_use(old.reference());
        Ok(())
    }

    /// Makes room for a new object's capability at `selector` of its `selectors`, which must hold a null capability.
    pub fn reserve(&self, selectors: &Selectors, selector: u64) -> Result<Place<'_>, Status> {
        let guard = self.lock.lock();
        let slot = selectors.slot(selector);
        let old = slot.map_or(Entry::NULL, |slot| Entry(slot.load(Ordering::Relaxed)));
        if selector >= SELECTOR_COUNT || old != Entry::NULL && !named(old.reference()).is_nothing() {
            return Err(Status::BadCap);
        }
        let slot = slot.map_or_else(|| self.provide(selector), Ok)?;
        Ok((slot, guard))
    }

    /// The leaf of `selector`, which exists, is not there yet. The lock is held.
    #[inline(never)]
    fn provide(&self, selector: u64) -> Result<&'static AtomicU64, Status> {
        let leaf = self.pd.account().frames(0).ok_or(Status::MemCap)?;
        self.selectors().0[(selector >> 9) as usize & 511].store(leaf.pointer() as u64, Ordering::Release);
        self.selectors().slot(selector).ok_or(Status::MemCap)
    }
}

/// Ports: one bit each, set = no access, in the format of task state, VMX and SVM alike.
#[repr(C, align(64))]
pub struct PioSpace {
    /// Its frames.
    pub bitmap: Frame,
    lock: Mutex<()>,
    pd: &'static Pd,
    /// The bitmap governs the host ECs of its protection domain.
    pub first: bool,
}

/// A bitmap of 2^`order` frames that allows nothing.
#[inline(never)]
fn closed(pd: &Pd, order: u8) -> Result<Frame, Status> {
    let bitmap = pd.account().draft(order)?.keep();
    // SAFETY: fresh frames. Their number is not known here, so that they are not filled byte by byte.
    unsafe { core::ptr::write_bytes(bitmap.pointer(), 0xff, 4096 << order) };
    Ok(bitmap)
}

impl PioSpace {
    /// A space without ports; `first` if host ECs of `pd` use it.
    pub fn new(pd: &'static Pd, first: bool) -> Result<Self, Status> {
        Ok(Self { bitmap: closed(pd, 2)?, lock: Mutex::new(()), pd, first })
    }

    fn word(&self, port: u64) -> &AtomicU64 {
        // SAFETY: the bitmap has 1024 words, and ports are below 2^16.
        unsafe { &(*self.bitmap.pointer().cast::<[AtomicU64; 1024]>())[(port >> 6) as usize & 1023] }
    }

    /// Which of the 64 ports around `port` are accessible: a bit each, from the one whose number 64 divides.
    pub fn access(&self, port: u64) -> u64 {
        !self.word(port).load(Ordering::Relaxed)
    }

    /// Sets access to those of the 64 ports around `port` that have a bit in `ports`, to what `access` then is. Returns
    /// those that are accessible.
    pub fn set(&self, port: u64, ports: u64, access: &dyn Fn() -> u64) -> Result<u64, Status> {
        let _guard = self.lock.lock();
        let access = access() & ports;
        if let Some(host) = self.pd.host.get().filter(|_| access != 0 && self.first) {
            host.open_window([0, 4096].map(|page| self.bitmap.physical() + page))?;
        }
        let word = self.word(port);
        word.store((word.load(Ordering::Relaxed) | ports) & !access, Ordering::Relaxed);
        Ok(access)
    }

    /// Whether `cpu` may have cached the window without bitmap, or runs a guest that may still use a port.
    pub fn cached_by(&self, cpu: &Cpu) -> bool {
        let host = self.first && self.pd.host.get().is_some_and(|host| host.memory.cached_by(cpu));
        host || cpu.nested.root() != Use::NONE
    }
}

/// Model-specific registers that a guest accesses without exit: a bitmap in the vendor's format.
#[repr(C, align(64))]
pub struct MsrSpace {
    /// Its two frames.
    pub bitmap: Frame,
    lock: Mutex<()>,
}

/// What may be done with a register, in the order of [`crate::vcpu::Processor::msr_bits`].
const ACCESSES: [Permissions; 2] = [Permissions::READ, Permissions::WRITE];

impl MsrSpace {
    /// A space without registers.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        Ok(Self { bitmap: closed(pd, 1)?, lock: Mutex::new(()) })
    }

    /// For each access to `msr` the byte, and the bit in it, that has it exit. `None` if it always does.
    fn places(&self, msr: u32) -> Option<[(&AtomicU8, u8); 2]> {
        let bits = crate::cpu::BOOT_CPU.cpu.processor.get()?.msr_bits(msr)?;
        // SAFETY: inside the two frames.
        let byte = |bit| unsafe { AtomicU8::from_ptr(self.bitmap.pointer().add(bit / 8 % 8192)) };
        Some(bits.map(|bit| (byte(bit), 1 << (bit % 8))))
    }

    /// Sets what may be done with `msr` to what `permissions` then are.
    pub fn set(&self, msr: u32, permissions: &dyn Fn() -> Permissions) {
        let _guard = self.lock.lock();
        let permissions = permissions();
        for ((byte, bit), access) in self.places(msr).into_iter().flatten().zip(ACCESSES) {
            let exits = if permissions.contains(access) { 0 } else { bit };
            byte.store(byte.load(Ordering::Relaxed) & !bit | exits, Ordering::Relaxed);
        }
    }

    /// What may be done with `msr`.
    pub fn get(&self, msr: u32) -> Permissions {
        let places = self.places(msr).into_iter().flatten().zip(ACCESSES);
        let free = places.filter(|((byte, bit), _)| byte.load(Ordering::Relaxed) & bit == 0);
        free.fold(Permissions::empty(), |all, (_, access)| all | access)
    }
}
