//! The kernel's instructions of one operation, as they were executed, with the functions they belong to.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use elf::ElfBytes;
use elf::abi::STT_FUNC;
use elf::endian::LittleEndian;
use iced_x86::{Formatter, IntelFormatter};

use super::count::{self, Counts, Mode};
use super::figures::Figure;
use super::runs::Runs;
use super::window::Step;
use crate::emulator::Emulator;
use crate::workspace;

/// Functions by their first address.
pub struct Symbols(Vec<(u64, u64, String)>);

impl Symbols {
    /// Those of the kernel that is measured.
    pub fn of_kernel(runs: &Runs) -> Result<Self> {
        Self::read(&workspace::read(&runs.kernel()?)?)
    }

    fn read(file: &[u8]) -> Result<Self> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|error| anyhow!("{error}"))?;
        let (table, names) = elf.symbol_table()?.context("the kernel has no symbols")?;
        let mut all: Vec<_> = table
            .iter()
            .filter(|symbol| symbol.st_value >> 63 == 1 && (symbol.st_symtype() == STT_FUNC || symbol.st_size == 0))
            .map(|symbol| (symbol.st_value, symbol.st_size, names.get(symbol.st_name as usize).unwrap_or_default()))
            .map(|(start, size, name)| (start, size, readable(name)))
            .collect();
        all.sort();
        Ok(Self(all))
    }

    /// The one that holds `address`, and how far behind its begin that is.
    pub fn find(&self, address: u64) -> (&str, u64) {
        let next = self.0.partition_point(|(start, ..)| *start <= address);
        match next.checked_sub(1).map(|index| &self.0[index]) {
            Some((start, size, name)) if *size == 0 || address - start < *size => (name, address - start),
            _ => ("without a name", address),
        }
    }
}

/// The path in a mangled name, without the hash: `_ZN4crate6module4name17h...E`.
fn readable(name: &str) -> String {
    let Some(mut rest) = name.strip_prefix("_ZN") else { return name.into() };
    let mut parts = Vec::new();
    while let Some(digits) = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0) {
        let Ok(length) = rest[..digits].parse::<usize>() else { break };
        let Some(part) = rest[digits..].get(..length) else { break };
        parts.push(part.replace("$LT$", "<").replace("$GT$", ">").replace("..", "::"));
        rest = &rest[digits + length..];
    }
    parts.pop_if(|part| part.len() == 17 && part.starts_with('h'));
    parts.join("::")
}

/// Prints a figure's usual window.
pub fn print(figure: &Figure, runs: &mut Runs) -> Result<()> {
    let name = figure.window().with_context(|| format!("{} is no operation between marks", figure.name))?;
    let window = runs.usual_window(figure.on.unwrap_or(Emulator::Qemu), name)?;
    let kernel = runs.kernel()?;
    let symbols = Symbols::of_kernel(runs)?;
    let mut formatter = IntelFormatter::new();
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_branch_leading_zeros(false);
    formatter.options_mut().set_rip_relative_addresses(true);
    let (mut function, mut number) = (String::new(), 0);
    let lines = source_lines(&kernel, &window.steps)?;
    for ((step, mode), line) in window.steps.iter().zip(count::modes(&window.steps)).zip(lines) {
        let mut text = String::new();
        formatter.format(&count::decode(step), &mut text);
        let (name, offset) = match mode {
            Mode::Kernel => symbols.find(step.address),
            Mode::User => ("program", step.address),
            Mode::Guest => ("guest", step.address),
        };
        if function != name {
            println!("{name}:");
            function = name.into();
        }
        number += u64::from(mode == Mode::Kernel);
        let places: Vec<String> = step.accesses.iter().map(|access| format!("{:x}", access.address)).collect();
        println!("{number:>5} {offset:>9x}  {text:<52} {line:<28} {}", places.join(" "));
    }
    println!("{}", summary(&Counts::of(&window)));
    Ok(())
}

/// The line of the source that each step comes from, by binutils; empty where nothing is known.
fn source_lines(kernel: &Path, steps: &[Step]) -> Result<Vec<String>> {
    let addresses = steps.iter().map(|step| format!("{:x}", step.address));
    let output = Command::new("addr2line").arg("-e").arg(kernel).args(addresses).output().context("addr2line")?;
    let short = |line: &str| match line.split(' ').next().unwrap_or_default() {
        unknown if unknown.contains('?') => String::new(),
        place => place.rsplit_once("/src/").map_or(place, |(_, place)| place).into(),
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(short).collect())
}

/// Counts in one line.
pub fn summary(counts: &Counts) -> String {
    let Counts { kernel, user, guest, code_lines, data_lines, code_pages, data_pages, events } = counts;
    let mut line = format!("{kernel} kernel + {user} user");
    if *guest > 0 {
        line += &format!(" + {guest} guest");
    }
    line += &format!("; lines {code_lines} code + {data_lines} data, pages {code_pages} + {data_pages}");
    for (name, count) in events {
        line += &format!(", {count} {name}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable() {
        assert_eq!(readable("_ZN15microhypervisor6portal4call17h0123456789abcdefE"), "microhypervisor::portal::call");
        assert_eq!(readable("syscall_entry"), "syscall_entry");
    }
}
