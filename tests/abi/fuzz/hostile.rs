//! What runs in the cage: machine code of its own, and the memory that it shares with whoever watches.
#![allow(unsafe_code)]

use lab::memory;

/// Where everything lies in the host space of the hostile program.
pub mod place {
    #![allow(missing_docs)]
    pub const CODE: u64 = 0x40_0000;
    /// Counters.
    pub const DATA: u64 = 0x41_0000;
    /// A page of records for each CPU.
    pub const BATCHES: u64 = 0x42_0000;
    /// UTCBs of the threads that execute them.
    pub const UTCBS: u64 = 0x60_0000;
    /// Calls of all other threads; read-only.
    pub const SCRIPT: u64 = 0x50_0000;
    /// What portals reply; read-only.
    pub const REPLIES: u64 = 0x51_0000;
    /// Pages that calls name: some are mapped, to begin with.
    pub const WINDOW: u64 = 0x1000_0000;
    /// Pages for UTCBs that calls name.
    pub const NEW_UTCBS: u64 = 0x2000_0000;
}

/// Pages of the window.
pub const WINDOW_PAGES: u64 = 64;
/// Pages for UTCBs.
pub const NEW_UTCB_PAGES: u64 = 64;
/// Calls in the script.
pub const SCRIPT_CALLS: u64 = 256;
/// Replies.
pub const REPLIES: u64 = 64;
/// Bytes of an image of a UTCB.
pub const IMAGE: u64 = 0x280;
/// Images, behind the replies.
pub const IMAGES: u64 = 8;
/// Where the images begin.
pub const FIRST_IMAGE: u64 = 0x800;
/// Bytes of a record.
pub const RECORD: u64 = 64;

const COUNT: u64 = 0xfc0;
const POSITION: u64 = 0xfc8;
const DONE: u64 = 0xfd0;
const GO: u64 = 0xfd8;

core::arch::global_asm!(
    ".pushsection .rodata.hostile, \"a\", @progbits",
    ".balign 64",
    ".globl hostile_start, hostile_read, hostile_write, hostile_input, hostile_failed, hostile_worker",
    ".globl hostile_portal, hostile_spin, hostile_end",
    // RDI = page of records. Waits until it may, executes them one after the other, and says so.
    "hostile_start:",
    "mov r15, rdi; jmp 10f",
    "2: mov qword ptr [r15 + {position}], 0; mov r14, r15",
    "3: mov rax, [r15 + {position}]; cmp rax, [r15 + {count}]; jae 9f",
    "mov rcx, [r14]; mov rdi, [r14 + 8]; mov rsi, [r14 + 16]; mov rdx, [r14 + 24]; mov rax, [r14 + 32]",
    "mov r8, [r14 + 40]",
    "cmp rcx, 1; je hostile_read; cmp rcx, 2; je hostile_write; cmp rcx, 3; je 7f",
    "syscall",
    "mov [r14 + 8], rdi; mov [r14 + 16], rsi; mov [r14 + 24], rdx",
    "4: mov qword ptr [r14 + 48], 1",
    "8: add r14, 64; inc qword ptr [r15 + {position}]; jmp 3b",
    "hostile_read: mov rdx, [rsi]; mov [r14 + 24], rdx; jmp 4b",
    "hostile_write: mov [rsi], rdx; jmp 4b",
    "7: mov edx, esi",
    "hostile_input: in al, dx; jmp 4b",
    "hostile_failed: mov qword ptr [r14 + 48], 2; jmp 8b",
    "9: mov rdi, [r15 + {done}]; xor esi, esi; syscall",
    "10: mov rdi, [r15 + {go}]; xor esi, esi; syscall",
    "test dil, dil; jz 2b",
    "ud2",
    // One call of the script. Uses RAX, RCX, RDX, RSI, RDI, R8, R14.
    ".macro one_call",
    "mov eax, 1; lock xadd [{data}], rax; and eax, {calls} - 1; shl eax, 6; lea r14, [rax + {script}]",
    "mov rcx, [r14]; mov rdi, [r14 + 8]; mov rsi, [r14 + 16]; mov rdx, [r14 + 24]; mov rax, [r14 + 32]",
    "mov r8, [r14 + 40]",
    "cmp rcx, 1; je 21f; cmp rcx, 2; je 22f; cmp rcx, 3; je 29f",
    "lock inc qword ptr [{data} + 16]",
    "syscall",
    "jmp 29f",
    "21: mov rdx, [rsi]; jmp 29f",
    "22: mov [rsi], rdx",
    "29:",
    ".endm",
    // A thread with a scheduling context: the script, for ever.
    "hostile_worker:",
    "2: one_call",
    "jmp 2b",
    // A portal: some of the script, then a reply. RSP is the address of its UTCB, if it was created well.
    "hostile_portal:",
    "mov eax, 1; lock xadd [{data} + 8], rax; and eax, {replies} - 1; shl eax, 4; lea r13, [rax + {reply}]",
    "mov ebp, [r13]",
    "2: test ebp, ebp; jz 3f",
    "one_call",
    "dec ebp; jmp 2b",
    "3: mov rsi, [r13 + 8]; test rsi, rsi; jz 4f",
    "mov rdi, rsp; mov ecx, {image} / 8; rep movsq",
    "4: mov esi, [r13 + 4]; mov edi, 1; syscall",
    "ud2",
    "hostile_spin: jmp hostile_spin",
    "hostile_end:",
    ".popsection",
    count = const COUNT,
    position = const POSITION,
    done = const DONE,
    go = const GO,
    data = const place::DATA,
    script = const place::SCRIPT,
    calls = const SCRIPT_CALLS,
    reply = const place::REPLIES,
    replies = const REPLIES,
    image = const IMAGE,
);

