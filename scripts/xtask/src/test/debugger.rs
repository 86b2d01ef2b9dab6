//! A debugger of the emulated machine: stops it at places of the kernel, looks, and changes what real machines only
//! suffer. QEMU only.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use elf::ElfBytes;
use elf::endian::LittleEndian;

use super::boot::{Outcome, Trial};
use crate::workspace;

/// RIP and RSP in QEMU's numbering.
pub const RIP: u32 = 16;
/// See [`RIP`].
pub const RSP: u32 = 7;
/// What the CPU pushes.
const FRAME: usize = 40;

/// Runs a machine that `act` debugs from its start: how it ended, and what `act` has found.
pub fn debugged(
    trial: Trial,
    act: impl FnOnce(&mut Debugger) -> Result<()> + Send + 'static,
) -> Result<(Outcome, Result<()>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the debugger")?;
    let port = listener.local_addr()?.port();
    let chardev = format!("socket,id=debugger,host=127.0.0.1,port={port},nodelay=on");
    let acting = thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        act(&mut Debugger { stream })
    });
    let outcome =
        trial.further(["-S", "-chardev", &chardev, "-gdb", "chardev:debugger"].map(String::from).into()).run();
    let found = acting.join().map_err(|_| anyhow!("the debugger panicked"))?;
    // What the machine says explains more than what the debugger misses.
    Ok((outcome?, found))
}

/// The kernel's symbols and code.
pub struct Symbols {
    content: Vec<u8>,
}

impl Symbols {
    /// Those of this file.
    pub fn read(kernel: &Path) -> Result<Self> {
        Ok(Self { content: workspace::read(kernel)? })
    }

    fn file(&self) -> Result<ElfBytes<'_, LittleEndian>> {
        ElfBytes::minimal_parse(&self.content).context("the kernel is no ELF file")
    }

    /// The address of a symbol by its name, or one of Rust's by several parts of it.
    pub fn find(&self, parts: &[&str]) -> Result<u64> {
        let file = self.file()?;
        let (symbols, names) = file.symbol_table()?.context("the kernel has no symbols")?;
        let is_it = |found: &str| match parts {
            [name] => found == *name,
            parts => parts.iter().all(|part| found.contains(part)),
        };
        let symbol = symbols.iter().find(|symbol| names.get(symbol.st_name as usize).is_ok_and(is_it));
        symbol.map(|symbol| symbol.st_value).with_context(|| format!("the kernel has no {}", parts.join("::")))
    }

    /// The code from an address on.
    pub fn code(&self, address: u64) -> Result<&[u8]> {
        let file = self.file()?;
        let text = file.section_header_by_name(".text")?.context("the kernel has no code")?;
        let start = address.checked_sub(text.sh_addr).context("the address is none of code")? + text.sh_offset;
        self.content.get(start as usize..(text.sh_offset + text.sh_size) as usize).context("the code is cut short")
    }
}

/// The remote protocol of GDB, as far as it is needed.
pub struct Debugger {
    stream: TcpStream,
}

impl Debugger {
    /// Runs up to an address.
    pub fn run_to(&mut self, address: u64) -> Result<()> {
        self.ask(&format!("Z0,{address:x},1"))?;
        self.ask("c")?;
        self.ask(&format!("z0,{address:x},1"))?;
        let stopped = self.register(RIP)?;
        ensure!(stopped == address, "the machine stopped at {stopped:#x}");
        Ok(())
    }

    /// A register, see [`RIP`].
    pub fn register(&mut self, number: u32) -> Result<u64> {
        let answer = self.ask(&format!("p{number:x}"))?;
        let bytes = bytes(&answer)?;
        Ok(u64::from_le_bytes(bytes.get(..8).context("a short register")?.try_into()?))
    }

    /// Changes a register.
    pub fn set_register(&mut self, number: u32, value: u64) -> Result<()> {
        let answer = self.ask(&format!("P{number:x}={}", hex(&value.to_le_bytes())))?;
        ensure!(answer == "OK", "the register keeps its value: {answer}");
        Ok(())
    }

    /// A command for QEMU's monitor.
    pub fn monitor(&mut self, command: &str) -> Result<()> {
        self.ask(&format!("qRcmd,{}", hex(command.as_bytes()))).map(drop)
    }

    /// The words of an interrupt's frame.
    pub fn memory(&mut self, address: u64) -> Result<Vec<u64>> {
        let answer = self.ask(&format!("m{address:x},{FRAME:x}"))?;
        let words = bytes(&answer)?;
        ensure!(words.len() == FRAME, "there is no memory at {address:#x}: {answer}");
        Ok(words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Sends a packet; the answer to it, without what the monitor prints.
    pub fn ask(&mut self, packet: &str) -> Result<String> {
        self.send(packet)?;
        loop {
            let answer = self.receive().with_context(|| format!("the debugger's {packet}"))?;
            if !answer.starts_with('O') || answer == "OK" {
                return Ok(answer);
            }
        }
    }

    /// Sends a packet.
    pub fn send(&mut self, packet: &str) -> Result<()> {
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
