//! Bochs as the Intel machine: VT-x with EPT, VPID and unrestricted guest, every instruction interpreted.
//!
//! It boots a CD on which GRUB loads the kernel by multiboot2. Its `ips` makes virtual time a function of the
//! instructions executed; `sync=none` keeps it so.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::{Machine, SerialPorts, text};
use crate::{image, workspace};

/// Has EPT, VPID, unrestricted guest, preemption timer, x2APIC and TSC deadline.
const CPU: &str = "corei7_icelake_u";

/// For a Linux on the machine itself. It has what Kilonova needs, too; Linux with its usual mitigations does not survive
/// [`CPU`] (docs/emulators.md).
pub const CPU_FOR_LINUX: &str = "corei7_haswell_4770";

/// With breakpoints by `xchg bx, bx`: goes on to the next one, and traces everything up to that behind it.
const TRACED: &str = "c\ntrace on\ntrace-mem on\nc\ntrace off\ntrace-mem off\n";
/// Most windows that are traced in one run.
const MOST_WINDOWS: usize = 4000;

/// A machine whose files are in place.
pub struct Prepared {
    configuration: PathBuf,
    commands: PathBuf,
}

/// Writes the boot medium and the configuration files into the machine's folder.
pub fn prepare(machine: &Machine, ports: SerialPorts) -> Result<Prepared> {
    let iso = machine.folder.join("boot.iso");
    image::write_iso(&machine.boot, &iso)?;
    let configuration = machine.folder.join("bochsrc");
    workspace::write(&configuration, configure(machine, ports, &text(&iso)).as_bytes())?;
    // Bochs is built with its debugger, which waits for a command.
    let commands = machine.folder.join("commands");
    let script = if machine.trace.is_some() { TRACED.repeat(MOST_WINDOWS) } else { "c\n".into() };
    workspace::write(&commands, script.as_bytes())?;
    Ok(Prepared { configuration, commands })
}

impl Prepared {
    pub fn add_to(self, command: &mut Command) -> &mut Command {
        // The only display that needs neither a window system nor an open port draws on a terminal.
        command
            .env("TERM", "xterm")
            .arg("bochs")
            .arg("-q")
            .arg("-f")
            .arg(self.configuration)
            .arg("-rc")
            .arg(self.commands)
    }
}

/// Takes what Bochs draws on the terminal that it makes for itself, and that nobody looks at: a machine that draws much
/// would stop when it is full. `messages` is the file with what Bochs says, the terminal's name among it.
pub fn take_screen(messages: PathBuf) {
    const PATIENCE: Duration = Duration::from_millis(100);
    thread::spawn(move || {
        let name = (0..600).find_map(|_| {
            let said = fs::read_to_string(&messages).unwrap_or_default();
            let name = screen(&said).map(String::from);
            if name.is_none() {
                thread::sleep(PATIENCE);
            }
            name
        });
        let not_ours = OpenptFlags::NOCTTY.bits() as i32;
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(not_ours).open(name.unwrap_or_default());
        let Ok(mut terminal) = terminal else { return };
        // No echo: that would be keys.
        if let Ok(mut mode) = tcgetattr(&terminal) {
            mode.make_raw();
            let _ = tcsetattr(&terminal, OptionalActions::Now, &mode);
        }
        let mut drawn = [0; 4096];
        while let Ok(1..) = terminal.read(&mut drawn) {}
    });
}

fn screen(messages: &str) -> Option<&str> {
    messages.split_once("connected to screen \"")?.1.split_once('"').map(|(name, _)| name)
}

fn configure(machine: &Machine, [com1, com2]: SerialPorts, iso: &str) -> String {
    let usual = if machine.boot.linux.is_some() { CPU_FOR_LINUX } else { CPU };
    let cpu = machine.cpu_model.as_deref().unwrap_or(usual);
    let Machine { cpus, memory, .. } = machine;
    let further = machine.further.join("\n");
    let breakpoints = u8::from(machine.trace.is_some());
    format!(
        "config_interface: textconfig
display_library: term
cpu: model={cpu}, count={cpus}, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={memory}, host={memory}
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=socket-client, dev=127.0.0.1:{com1}
com2: enabled=1, mode=socket-client, dev=127.0.0.1:{com2}
pci: enabled=1, chipset=i440fx
clock: sync=none, time0=946681200
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, parallel=0
sound: waveoutdrv=dummy, waveout=none, waveindrv=dummy, wavein=none, midioutdrv=dummy, midiout=none
magic_break: enabled={breakpoints}
panic: action=fatal
error: action=report
info: action=ignore
log: bochs.log
{further}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_is_found() {
        assert_eq!(screen("00000000000i[      ] x\n\nBochs connected to screen \"/dev/pts/7\"\n"), Some("/dev/pts/7"));
        assert_eq!(screen("Bochs connected to screen \"/dev/p"), None);
    }
}
