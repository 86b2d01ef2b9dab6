//! What is executed between two marks, as the emulators write it down: QEMU by the plugin of `tests/bench/trace`, Bochs by
//! its debugger's `trace on` and `trace-mem on`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// A window: everything that one CPU executed between a mark that begins it and one that ends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// As the marks tell it.
    pub number: u8,
    /// In their order.
    pub steps: Vec<Step>,
}

/// An executed instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Linear address.
    pub address: u64,
    /// Where it is in memory; only the bits below a page mean the same in all emulators.
    pub place: u64,
    /// Its bytes.
    pub code: Vec<u8>,
    /// What it read and wrote.
    pub accesses: Vec<Access>,
}

/// A read or write of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Linear address.
    pub address: u64,
    /// Physical address.
    pub place: u64,
}

/// What an emulator wrote down.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Trace {
    /// In the order of their ends.
    pub windows: Vec<Window>,
    /// The longest span of the kernel with interrupts off, where the emulator tells it.
    pub off: Option<Span>,
}

/// A span of the kernel with interrupts off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// In instructions.
    pub length: u64,
    /// Address of the first one.
    pub begin: u64,
    /// Address of the one behind the last.
    pub end: u64,
}

/// What a mark's bytes say: the number of the window, and whether it begins here.
fn mark(code: &[u8]) -> Option<(u8, bool)> {
    match *code {
        [0x0f, 0x1f, 0x80, number, what @ (1 | 2), 0x4b, 0x4d] => Some((number, what == 1)),
        _ => None,
    }
}

/// Windows that are being read, by CPU.
#[derive(Default)]
struct Reader {
    open: BTreeMap<u64, Window>,
    trace: Trace,
}

impl Reader {
    fn mark(&mut self, cpu: u64, number: u8, begins: bool) -> Result<()> {
        match (begins, self.open.remove(&cpu)) {
            (true, None) => _ = self.open.insert(cpu, Window { number, steps: Vec::new() }),
            (false, Some(window)) if window.number == number => self.trace.windows.push(window),
            (true, Some(other)) => bail!("window {number} begins within window {}", other.number),
            (false, _) => bail!("window {number} ends, which did not begin"),
        }
        Ok(())
    }

    fn step(&mut self, cpu: u64, step: Step) {
        if let Some(window) = self.open.get_mut(&cpu) {
            window.steps.push(step);
        }
    }

    fn access(&mut self, cpu: u64, access: Access) {
        if let Some(step) = self.open.get_mut(&cpu).and_then(|window| window.steps.last_mut()) {
            step.accesses.push(access);
        }
    }
}

/// What the QEMU plugin wrote. A last line may be cut short: QEMU is killed at the end.
pub fn of_qemu(trace: &str) -> Result<Trace> {
    let mut reader = Reader::default();
    for line in trace.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
        let mut read = || Some((number()?, number()?, number().unwrap_or_default()));
        let (cpu, first, second) = read().with_context(|| format!("the plugin wrote {line:?}"))?;
        match kind {
            "begin" | "end" => reader.mark(cpu, first as u8, kind == "begin")?,
            "off" => reader.trace.off = Some(Span { length: cpu, begin: first, end: second }),
            "i" => {
                let code = words.next().and_then(bytes).with_context(|| format!("the plugin wrote {line:?}"))?;
                reader.step(cpu, Step { address: first, place: second, code, accesses: Vec::new() });
            }
            _ => reader.access(cpu, Access { address: first, place: second }),
        }
    }
    Ok(reader.trace)
}

/// What Bochs' debugger wrote.
pub fn of_bochs(trace: &str) -> Result<Trace> {
    let mut reader = Reader::default();
    for line in trace.lines() {
        if let Some((cpu, step)) = bochs_step(line) {
            match mark(&step.code) {
                Some((number, begins)) => reader.mark(cpu, number, begins)?,
                None => reader.step(cpu, step),
            }
        } else if let Some((cpu, access)) = bochs_access(line) {
            reader.access(cpu, access);
        }
    }
    Ok(reader.trace)
}

