//! Non-maskable interrupts where they hurt most: on the first and last instructions of the kernel, and around a guest's run,
//! where the stack is an execution context's, or a program's, and registers are somebody else's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use elf::ElfBytes;
use elf::endian::LittleEndian;

use super::{Lab, QEMU, Test};
use crate::workspace;

pub const TESTS: &[Test] = &[
    // Only QEMU can be told to raise one.
    Test::new("nmi::on every instruction that enters or leaves the kernel", everywhere).only(QEMU),
];

/// RIP and RSP in QEMU's numbering.
const RIP: u32 = 16;
const RSP: u32 = 7;
/// Bytes from an interrupt stub to the next.
const STUB: u64 = 8;
/// What the CPU pushes.
const FRAME: usize = 40;
/// STGI.
const STGI: [u8; 3] = [0x0f, 0x01, 0xdc];
/// Bytes of a CPU's block; its interrupt stacks are in the upper half.
const BLOCK: u64 = 1 << 16;
const KERNEL_CS: u64 = 8;

fn everywhere(lab: &Lab) -> Result<()> {
    let places = Places::find(&lab.programs.file("microhypervisor"))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the debugger")?;
    let port = listener.local_addr()?.port();
    let chardev = format!("socket,id=debugger,host=127.0.0.1,port={port},nodelay=on");
    let storm = thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        storm(&mut Debugger { stream }, &places)
    });
    let outcome = lab
        .boot("micro")
        .command_line("micro", "exits=3000")
        .further(["-S", "-chardev", &chardev, "-gdb", "chardev:debugger"].map(String::from).into())
        .timeout(120)
        .run();
    let storm = storm.join().map_err(|_| anyhow!("the debugger panicked"))?;
    // What the machine says explains more than what the debugger misses.
    let outcome = outcome?;
    storm.with_context(|| outcome.failure("a non-maskable interrupt went wrong"))?;
    outcome.status(0).map(|_| ())
}

/// One on each of the first instructions from each of the places on.
fn storm(debugger: &mut Debugger, places: &Places) -> Result<()> {
    let nmi = places.interrupt_stubs + 2 * STUB;
    for (name, place, steps) in [
        ("SYSCALL", places.syscall, 60),
        ("the return from a hypercall", places.return_from_hypercall, 17),
        ("the return from an interrupt", places.return_from_interrupt, 18),
        ("the entry into a guest", places.enter_guest, 20),
        ("the exit from a guest", places.exit_guest, 24),
    ] {
        for step in 0..=steps {
            debugger.run_to(place).with_context(|| format!("before {name}"))?;
            (0..step).try_for_each(|_| debugger.ask("s").map(|_| ()))?;
            let (at, stack) = (debugger.register(RIP)?, debugger.register(RSP)?);
            let told = || format!("{name}, {step} instructions on, at {at:#x}, RSP {stack:#x}");
            debugger.ask(&format!("qRcmd,{}", hex(b"nmi"))).with_context(told)?;
            debugger.run_to(nmi).with_context(told)?;
            let top = debugger.register(RSP)?;
            let frame = debugger.memory(top)?;
            ensure!(top % BLOCK >= BLOCK / 2, "{}: the interrupt's frame is at {top:#x}", told());
            // STGI lets the interrupt come before the next instruction, all others have let it come before themselves.
            let expected = if at == places.exit_guest { at + STGI.len() as u64 } else { at };
            ensure!(frame[0] == expected, "{}: it comes at {:#x}", told(), frame[0]);
            ensure!((frame[1] == KERNEL_CS) == (at >> 63 != 0), "{}: CS is {:#x}", told(), frame[1]);
            ensure!(frame[3] == stack, "{}: RSP is {:#x}", told(), frame[3]);
        }
    }
    debugger.send("D")
}

