//! The front door itself, used as a user would: exit status, standard output, the terminal.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

use super::dialogue::PROMPT;
use super::{BOCHS, Lab, QEMU, Test, observe};
use crate::workspace;

pub const TESTS: &[Test] = &[
    Test::new("front::a refused system file ends at once", refused).only(QEMU),
    Test::new("front::a system that is nowhere is named", nowhere).only(QEMU),
    Test::new("front::a kernel of the user's own", own_kernel).only(QEMU),
    Test::new("front::exec prints the output and nothing else", exec).only(QEMU),
    Test::new("front::CPUs that take turns have one processor", turns).only(QEMU),
    Test::new("front::an interactive shell", shell).long_on(BOCHS),
];

fn xtask(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.current_dir(workspace::root()).args(arguments);
    Ok(command)
}

/// Runs the front door; gives status, standard output and standard error.
pub fn call(arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = xtask(arguments)?.stdin(Stdio::null()).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

fn refused(_: &Lab) -> Result<()> {
    let file = "tests/refused/unknown-key-of-a-machine.toml";
    let start = Instant::now();
    let (status, output, error) = call(&["run", file])?;
    let expected = format!("error: {file}:5:1: unknown field `floppy`, expected one of");
    ensure!(status == 1 && output.is_empty() && error.starts_with(&expected), "status {status}: {output}{error}");
    ensure!(start.elapsed() < Duration::from_secs(10), "that took {:?}", start.elapsed());
    Ok(())
}

fn nowhere(_: &Lab) -> Result<()> {
    let (status, output, error) = call(&["run", "solaris"])?;
    let expected = "error: there is no system \"solaris\": neither a file nor one of tests/systems (";
    ensure!(status == 1 && output.is_empty() && error.starts_with(expected), "status {status}: {output}{error}");
    Ok(())
}

fn own_kernel(lab: &Lab) -> Result<()> {
    let copy = workspace::folder(&format!("run/{}", lab.name))?.join("kernel");
    fs::copy(lab.programs.file("microhypervisor"), &copy)?;
    let run = || call(&["run", "micro", "--kernel", &copy.display().to_string(), "--timeout", "60"]);
    let (status, output, error) = run()?;
    ensure!(status == 0, "status {status}: {output}{error}");
    make_multiboot1(&copy)?;
    let (status, output, error) = run()?;
    ensure!(status == 0, "by Multiboot 1: status {status}: {output}{error}");
    let (status, _, error) = call(&["run", "micro", "--kernel", "/nowhere/kernel"])?;
    ensure!(status == 1 && error.contains("error: cannot read /nowhere/kernel"), "status {status}: {error}");
    Ok(())
}

/// Makes of the kernel one that has no PVH note, but a header of Multiboot 1, as NOVA has.
fn make_multiboot1(kernel: &Path) -> Result<()> {
    // In the gap behind the program headers.
    const HEADER: usize = 0x800;
    const NOTE: &[u8] = b"\x12\0\0\0Xen\0";
    let mut file = fs::read(kernel)?;
    let note = file.windows(NOTE.len()).position(|bytes| bytes == NOTE).context("the kernel has no PVH note")?;
    file[note] = 0;
    let header = &mut file[HEADER..HEADER + 12];
    ensure!(header.iter().all(|&byte| byte == 0), "there is no gap");
    header.copy_from_slice(&[0x1bad_b002u32, 0, 0u32.wrapping_sub(0x1bad_b002)].map(u32::to_le_bytes).concat());
    fs::write(kernel, file)?;
    Ok(())
}

fn exec(_: &Lab) -> Result<()> {
    let command = "echo to the output; echo to the error >&2; grep -c ^processor /proc/cpuinfo; exit 7";
    let (status, output, error) = call(&["run", "--exec", command])?;
    ensure!(status == 7, "status {status}: {output}{error}");
    ensure!(output == "to the output\n1\n", "the output is {output:?}");
    ensure!(error.ends_with("to the error\n"), "the error is {error:?}");
    Ok(())
}

fn turns(lab: &Lab) -> Result<()> {
    let system = observe::copy(lab, "linux")?;
    let arguments = ["run", &system, "--cpus", "2", "--take-turns", "--exec", "sleep 5"];
    let mut run = xtask(&arguments)?.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let usable = loop {
        if let Some(usable) = processors_of_emulator(run.id())? {
            break usable;
        }
        if let Some(status) = run.try_wait()? {
            bail!("no emulator was seen: {status}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let status = run.wait()?;
    ensure!(status.success(), "{status}");
    ensure!(usable.parse::<u32>().is_ok(), "the emulator may use the processors {usable}");
    Ok(())
}

/// What the emulator may use that process `parent` has started, if it has.
fn processors_of_emulator(parent: u32) -> Result<Option<String>> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // Processes end, and much there is no process.
        let (Ok(status), Ok(arguments)) = (fs::read_to_string(folder.join("status")), fs::read(folder.join("cmdline")))
        else {
            continue;
        };
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let machine = arguments.starts_with(b"qemu-system") && arguments.windows(5).any(|word| word == b"-smp\0");
        if machine && value("PPid:") == Some(&parent.to_string()) {
            return Ok(value("Cpus_allowed_list:").map(String::from));
        }
    }
    Ok(None)
}

/// Echo, line editing, Ctrl-C, the key that leaves, and a terminal that is as it was.
fn shell(lab: &Lab) -> Result<()> {
    // Seconds for an answer.
    const SOON: u64 = 30;
    let mut terminal = Terminal::open()?;
    let before = tcgetattr(&terminal.user)?;
    terminal.start(xtask(&["run", "--on", lab.emulator.name()])?)?;
    terminal.wait_for("Ctrl-] leaves", 120)?;
    terminal.wait_for(PROMPT, lab.boot_time().as_secs())?;
    // One wrong letter, taken back.
    terminal.write(b"echo $((6*7))x\x7f\r")?;
    terminal.wait_for("echo $((6*7))", SOON)?;
    terminal.wait_for("\n42", SOON)?;
    terminal.write(b"sleep 1000\r")?;
    terminal.wait_for("sleep 1000", SOON)?;
    thread::sleep(Duration::from_secs(1));
    terminal.write(b"\x03")?;
    terminal.write(b"echo status $?\r")?;
    terminal.wait_for("status 130", SOON)?;
    terminal.write(b"\x1d")?;
    let status = terminal.end(10)?;
    ensure!(status == 0, "leaving ends with status {status}");
    let after = tcgetattr(&terminal.user)?;
    ensure!(
        (before.local_modes, before.input_modes, before.output_modes)
            == (after.local_modes, after.input_modes, after.output_modes),
        "the terminal was not given back as it was"
    );
    Ok(())
}

/// A terminal with a program on it and a user before it.
struct Terminal {
    user: File,
    program: OwnedFd,
    shown: Receiver<Vec<u8>>,
    pending: String,
    child: Option<Child>,
}

impl Terminal {
    fn open() -> Result<Self> {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&user)?;
        unlockpt(&user)?;
        let name = ptsname(&user, Vec::new())?;
        let program = File::options().read(true).write(true).open(name.to_str()?)?.into();
        let user = File::from(user);
        let (sender, shown) = channel();
        let mut screen = user.try_clone()?;
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { user, program, shown, pending: String::new(), child: None })
    }

    fn start(&mut self, mut command: Command) -> Result<()> {
        let end = || Ok::<_, anyhow::Error>(Stdio::from(self.program.try_clone()?));
        self.child = Some(command.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?);
        Ok(())
    }

    fn write(&mut self, keys: &[u8]) -> Result<()> {
        Ok(self.user.write_all(keys)?)
    }

    /// Takes what is shown up to and with `text`.
    fn wait_for(&mut self, text: &str, seconds: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(at) = self.pending.find(text) {
                self.pending.drain(..at + text.len());
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.pending.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("{text:?} was not shown within {seconds} s; shown was: {}", self.pending),
            }
        }
    }

    fn end(&mut self, seconds: u64) -> Result<i32> {
        let child = self.child.as_mut().context("was started")?;
        for _ in 0..seconds * 10 {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("the program did not end within {seconds} s")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