/// `(CPU).[TIME] [0xPLACE] CS:ADDRESS (SYMBOL): TEXT ; CODE`
fn bochs_step(line: &str) -> Option<(u64, Step)> {
    let (cpu, rest) = line.strip_prefix('(')?.split_once(").[")?;
    let (_, rest) = rest.split_once("] [0x")?;
    let (place, rest) = rest.split_once("] ")?;
    let (_, rest) = rest.split_once(':')?;
    let (address, _) = rest.split_once(' ')?;
    let (_, code) = rest.rsplit_once("; ")?;
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let (address, place) = (hexadecimal(address)?, hexadecimal(place)?);
    Some((cpu.parse().ok()?, Step { address, place, code: bytes(code.trim())?, accesses: Vec::new() }))
}

/// `[CPU0 RD]: LIN 0xADDRESS PHY 0xPLACE (len=8, WB): VALUE`. What the processor itself reads and writes has no linear
/// address (control structures), or the name of a table's entry behind it.
fn bochs_access(line: &str) -> Option<(u64, Access)> {
    const TABLES: [&str; 5] = ["PML4E", "PDPTE", "PDE", "PTE", "EPT"];
    let (cpu, rest) = line.strip_prefix("[CPU")?.split_once(' ')?;
    let (_, rest) = rest.split_once("]: LIN 0x")?;
    let (address, rest) = rest.split_once(" PHY 0x")?;
    let (place, rest) = rest.split_once(' ')?;
    if let Some((_, what)) = rest.rsplit_once("; ")
        && TABLES.iter().any(|table| what.starts_with(table))
    {
        return None;
    }
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    Some((cpu.parse().ok()?, Access { address: hexadecimal(address)?, place: hexadecimal(place)? }))
}

fn bytes(hexadecimal: &str) -> Option<Vec<u8>> {
    let byte = |at| u8::from_str_radix(hexadecimal.get(at..at + 2)?, 16).ok();
    (0..hexadecimal.len()).step_by(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(address: u64, place: u64, code: &[u8], accesses: &[Access]) -> Step {
        Step { address, place, code: code.into(), accesses: accesses.into() }
    }

    #[test]
    fn what_qemu_wrote_is_read() {
        let text = "off 5 ffff 10\nbegin 0 7\ni 0 1000 2000 0f05\nw 0 3000 4000\nend 0 7\noff 9 a b\ni 0 1";
        let access = Access { address: 0x3000, place: 0x4000 };
        let window = Window { number: 7, steps: vec![step(0x1000, 0x2000, &[0x0f, 0x05], &[access])] };
        let off = Some(Span { length: 9, begin: 0xa, end: 0xb });
        assert_eq!(of_qemu(text).expect("is read"), Trace { windows: vec![window], off });
        assert!(of_qemu("begin 0 7\nbegin 0 8\n").is_err());
        assert!(of_qemu("end 0 7\n").is_err());
        assert!(of_qemu("nonsense\n").is_err());
    }

    #[test]
    fn what_bochs_wrote_is_read() {
        let text = "\
(0).[1] [0x000000001000] 0023:0000000010001000 (unk. ctxt): nop dword ptr [rax+1] ; 0f1f80070 14b4d
(0).[1] [0x000000001000] 0023:0000000010001000 (unk. ctxt): nop dword ptr [rax+1] ; 0f1f8007014b4d
(0).[2] [0x000000001007] 0008:ffffffff80200000 (unk. ctxt): push rax ; 50
[CPU0 WR]: LIN 0xffffffff80244ff0 PHY 0x000000244ff0 (len=8, WB): 0x0\t0x1
[CPU0 RD]: LIN 0xffffffff80244ff0 PHY 0x000000245ff0 (len=8, WB): 0x1 ; PDE
[CPU0 RD]: PHY 0x000000245ff0 (len=8): 0x1 ; VMCS
(0).[3] [0x000000001008] 0023:0000000010001007 (unk. ctxt): nop dword ptr [rax+1] ; 0f1f8007024b4d
";
        let access = Access { address: 0xffff_ffff_8024_4ff0, place: 0x24_4ff0 };
        let window = Window { number: 7, steps: vec![step(0xffff_ffff_8020_0000, 0x1007, &[0x50], &[access])] };
        assert_eq!(of_bochs(text).expect("is read"), Trace { windows: vec![window], off: None });
    }
}
