//! One run of one machine: its process, its two serial lines, its log, and how it ended.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::emulator::{Emulator, Machine};
use crate::workspace;

/// The start of a line by which the kernel or the root task says that it cannot go on.
const FATAL: [&str; 2] = ["kilonova: fatal:", "root: fatal:"];

/// The line with which the root task ends the machine in good order.
const ENDED: &str = "root: all VMs ended";

/// The bad ends of virtual machines that nothing followed, from what the root task says.
#[derive(Default)]
pub struct BadEnds(Vec<String>);

impl BadEnds {
    /// Takes note of a line of the console.
    pub fn look(&mut self, line: &str) {
        if let Some((_, how)) = line.strip_prefix("vm ").and_then(|rest| rest.split_once(": ")) {
            if how.starts_with("crashed") || how.starts_with("bad configuration") {
                self.0.push(line.into());
            }
        } else if let Some((name, _)) =
            line.strip_prefix("root: started vm ").and_then(|rest| rest.split_once(" again"))
        {
            self.0.retain(|end| {
                end.strip_prefix("vm ").and_then(|rest| rest.split_once(": ")).map(|end| end.0) != Some(name)
            });
        }
    }

    /// The first one's line.
    pub fn first(self) -> Option<String> {
        self.0.into_iter().next()
    }
}

/// How long the lines that follow a fatal one, which explain it, are waited for.
const REPORT: Duration = Duration::from_millis(500);

/// Something that happened on the machine's serial lines.
#[derive(Debug)]
pub enum Event<'a> {
    /// Bytes on COM1, as they came.
    Console(&'a [u8]),
    /// A whole line on COM1, without its end.
    Line(&'a str),
    /// Bytes on COM2.
    Channel(&'a [u8]),
}

/// What the one who watches a session wants next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Everything is known: give the machine this long to power off by itself, then end it.
    Finish(Duration),
}

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The root task said that all VMs ended, and the machine stopped.
    PoweredOff,
    /// The one who watches had seen enough, and the machine was still running.
    Finished,
    /// The kernel or the root task gave up, with this line.
    Fatal(String),
    /// The machine stopped, and nobody had said that it would.
    Stopped(String),
    /// Not even a first line came.
    Silent(Duration),
    /// Time was up.
    TimedOut(Duration),
}

impl Ending {
    /// The reason in one line; None for an end in good order.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::PoweredOff | Self::Finished => None,
            Self::Fatal(line) => Some(line.clone()),
            Self::Stopped(how) => Some(format!("the machine stopped without a word ({how})")),
            Self::Silent(time) => Some(format!("nothing came over the serial line for {} s", time.as_secs())),
            Self::TimedOut(time) => Some(format!("not finished after {} s (--timeout)", time.as_secs())),
        }
    }
}

enum Incoming {
    Console(Vec<u8>),
    Channel(Vec<u8>),
    Closed,
    Leave,
}

/// Asks a running session to end, from another thread.
#[derive(Clone)]
pub struct Leave(Sender<Incoming>);

impl Leave {
    /// Ends the session as [`Ending::Finished`].
    pub fn now(&self) {
        let _ = self.0.send(Incoming::Leave);
    }
}

/// A machine that runs. Dropping it kills it.
pub struct Session {
    process: Child,
    console: TcpStream,
    sender: Sender<Incoming>,
    incoming: Receiver<Incoming>,
    log: Log,
    messages: PathBuf,
    patience: Duration,
}

