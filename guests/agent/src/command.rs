//! The command: a shell with pipes for its output, and frames that carry them away.

use core::ffi::CStr;
use core::fmt::Write;
use core::ptr;

use crate::frame::{Frame, Kind};
use crate::linux::{self, Descriptor, Errno, Poll, Process, READABLE};
use crate::port::Ports;
use crate::{FAILED, Failure, StandardError};

/// The exit status, as shells have it, when the shell itself cannot be started.
const NOT_STARTED: u8 = 127;

/// What the command finds in its environment, whoever started the agent.
const ENVIRONMENT: [&CStr; 3] = [c"PATH=/sbin:/bin:/usr/sbin:/usr/bin", c"HOME=/root", c"TERM=dumb"];

/// Runs `/bin/sh FILE` and sends its output and status; returns the status.
pub fn run(file: &CStr) -> Result<u8, Failure> {
    let ports = Ports::open().map_err(Failure::NoPortAccess)?;
    if !ports.has_channel() {
        return Err(Failure::NoChannel);
    }
    let mut frame = Frame::new();
    ports.send(frame.hello());
    let result = Command::start(file).and_then(|command| command.forward(&ports, &mut frame));
    ports.send(frame.status(*result.as_ref().unwrap_or(&FAILED)));
    result
}

struct Command {
    shell: Process,
    output: Descriptor,
    error: Descriptor,
}

impl Command {
    fn start(file: &CStr) -> Result<Self, Failure> {
        let pipe = || linux::pipe().map_err(|errno| Failure::Linux("make a pipe", errno));
        let ([output, output_end], [error, error_end]) = (pipe()?, pipe()?);
        match linux::fork().map_err(|errno| Failure::Linux("start a process", errno))? {
            None => {
                let errno = become_shell(file, output_end, error_end);
                let _ = writeln!(StandardError, "agent: cannot run /bin/sh ({errno})");
                linux::exit(NOT_STARTED)
            }
            Some(shell) => {
                linux::close(output_end);
                linux::close(error_end);
                Ok(Self { shell, output, error })
            }
        }
    }

    /// Forwards output until the shell has ended and what it wrote is read. Processes that it left behind may keep the
    /// pipes open: nobody waits for them.
    fn forward(&self, ports: &Ports, frame: &mut Frame) -> Result<u8, Failure> {
        // Without such descriptors (-1) the end of both pipes must do.
        let shell = linux::process_descriptor(self.shell).unwrap_or(-1);
        let mut polls =
            [self.output, self.error, shell].map(|descriptor| Poll { descriptor, events: READABLE, came: 0 });
        let mut ended = false;
        loop {
            linux::poll(&mut polls, !ended).map_err(|errno| Failure::Linux("wait for output", errno))?;
            let [output, error, shell] = &mut polls;
            let mut idle = true;
            for (poll, kind) in [(output, Kind::Output), (error, Kind::Error)] {
                if poll.descriptor >= 0 && poll.came != 0 {
                    idle = false;
                    match linux::read(poll.descriptor, frame.payload()) {
                        Err(Errno::AGAIN) => {}
                        Ok(length) if length > 0 => ports.send(frame.seal(kind, length)),
                        // The end, or as good as that.
                        _ => poll.descriptor = -1,
                    }
                }
            }
            if shell.came != 0 {
                // What the shell wrote lies in the pipes now; one look more finds it.
                (ended, shell.descriptor, shell.came) = (true, -1, 0);
                continue;
            }
            if ended && idle || polls.iter().all(|poll| poll.descriptor < 0) {
                return linux::wait(self.shell).map_err(|errno| Failure::Linux("wait for the shell", errno));
            }
        }
    }
}

/// Makes this process the shell; returns when that fails.
fn become_shell(file: &CStr, output: Descriptor, error: Descriptor) -> Errno {
    let prepare = || {
        linux::duplicate(error, linux::STANDARD_ERROR)?;
        linux::duplicate(output, linux::STANDARD_OUTPUT)?;
        linux::duplicate(linux::open(c"/dev/null")?, linux::STANDARD_INPUT)?;
        // The command is not to touch ports because the agent does.
        linux::iopl(0)
    };
    if let Err(errno) = prepare() {
        return errno;
    }
    let [path, home, terminal] = ENVIRONMENT.map(CStr::as_ptr);
    linux::execute(c"/bin/sh", &[c"/bin/sh".as_ptr(), file.as_ptr(), ptr::null()], &[path, home, terminal, ptr::null()])
}
