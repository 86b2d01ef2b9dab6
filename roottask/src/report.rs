//! What the root task says when a program dies.

use crate::frames::PAGE;
use crate::image::Image;
use abi::utcb::Architectural;
use core::fmt;

/// Name of a host exception by its number.
pub fn exception_name(number: u64) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE divide error",
        "#DB debug",
        "NMI",
        "#BP breakpoint",
        "#OF overflow",
        "#BR bound range",
        "#UD undefined instruction",
        "#NM no FPU",
        "#DF double fault",
        "exception 9",
        "#TS invalid TSS",
        "#NP segment not present",
        "#SS stack fault",
        "#GP general protection",
        "#PF page fault",
        "exception 15",
        "#MF x87 error",
        "#AC alignment check",
        "#MC machine check",
        "#XM SIMD error",
        "#VE virtualization",
        "#CP control protection",
    ];
    NAMES.get(number as usize).copied().unwrap_or("exception")
}

/// An address as a reader wants it: the number and, if known, the function.
pub struct Place<'a> {
    /// The address.
    pub address: u64,
    /// The image it belongs to.
    pub image: Option<&'a Image<'a>>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)?;
        if let Some((name, offset)) = self.image.and_then(|image| image.symbol(self.address)) {
            write!(f, " ({:#}+{offset:#x})", rustc_demangle::demangle(name))?;
        }
        Ok(())
    }
}

/// What a page fault was about: bits of its error code (Intel SDM vol. 3A, 4.7).
struct PageFault {
    error: u64,
    address: u64,
    stack: u64,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.error {
            e if e & 1 << 4 != 0 => "execute",
            e if e & 1 << 1 != 0 => "write",
            _ => "read",
        };
        let why = match self.error {
            e if e & 1 != 0 => "without permission",
            _ if self.address.abs_diff(self.stack) < PAGE => "below the stack: it overflowed",
            _ => "where nothing is mapped",
        };
        write!(f, ", {access} at {:#x} {why}", self.address)
    }
}

/// Writes the report on exception `number` of a program, line by line. The state must hold general registers, RIP,
/// RFLAGS and the qualification.
pub fn exception(
    program: &str,
    number: u64,
    state: &Architectural,
    image: Option<&Image<'_>>,
    mut line: impl FnMut(fmt::Arguments<'_>),
) {
    let place = Place { address: state.rip, image };
    let [error, address, _] = state.qualification;
    let name = exception_name(number);
    match number {
        14 => {
            let what = PageFault { error, address, stack: state.gpr[4] };
            line(format_args!("{program} died: {name}{what} at RIP {place}"));
        }
        _ => line(format_args!("{program} died: {name} at RIP {place}")),
    }
    registers(state, error, line);
}

/// Writes the report on a program that loops for ever, line by line. The state must hold general registers, RIP and
/// RFLAGS.
pub fn stuck(
    program: &str,
    state: &Architectural,
    image: Option<&Image<'_>>,
    mut line: impl FnMut(fmt::Arguments<'_>),
) {
    let place = Place { address: state.rip, image };
    line(format_args!("{program} died: endless loop at RIP {place}"));
    registers(state, 0, line);
}

fn registers(state: &Architectural, error: u64, mut line: impl FnMut(fmt::Arguments<'_>)) {
    let r = &state.gpr;
    line(format_args!("  error {error:#x} rflags {:#x} rsp {:#x} rbp {:#x}", state.rflags, r[4], r[5]));
    line(format_args!("  rax {:016x} rcx {:016x} rdx {:016x} rbx {:016x}", r[0], r[1], r[2], r[3]));
    line(format_args!("  rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}", r[6], r[7], r[8], r[9]));
    line(format_args!("  r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x}", r[10], r[11], r[12], r[13]));
    line(format_args!("  r14 {:016x} r15 {:016x}", r[14], r[15]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn a_wild_store_reads_well() {
        let mut state = Architectural { rip: 0x401234, qualification: [6, 0xdead000, 0], ..Default::default() };
        state.gpr[4] = 0x2001fff0;
        let mut lines = Vec::new();
        exception("vmm linux", 14, &state, None, |line| lines.push(line.to_string()));
        assert_eq!(
            lines[0],
            "vmm linux died: #PF page fault, write at 0xdead000 where nothing is mapped at RIP 0x401234"
        );
        assert!(lines[1].contains("rsp 0x2001fff0"));
        state.qualification[1] = state.gpr[4] - 8;
        exception("vmm linux", 14, &state, None, |line| lines.push(line.to_string()));
        assert!(lines.iter().any(|l| l.contains("below the stack: it overflowed")));
        exception("vmm linux", 6, &state, None, |line| lines.push(line.to_string()));
        assert!(lines.iter().any(|l| l == "vmm linux died: #UD undefined instruction at RIP 0x401234"));
        assert_eq!(exception_name(99), "exception");
    }
}