unsafe extern "C" {
    static hostile_start: u8;
    static hostile_read: u8;
    static hostile_write: u8;
    static hostile_input: u8;
    static hostile_failed: u8;
    static hostile_worker: u8;
    static hostile_portal: u8;
    static hostile_spin: u8;
    static hostile_end: u8;
}

fn address(symbol: *const u8) -> u64 {
    place::CODE + (symbol as u64 - &raw const hostile_start as u64)
}

/// Where a thread starts that executes records.
pub fn executor() -> u64 {
    address(&raw const hostile_start)
}

/// Where threads start that execute the script.
pub fn worker() -> u64 {
    address(&raw const hostile_worker)
}

/// Entry of portals.
pub fn portal() -> u64 {
    address(&raw const hostile_portal)
}

/// An endless loop.
pub fn spin() -> u64 {
    address(&raw const hostile_spin)
}

/// Where a thread goes on after the instruction at `rip`, if that was to try an access that may fault.
pub fn after_fault(rip: u64) -> Option<u64> {
    let tries = [&raw const hostile_read, &raw const hostile_write, &raw const hostile_input];
    tries.iter().any(|symbol| address(*symbol) == rip).then(|| address(&raw const hostile_failed))
}

/// A page with the code.
pub fn code() -> u64 {
    let page = memory::pages(1);
    let (start, end) = (&raw const hostile_start as u64, &raw const hostile_end as u64);
    (start..end).step_by(8).for_each(|word| memory::poke(page + word - start, memory::peek(word)));
    page
}

/// What a record asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Kind {
    /// A hypercall.
    Call = 0,
    /// Reads the word at RSI.
    Read = 1,
    /// Writes RDX to the word at RSI.
    Write = 2,
    /// Reads port RSI.
    Input = 3,
}

/// A call or access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// RDI, RSI, RDX, RAX, R8.
    pub registers: [u64; 5],
}

impl Record {
    /// A hypercall.
    pub fn call(number: u64, flags: u64, selector: u64, [rsi, rdx, rax, r8]: [u64; 4]) -> Self {
        Self { kind: Kind::Call, registers: [selector << 8 | (flags & 0xf) << 4 | number & 0xf, rsi, rdx, rax, r8] }
    }

    /// Number of the hypercall.
    pub fn number(&self) -> u64 {
        self.registers[0] & 0xf
    }

    /// Puts it where the hostile program finds it.
    pub fn store(&self, at: u64) {
        memory::poke(at, self.kind as u64);
        for (index, register) in (1..).zip(self.registers) {
            memory::poke(at + 8 * index, register);
        }
        memory::poke(at + 48, 0);
    }
}

/// What came of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was not reached, or has not ended.
    None,
    /// RDI, RSI, RDX.
    Done([u64; 3]),
    /// The access raised an exception.
    Fault,
}

/// A page of records, as whoever watches sees it.
#[derive(Clone, Copy)]
pub struct Batch(pub u64);

impl Batch {
    /// Sets how many records there are, and the semaphores by their selectors in the cage.
    pub fn prepare(self, count: u64, done: u64, go: u64) {
        memory::poke(self.0 + POSITION, 0);
        memory::poke(self.0 + COUNT, count);
        memory::poke(self.0 + DONE, done << 8 | 0xb);
        memory::poke(self.0 + GO, go << 8 | 1 << 4 | 0xb);
    }

    /// Where record `index` lies.
    pub fn record(self, index: u64) -> u64 {
        self.0 + RECORD * index
    }

    /// Number of records that are behind it.
    pub fn position(self) -> u64 {
        memory::peek(self.0 + POSITION)
    }

    /// What came of record `index`.
    pub fn outcome(self, index: u64) -> Outcome {
        let record = self.record(index);
        match memory::peek(record + 48) {
            1 => Outcome::Done([8, 16, 24].map(|offset| memory::peek(record + offset))),
            2 => Outcome::Fault,
            _ => Outcome::None,
        }
    }
}