/// Addresses in the kernel.
struct Places {
    syscall: u64,
    return_from_hypercall: u64,
    return_from_interrupt: u64,
    interrupt_stubs: u64,
    enter_guest: u64,
    exit_guest: u64,
}

impl Places {
    fn find(kernel: &Path) -> Result<Self> {
        let content = workspace::read(kernel)?;
        let file = ElfBytes::<LittleEndian>::minimal_parse(&content).context("the kernel is no ELF file")?;
        let (symbols, names) = file.symbol_table()?.context("the kernel has no symbols")?;
        // Of Rust's names only what they contain.
        let find = |name: &str, parts: &[&str]| {
            let is_it =
                |found: &str| found == name || !parts.is_empty() && parts.iter().all(|part| found.contains(part));
            let symbol = symbols.iter().find(|symbol| names.get(symbol.st_name as usize).is_ok_and(is_it));
            symbol.map(|symbol| symbol.st_value).with_context(|| format!("the kernel has no {name}"))
        };
        let enter_guest = find("svm_resume", &[])?;
        let text = file.section_header_by_name(".text")?.context("the kernel has no code")?;
        let (code, _) = file.section_data(&text)?;
        let offset = (enter_guest - text.sh_addr) as usize;
        let stgi = code[offset..].windows(STGI.len()).position(|bytes| bytes == STGI).context("no STGI")?;
        Ok(Self {
            syscall: find("smp::STUBS", &["smp", "STUBS"])?,
            return_from_hypercall: find("return_from_hypercall", &[])?,
            return_from_interrupt: find("return_from_interrupt", &[])?,
            interrupt_stubs: find("interrupt_stubs", &[])?,
            enter_guest,
            exit_guest: enter_guest + stgi as u64,
        })
    }
}

/// The remote protocol of GDB, as far as it is needed.
struct Debugger {
    stream: TcpStream,
}

impl Debugger {
    /// Runs up to an address.
    fn run_to(&mut self, address: u64) -> Result<()> {
        self.ask(&format!("Z0,{address:x},1"))?;
        self.ask("c")?;
        self.ask(&format!("z0,{address:x},1"))?;
        let stopped = self.register(RIP)?;
        ensure!(stopped == address, "the machine stopped at {stopped:#x}");
        Ok(())
    }

    fn register(&mut self, number: u32) -> Result<u64> {
        let answer = self.ask(&format!("p{number:x}"))?;
        let bytes = bytes(&answer)?;
        Ok(u64::from_le_bytes(bytes.get(..8).context("a short register")?.try_into()?))
    }

    /// The words of an interrupt's frame.
    fn memory(&mut self, address: u64) -> Result<Vec<u64>> {
        let answer = self.ask(&format!("m{address:x},{FRAME:x}"))?;
        let words = bytes(&answer)?;
        ensure!(words.len() == FRAME, "there is no memory at {address:#x}: {answer}");
        Ok(words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Sends a packet; the answer to it, without what the monitor prints.
    fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        loop {
            let answer = self.receive().with_context(|| format!("the debugger's {packet}"))?;
            if !answer.starts_with('O') || answer == "OK" {
                return Ok(answer);
            }
        }
    }

    fn send(&mut self, packet: &str) -> Result<()> {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        Ok(self.stream.write_all(format!("${packet}#{sum:02x}").as_bytes())?)
    }

    fn receive(&mut self) -> Result<String> {
        let mut byte = [0];
        while byte != *b"$" {
            self.stream.read_exact(&mut byte)?;
        }
        let mut answer = String::new();
        loop {
            self.stream.read_exact(&mut byte)?;
            if byte == *b"#" {
                break;
            }
            answer.push(char::from(byte[0]));
        }
        self.stream.read_exact(&mut [0; 2])?;
        self.stream.write_all(b"+")?;
        Ok(answer)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    (0..hex.len() / 2).map(|n| Ok(u8::from_str_radix(&hex[2 * n..2 * n + 2], 16)?)).collect()
}