impl Session {
    /// Starts a machine; `log` will hold what comes over COM1.
    pub fn start(emulator: Emulator, machine: &Machine, log: &Path) -> Result<Self> {
        let console = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let channel_listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let ports = [console.local_addr()?.port(), channel_listener.local_addr()?.port()];
        let messages = machine.folder.join("messages");
        let file = File::create(&messages).with_context(|| format!("cannot write {}", workspace::shown(&messages)))?;
        let output = match (&machine.trace, emulator) {
            // What its debugger says.
            (Some(trace), Emulator::Bochs) => File::create(trace)?.into(),
            (None, Emulator::Bochs) => Stdio::null(),
            _ => file.try_clone()?.into(),
        };
        let mut process = emulator
            .command(machine, ports)?
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(file)
            .spawn()
            .context("cannot start the emulator: `setpriv` (package util-linux) is missing")?;
        let connected = accept(&console, &mut process).and_then(|console| {
            let channel = accept(&channel_listener, &mut process)?;
            Ok((console, channel))
        });
        let (console, channel_stream) = match connected {
            Ok(streams) => streams,
            Err(error) => {
                end(&mut process);
                let said = fs::read_to_string(&messages).unwrap_or_default();
                let said: Vec<&str> = said.lines().filter(|line| !is_chatter(line)).collect();
                bail!("{} did not start: {error}\n{}", emulator.name(), said.join("\n"));
            }
        };
        emulator.attend(&messages);
        let (sender, incoming) = channel();
        receive(console.try_clone()?, sender.clone(), Incoming::Console);
        receive(channel_stream, sender.clone(), Incoming::Channel);
        // Linux says nothing before it has its console.
        let times = if machine.boot.linux.is_some() { 5 } else { 1 };
        let patience = times * Duration::from_secs(emulator.first_line());
        Ok(Self { process, console, sender, incoming, log: Log::create(log)?, messages, patience })
    }

    /// The machine's console for writing.
    pub fn console(&self) -> Result<TcpStream> {
        Ok(self.console.try_clone()?)
    }

    /// A handle that ends [`Session::watch`].
    pub fn leave(&self) -> Leave {
        Leave(self.sender.clone())
    }

    /// Shows everything that happens to `watcher` until the machine ends, or time is up.
    pub fn watch(
        &mut self,
        timeout: Option<Duration>,
        mut watcher: impl FnMut(Event) -> Result<Next>,
    ) -> Result<Ending> {
        let start = Instant::now();
        let mut open = 2;
        let mut finish: Option<Instant> = None;
        let mut fatal: Option<(Instant, String)> = None;
        let mut seen_end = false;
        let mut seen_anything = false;
        loop {
            let mut next = Next::Continue;
            match self.incoming.recv_timeout(Duration::from_millis(50)) {
                Ok(Incoming::Console(bytes)) => {
                    seen_anything = true;
                    next = later(next, watcher(Event::Console(&bytes))?);
                    for line in self.log.append(&bytes)? {
                        seen_end |= line == ENDED;
                        if fatal.is_none() && FATAL.iter().any(|prefix| line.starts_with(prefix)) {
                            fatal = Some((Instant::now() + REPORT, line.clone()));
                        }
                        next = later(next, watcher(Event::Line(&line))?);
                    }
                }
                Ok(Incoming::Channel(bytes)) => next = later(next, watcher(Event::Channel(&bytes))?),
                Ok(Incoming::Closed) => open -= 1,
                Ok(Incoming::Leave) => return Ok(Ending::Finished),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this session keeps a sender"),
            }
            let now = Instant::now();
            if let Next::Finish(grace) = next {
                finish.get_or_insert(now + grace);
            }
            if let Some((deadline, line)) = &fatal
                && (now >= *deadline || open == 0)
            {
                return Ok(Ending::Fatal(line.clone()));
            }
            if open == 0 {
                let status = wait_or_kill(&mut self.process)?;
                return Ok(if seen_end { Ending::PoweredOff } else { Ending::Stopped(status.to_string()) });
            }
            if finish.is_some_and(|deadline| now >= deadline) {
                return Ok(Ending::Finished);
            }
            if !seen_anything && self.should_have_spoken(start.elapsed()) {
                return Ok(Ending::Silent(self.patience));
            }
            if let Some(limit) = timeout
                && start.elapsed() >= limit
                && finish.is_none()
            {
                return Ok(Ending::TimedOut(limit));
            }
        }
    }

    /// Whether a machine that has said nothing in this time is taken for dead. Where the host has other work it may not
    /// have run much.
    fn should_have_spoken(&self, elapsed: Duration) -> bool {
        let starved = || cpu_time(self.process.id()).is_some_and(|used| used < self.patience / 2);
        elapsed >= self.patience && (elapsed >= 4 * self.patience || !starved())
    }

