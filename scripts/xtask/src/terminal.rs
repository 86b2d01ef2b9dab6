//! The user's terminal while a machine's console is on it: raw, and always given back as it was.

use std::io::{Read, Write, stdin};
use std::net::TcpStream;
use std::sync::Mutex;
use std::{process, thread};

use anyhow::Result;
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::session::Leave;

/// The key that leaves: Ctrl-].
const LEAVE: u8 = 0x1d;

/// How the terminal was before it became raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Makes signals that end the program give the terminal back. Emulators die with the program.
pub fn restore_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            restore();
            eprintln!("ended by signal {signal}");
            process::exit(128 + signal);
        }
    });
    Ok(())
}

/// A terminal in raw mode; dropping it restores the mode.
pub struct Raw;

impl Raw {
    /// Makes the terminal on standard input raw. None if there is none.
    pub fn enter() -> Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Boot messages may end their lines with a bare newline.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        *BEFORE.lock().expect("no holder panics") = Some(before);
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Ok(mut before) = BEFORE.lock()
        && let Some(before) = before.take()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &before);
    }
}

/// Sends what is typed to the machine's console, until the key that leaves.
pub fn forward(mut console: TcpStream, leave: Leave) {
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = stdin().read(&mut buffer) {
            let typed = &buffer[..length];
            let before_leaving = typed.iter().position(|&byte| byte == LEAVE);
            if console.write_all(&typed[..before_leaving.unwrap_or(length)]).is_err() {
                return;
            }
            if before_leaving.is_some() {
                return leave.now();
            }
        }
    });
}
