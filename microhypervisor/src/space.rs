#![allow(unsafe_code)]
//! Spaces: where selectors become capabilities (NOVA 2.1, 4.1, 6.1.3), and the kernel's own address space.
//!
//! Unsafe: reads and writes tables in pool frames.
//!
//! Every space has one lock for writers. What a delegation takes it reads under the lock of the destination: a right
//! that is revoked in the source and then in the destination does not come back. Hence the source is read without its
//! lock, or read again if it changed. Lock order: an object space, the list of what a protection domain
//! owns; a PIO space, a space of memory, an account's slabs, the pool.

mod kernel;
mod memory;

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use abi::Status;
use abi::capability::{Permissions, SELECTOR_COUNT};
use kernel_core::shootdown::Use;
use kernel_core::slots::{Entry, Named};
use spin::{Mutex, MutexGuard};

pub use self::kernel::{CPUS, DEVICES, build_kernel, map_cpu, map_device, master, unmap_device};
pub use self::memory::{GuestSpace, HostSpace, Memory};
use crate::cpu::Cpu;
use crate::memory::{Frame, release};
use crate::object::{self, Found, Object, named, resolve};
use crate::pd::Pd;

/// The root of a table of capabilities with two levels of 512 entries.
#[repr(transparent)]
pub struct Selectors([AtomicU64; 512]);

impl Selectors {
    fn slot(&self, selector: u64) -> Option<&'static AtomicU64> {
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
        // SAFETY: as in `slot`; nobody else looks any more.
        let root = unsafe { &*self.root.pointer().cast::<[AtomicU64; 512]>() };
        let Some(leaf) = root.get(first as usize >> 9) else {
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
        if let Some(frame) = Frame::from_pointer(leaf.load(Ordering::Relaxed)).filter(|_| (*done).is_multiple_of(512)) {
            release(frame);
        }
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
        let entry = if object::TABLE.retain(entry.reference()) { entry } else { Entry::NULL };
        let old = Entry(slot.load(Ordering::Relaxed));
        slot.store(entry.to_raw(), Ordering::Release);
        object::TABLE.drop_use(old.reference());
        Ok(())
    }

    /// Makes room for a new object's capability at `selector`, which must hold a null capability.
    pub fn reserve(&self, selector: u64) -> Result<Place<'_>, Status> {
        let guard = self.lock.lock();
        let slot = self.selectors().slot(selector);
        let taken = |slot: &AtomicU64| !named(Entry(slot.load(Ordering::Relaxed)).reference()).is_nothing();
        if selector >= SELECTOR_COUNT || slot.is_some_and(taken) {
            return Err(Status::BadCap);
        }
        let slot = slot.map_or_else(|| self.provide(selector), Ok)?;
        Ok(Place { slot, _guard: guard })
    }

    /// The leaf of `selector`, which exists, is not there yet. The lock is held.
    fn provide(&self, selector: u64) -> Result<&'static AtomicU64, Status> {
        let leaf = self.pd.account().frames(0).ok_or(Status::MemCap)?;
        // SAFETY: as in `slot`; the new leaf is zeroed.
        let root = unsafe { &*self.root.pointer().cast::<[AtomicU64; 512]>() };
        root[(selector >> 9) as usize & 511].store(leaf.pointer() as u64, Ordering::Release);
        self.selectors().slot(selector).ok_or(Status::MemCap)
    }
}

/// Where a new object's capability will be, in an object space that nobody else changes meanwhile.
pub struct Place<'a> {
    slot: &'static AtomicU64,
    _guard: MutexGuard<'a, ()>,
}

impl Place<'_> {
    /// Puts the first capability for a new object there: its creator's use of the object becomes the capability's.
    pub fn fill(&self, entry: Entry) {
        self.slot.store(entry.to_raw(), Ordering::Release);
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

/// Four frames, the first `frames` of them a bitmap that allows nothing.
#[inline(never)]
fn closed(pd: &Pd, frames: usize) -> Result<Frame, Status> {
    let bitmap = pd.account().draft(2)?.keep();
    // SAFETY: fresh frames. Their number is not known here, so that they are not filled byte by byte.
    unsafe { core::ptr::write_bytes(bitmap.pointer(), 0xff, frames * 4096) };
    Ok(bitmap)
}

impl PioSpace {
    /// A space without ports; `first` if host ECs of `pd` use it.
    pub fn new(pd: &'static Pd, first: bool) -> Result<Self, Status> {
        Ok(Self { bitmap: closed(pd, 4)?, lock: Mutex::new(()), pd, first })
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
        if access != 0
            && self.first
            && let Some(host) = self.pd.host.get()
        {
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

/// Model-specific registers that a guest accesses without exit: a bitmap in the vendor's format in the first two
/// frames, and in the third what was granted, two bits for each register.
#[repr(C, align(64))]
pub struct MsrSpace {
    /// Its frames.
    pub bitmap: Frame,
    lock: Mutex<()>,
}

impl MsrSpace {
    /// A space without registers.
    pub fn new(pd: &'static Pd) -> Result<Self, Status> {
        Ok(Self { bitmap: closed(pd, 2)?, lock: Mutex::new(()) })
    }

    /// Where what was granted for `msr` is noted: byte and shift. `None` for registers that no bitmap covers.
    fn granted(&self, msr: u32) -> Option<(&AtomicU8, u32)> {
        let index = match msr {
            0..0x2000 => msr,
            0xc000_0000..0xc000_2000 => msr - 0xc000_0000 + 0x2000,
            _ => return None,
        };
        // SAFETY: the index is below 2^14, two bits each: inside the third frame.
        let byte = unsafe { AtomicU8::from_ptr(self.bitmap.pointer().add(2 * 4096 + index as usize / 4)) };
        Some((byte, index % 4 * 2))
    }

    /// Sets what may be done with `msr` to what `permissions` then are.
    pub fn set(&self, msr: u32, permissions: &dyn Fn() -> Permissions) {
        let _guard = self.lock.lock();
        let Some((byte, shift)) = self.granted(msr) else { return };
        let permissions = permissions();
        let others = byte.load(Ordering::Relaxed) & !(3 << shift);
        byte.store(others | (permissions.bits() & 3) << shift, Ordering::Relaxed);
        // SAFETY: the space's first two frames, and the lock makes this the only writer.
        let bitmap = unsafe { core::slice::from_raw_parts_mut(self.bitmap.pointer(), 2 * 4096) };
        if let Some(processor) = crate::cpu::BOOT_CPU.cpu.processor.get() {
            let (read, write) = (permissions.contains(Permissions::READ), permissions.contains(Permissions::WRITE));
            processor.set_msr(bitmap, msr, read, write);
        }
    }

    /// What may be done with `msr`.
    pub fn get(&self, msr: u32) -> Permissions {
        let Some((byte, shift)) = self.granted(msr) else { return Permissions::empty() };
        Permissions::from_bits_retain(byte.load(Ordering::Relaxed) >> shift & 3)
    }
}