    /// The last lines of the console, and what the emulator itself said.
    pub fn tail(&self) -> String {
        let mut tail: Vec<String> = self.log.tail.iter().cloned().collect();
        let partial = String::from_utf8_lossy(&self.log.line);
        if !partial.trim().is_empty() {
            tail.push(partial.into_owned());
        }
        let said = fs::read_to_string(&self.messages).unwrap_or_default();
        tail.extend(said.lines().filter(|line| !is_chatter(line)).take(20).map(|line| format!("[emulator] {line}")));
        tail.join("\n")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// What a process has used of CPUs.
fn cpu_time(process: u32) -> Option<Duration> {
    used(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// The same from its line in /proc (proc(5)): fields 14 and 15, in hundredths of a second, counted from behind the name,
/// which may have blanks.
fn used(line: &str) -> Option<Duration> {
    let mut fields = line.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (next()? + next()?)))
}

/// Bochs tells which plugins it loads: lines marked `i` for information after eleven digits of its clock.
fn is_chatter(line: &str) -> bool {
    line.as_bytes().get(11..13) == Some(b"i[")
}

fn later(first: Next, second: Next) -> Next {
    if second == Next::Continue { first } else { second }
}

fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// Both serial lines are closed, so the process is ending. Bochs sometimes needs the push.
fn wait_or_kill(process: &mut Child) -> Result<ExitStatus> {
    for _ in 0..40 {
        if let Some(status) = process.try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(50));
    }
    process.kill()?;
    Ok(process.wait()?)
}

fn accept(listener: &TcpListener, process: &mut Child) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
        if let Some(status) = process.try_wait()? {
            bail!("it ended at once ({status})");
        }
        if Instant::now() >= deadline {
            bail!("it did not open its serial lines");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn receive(mut stream: TcpStream, sender: Sender<Incoming>, wrap: fn(Vec<u8>) -> Incoming) {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if sender.send(wrap(buffer[..length].to_vec())).is_err() {
                return;
            }
        }
        let _ = sender.send(Incoming::Closed);
    });
}

/// The console's log file, cut into lines.
struct Log {
    file: File,
    line: Vec<u8>,
    tail: VecDeque<String>,
}

impl Log {
    /// Lines that are shown when something fails.
    const TAIL: usize = 30;
    /// A line longer than this is shown in pieces.
    const LONGEST: usize = 4096;

    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", workspace::shown(path)))?;
        Ok(Self { file, line: Vec::new(), tail: VecDeque::new() })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<Vec<String>> {
        self.file.write_all(bytes)?;
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() == Self::LONGEST {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r').to_string();
                if self.tail.len() == Self::TAIL {
                    self.tail.pop_front();
                }
                self.tail.push_back(line.clone());
                lines.push(line);
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_process_used() {
        let line = "71 (a b) c) S 1 2 3 0 -1 4194560 94 5 6 7 200 50 8 9 20 0 3 0 3009 1 2";
        assert_eq!(used(line), Some(Duration::from_millis(2500)));
        assert_eq!(used("71 (short) S 1 2"), None);
        assert!(cpu_time(std::process::id()).is_some());
    }

    #[test]
    fn only_ends_that_nothing_followed_are_bad() {
        let first = |lines: &[&str]| {
            let mut ends = BadEnds::default();
            lines.iter().for_each(|line| ends.look(line));
            ends.first()
        };
        let crash = "vm a: crashed: its program died";
        assert_eq!(first(&["vm a: powered off", "root: started vm a with 16 MiB"]), None);
        assert_eq!(first(&["vm b: bad configuration", crash]), Some("vm b: bad configuration".into()));
        assert_eq!(first(&[crash, "root: started vm a again (1 of 3)", "vm a: powered off"]), None);
        assert_eq!(first(&[crash, "root: started vm b again (1)"]), Some(crash.into()));
        assert_eq!(first(&[crash, "root: started vm a again (1)", crash]), Some(crash.into()));
    }
}
