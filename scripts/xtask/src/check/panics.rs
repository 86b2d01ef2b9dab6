//! No path to a panic: where a linked program refers to a function that panics, or stops the machine.
//!
//! The optimizer removes what cannot happen. What is left in the linked program of bounds checks, `unwrap`, `expect` and
//! `panic!` is a call of one of few functions in Rust's core library, so that their callers are all panics there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The kernel's own function that stops the machine.
const FATAL: &str = "microhypervisor::panic::fatal";

/// Where a panic of the core library is left, and why no program can bring it about.
const UNREACHABLE: [(&str, &str); 3] = [
    ("/once.rs:", "spin's Once panics when an initializer has panicked, and none can"),
    ("in microhypervisor::boot::kernel_main", "the same, inlined; before the first program runs"),
    ("in microhypervisor::root::create", "the same, inlined; before the first program runs"),
];
/// Where the machine is stopped on purpose, and why no program can bring it about.
const ON_PURPOSE: [(&str, &str); 7] = [
    ("microhypervisor/src/boot.rs:", "before the first program runs"),
    ("microhypervisor/src/smp.rs:", "before the first program runs"),
    ("microhypervisor/src/root.rs:", "before the first program runs"),
    ("microhypervisor/src/interrupt.rs:", "an exception in the kernel: a defect of the kernel or the machine"),
    ("microhypervisor/src/run.rs:", "double fault and machine check: a defect of the machine"),
    ("microhypervisor/src/guest.rs:", "machine check: a defect of the machine"),
    ("microhypervisor/src/panic.rs:", "what a panic leads to"),
];

/// A reference from `caller` to `callee` by the instruction at `address`.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    address: String,
    caller: String,
    callee: String,
}

/// Every place in the ELF file `program`, which has symbols and line numbers, that may panic: one line each.
pub fn paths(program: &Path) -> Result<Vec<String>> {
    let listing = output(Command::new("objdump").args(["-d", "--no-show-raw-insn", "--demangle"]).arg(program))?;
    let mut found = Vec::new();
    for reference in panics(&references(&listing)) {
        let place = format!("{} in {}", places(program, &reference.address)?.join(", from "), reference.caller);
        let known = if reference.callee == FATAL { &ON_PURPOSE[..] } else { &UNREACHABLE[..] };
        if !known.iter().any(|(part, _)| place.contains(part)) {
            found.push(format!("{place}: {}", reference.callee));
        }
    }
    Ok(found)
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{program}`"))?;
    ensure!(output.status.success(), "`{program}` failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// References from one function to another in what `objdump` prints.
fn references(listing: &str) -> Vec<Reference> {
    let mut caller = "";
    let mut references = Vec::new();
    for line in listing.lines() {
        if let Some(name) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            caller = name.1;
        } else if let Some((address, instruction)) = line.split_once(":\t")
            && let Some((_, target)) = instruction.split_once(" <")
        {
            let callee = target.strip_suffix('>').unwrap_or(target);
            // Inside of a function, and from there to another place of it.
            let callee = callee.rsplit_once("+0x").map_or(callee, |(name, _)| name);
            if callee != caller {
                let [address, caller, callee] = [address.trim(), caller, callee].map(String::from);
                references.push(Reference { address, caller, callee });
            }
        }
    }
    references
}

/// Those of `references` that lead from other code into the core library and there to a panic, or stop the machine.
fn panics(references: &[Reference]) -> Vec<&Reference> {
    let in_core = |name: &str| name.trim_start_matches('<').starts_with("core::");
    let mut callers = BTreeMap::<&str, Vec<&str>>::new();
    for reference in references {
        callers.entry(&reference.callee).or_default().push(&reference.caller);
    }
    let mut panicking: BTreeSet<&str> =
        callers.keys().copied().filter(|name| name.starts_with("core::panicking::")).collect();
    let mut new: Vec<&str> = panicking.iter().copied().collect();
    while let Some(callee) = new.pop() {
        let more = callers.get(callee).into_iter().flatten().copied();
        new.extend(more.filter(|caller| in_core(caller) && panicking.insert(caller)));
    }
    let leads = |callee: &str| panicking.contains(callee) || callee == FATAL;
    references.iter().filter(|reference| leads(&reference.callee) && !in_core(&reference.caller)).collect()
}

/// The source of the instruction at `address`: `file:line`, innermost of what was inlined first.
fn places(program: &Path, address: &str) -> Result<Vec<String>> {
    let text = output(Command::new("addr2line").arg("-i").arg("-e").arg(program).arg(address))?;
    Ok(text.lines().map(|line| line.split(" (").next().unwrap_or(line).to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs::TARGET;
    use std::fs;

    #[test]
    fn references_lead_through_the_core_library() {
        let listing = "
0000000000001000 <ours::a>:
    1000:\tpush   %rbp
    1001:\tcall   2000 <core::array::<impl core::ops::Index<I> for [T; N]>::index>
    1006:\tje     1000 <ours::a>
    1008:\tlea    0x0(%rip),%rdi        # 3000 <core::panicking::panic_fmt+0x4>

0000000000002000 <core::array::<impl core::ops::Index<I> for [T; N]>::index>:
    2000:\tjmp    3000 <core::panicking::panic_fmt>

0000000000003000 <core::panicking::panic_fmt>:
    3000:\tcall   4000 <microhypervisor::panic::fatal>

0000000000004000 <microhypervisor::panic::fatal>:
    4000:\tcall   5000 <core::fmt::write>
";
        let all = references(listing);
        let found: Vec<_> = panics(&all).iter().map(|found| (found.address.as_str(), found.caller.as_str())).collect();
        assert_eq!(found, [("1001", "ours::a"), ("1008", "ours::a")]);
    }

    /// Compiles a freestanding program whose function `f` looks into a table of four bytes, and looks for its panics.
    fn panics_of(name: &str, f: &str) -> Vec<String> {
        let folder = std::env::temp_dir().join(format!("kilonova-panics-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("can write");
        let (source, program) = (folder.join("a.rs"), folder.join("a"));
        let frame = "#![no_std]\n#![no_main]\nstatic TABLE: [u8; 4] = [1, 2, 3, 4];\n\
                     #[panic_handler]\nfn stop(_: &core::panic::PanicInfo) -> ! { loop {} }\n#[unsafe(no_mangle)]\n";
        fs::write(&source, format!("{frame}pub extern \"C\" fn _start(n: usize) -> u8 {{ {f} }}\n"))
            .expect("can write");
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--edition=2024",
            "-O",
            "-g",
            "-C",
            "panic=abort",
            "-C",
            "relocation-model=static",
            "--target",
            TARGET,
            "-o",
        ]);
        let compiled = output(rustc.arg(&program).arg(&source));
        let found = compiled.and_then(|_| paths(&program));
        let _ = fs::remove_dir_all(&folder);
        found.expect("it compiles")
    }

    #[test]
    fn a_panic_is_found_and_its_place_is_told() {
        let found = panics_of("unchecked", "TABLE[n]");
        assert!(
            found.len() == 1 && found[0].contains("a.rs:7") && found[0].contains("panic_bounds_check"),
            "{found:?}"
        );
        let found = panics_of("unwrap", "*TABLE.get(n).unwrap()");
        assert!(found.len() == 1 && found[0].contains("core::option::unwrap_failed"), "{found:?}");
        assert_eq!(panics_of("checked", "TABLE.get(n).copied().unwrap_or(0)"), [""; 0]);
        assert_eq!(panics_of("bounded", "TABLE[n % 4]"), [""; 0]);
    }
}
