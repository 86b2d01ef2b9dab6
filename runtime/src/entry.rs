//! From the program's first instruction to its `main`, and the end after a panic.
#![allow(unsafe_code)]

use crate::channel::Sender;
use crate::manifest::{MAGIC, Manifest, selector};
use crate::text::Line;
use crate::{heap, log, parent, syscall, thread};
use core::arch::asm;
use core::sync::atomic::{AtomicPtr, Ordering};

static MANIFEST: AtomicPtr<Manifest> = AtomicPtr::new(core::ptr::null_mut());
static LAST_WORDS: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// The manifest: what the root task gave this program.
pub fn manifest() -> &'static Manifest {
    // SAFETY: null or set once, from a reference that lives for ever.
    unsafe { MANIFEST.load(Ordering::Acquire).as_ref() }.unwrap_or(&Manifest::EMPTY)
}

/// Makes everything in this crate work: manifest, heap, locks, log.
///
/// # Safety
/// Once, by the main EC, running on the first stack slot of the manifest with its uppermost
/// [`crate::STACK_RESERVE`] bytes unused; all that the manifest names must exist.
pub unsafe fn init(manifest: &'static Manifest) {
    MANIFEST.store(core::ptr::from_ref(manifest).cast_mut(), Ordering::Release);
    // SAFETY: the caller's promise.
    unsafe { thread::adopt_main(manifest) };
    for sel in [selector::SLEEP, selector::HEAP_LOCK, selector::LOG_LOCK] {
        if let Err(status) = syscall::create_sm(sel, selector::PROTECTION_DOMAIN, 0) {
            panic!("cannot create the runtime's semaphores: {status:?}");
        }
    }
    // SAFETY: the caller's promise.
    unsafe { heap::init(manifest.heap) };
    if let Some(ring) = Sender::open("log") {
        log::use_ring(ring);
    }
}

/// Sets what a panic does with its message instead of telling the parent: for the root task, which has none.
pub fn on_panic(last_words: fn(&str)) {
    LAST_WORDS.store(last_words as *mut (), Ordering::Release);
}

/// Called by the entry stub that [`crate::main!`] defines.
///
/// # Safety
/// By the main EC at its entry, once, with the manifest's address from the root task; by each thread at its entry with null.
#[doc(hidden)]
pub unsafe fn start(manifest: *const Manifest, main: fn()) -> ! {
    // SAFETY: the root task passes the address of the manifest page, mapped read-only for ever.
    let given = unsafe { manifest.as_ref() };
    match given {
        // SAFETY: this is the main EC at its entry; the stub left the record's bytes free.
        Some(manifest) if manifest.is_valid() => unsafe { init(manifest) },
        None => thread::begin(),
        // Without a valid manifest nothing works: the fault report will show these values.
        // SAFETY: raises #UD.
        _ => unsafe { asm!("ud2", in("rax") manifest, in("rdx") MAGIC, options(noreturn)) },
    }
    main();
    parent::exit()
}

/// Defines the program's entry: `runtime::main!(main)` with `fn main()`.
#[macro_export]
macro_rules! main {
    ($main:ident) => {
        #[allow(unsafe_code)]
        #[doc(hidden)]
        mod program_entry {
            extern "C" fn start(manifest: *const $crate::manifest::Manifest) -> ! {
                // SAFETY: the entry stub below passes on what the root task gave.
                unsafe { $crate::start(manifest, super::$main) }
            }

            /// RDI = manifest, RSP = top of the main stack, aligned to 16; or of a thread 0 and the top of its stack.
            // SAFETY: no other item of a program has this name.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            unsafe extern "C" fn _start() -> ! {
                core::arch::naked_asm!("xor ebp, ebp", "call {start}", "ud2", start = sym start)
            }
        }
    };
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = Line::<400>::format(format_args!("{info}"));
    let last_words = LAST_WORDS.load(Ordering::Acquire);
    if last_words.is_null() {
        parent::panic(line.as_str());
    } else {
        // SAFETY: set from a function of this type by `on_panic`.
        unsafe { core::mem::transmute::<*mut (), fn(&str)>(last_words)(line.as_str()) };
    }
    // SAFETY: raises #UD: the root task's fault report ends this execution context.
    unsafe { asm!("ud2", options(noreturn)) }
}
