//! The guest's clocks beside the emulator's.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Lab;
use crate::emulator::{Boot, Emulator};
use crate::exec::{Frame, Frames};
use crate::session::{Event, Next};
use crate::{bundle, workspace};

/// Readings, and the seconds of the guest's between two of them.
const READINGS: usize = 54;
const INTERVAL: f64 = 0.9;
/// Readings at each end of which the one that arrived the fastest counts: the host may have other work.
const END: usize = 10;
/// Part of the time by which clocks may differ.
const TOLERANCE: f64 = 0.01;

/// Virtual instructions in a second of Bochs' (`ips`).
const BOCHS_TICKS: f64 = 50e6;

/// What the guest's clocks said, and the emulator's when that arrived, all in seconds.
#[derive(Debug, Clone, Copy)]
struct Reading {
    emulator: f64,
    uptime: f64,
    date: f64,
    /// The uptime again: on a busy host that can be much later.
    then: f64,
}

/// Neither drifts nor jumps, over at least 30 s.
pub fn agrees(lab: &Lab) -> Result<()> {
    let command = format!(
        "for i in $(seq {READINGS}); do echo $(cat /proc/uptime) $(date +%s) $(cat /proc/uptime); sleep {INTERVAL}; done"
    );
    let mut system = bundle::load("linux", Some(&command))?;
    system.plan.name.clone_from(&lab.name);
    // Bochs' log has a line for every access to a serial port, of which there are fewer so.
    system.plan.vms[0].config.cmdline.push_str(" quiet");
    let module = Some(bundle::write(&mut system, lab.programs, "")?);
    let boot = Boot { kernel: lab.programs.file("microhypervisor"), module, linux: None };
    let readings = match lab.emulator {
        Emulator::Bochs => by_ticks(lab, boot, system.memory)?,
        _ => by_arrival(lab, boot, system.memory)?,
    };
    ensure!(readings.len() == READINGS, "the guest gave {} readings", readings.len());
    compare(&readings)
}

fn compare(readings: &[Reading]) -> Result<()> {
    for pair in readings.windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        ensure!(after.uptime > before.uptime && after.date >= before.date, "a clock went back: {before:?}, {after:?}");
        // Both show the same clock, of which `date` has the whole seconds.
        let passed = after.date - readings[0].date;
        let (least, most) = (after.uptime - readings[0].then - 1.0, after.then - readings[0].uptime + 1.0);
        ensure!((least..=most).contains(&passed), "`date` and the uptime differ: {:?}, {after:?}", readings[0]);
    }
    let first = fastest(&readings[..END]).context("there are readings")?;
    let last = fastest(&readings[readings.len() - END..]).context("there are readings")?;
    let (emulator, uptime) = (last.emulator - first.emulator, last.uptime - first.uptime);
    ensure!(emulator >= 30.0 * (1.0 - TOLERANCE), "only {emulator} s passed: {readings:?}");
    ensure!((uptime - emulator).abs() <= TOLERANCE * emulator, "{uptime} s of uptime in {emulator} s: {readings:?}");
    Ok(())
}

/// The reading that arrived the soonest after it was taken.
fn fastest(readings: &[Reading]) -> Option<&Reading> {
    let delay = |reading: &Reading| reading.emulator - reading.uptime;
    readings.iter().min_by(|a, b| delay(a).total_cmp(&delay(b)))
}

fn reading(emulator: f64, line: &[u8]) -> Result<Reading> {
    let line = std::str::from_utf8(line)?;
    let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [uptime, _, date, then, _] = numbers[..] else { anyhow::bail!("not understood: {line:?}") };
    Ok(Reading { emulator, uptime, date, then })
}

/// QEMU's time is the host's, at which the readings arrive here.
fn by_arrival(lab: &Lab, boot: Boot, memory: u32) -> Result<Vec<Reading>> {
    let mut session = lab.start(boot, memory, Vec::new())?;
    let start = Instant::now();
    let mut frames = Frames::default();
    let mut readings = Vec::new();
    let ending = session.watch(Some(lab.boot_time()), |event| {
        let Event::Channel(bytes) = event else { return Ok(Next::Continue) };
        for frame in frames.append(bytes)? {
            match frame {
                Frame::Output(line) => readings.push(reading(start.elapsed().as_secs_f64(), &line)?),
                Frame::Status(_) => return Ok(Next::Finish(Duration::ZERO)),
                Frame::Ready | Frame::Error(_) => {}
            }
        }
        Ok(Next::Continue)
    })?;
    ensure!(ending.failure().is_none(), "{}\n{}", ending.failure().unwrap_or_default(), session.tail());
    Ok(readings)
}

/// Bochs' time has nothing to do with the host's. Its log says at which tick each byte of the channel left.
fn by_ticks(lab: &Lab, boot: Boot, memory: u32) -> Result<Vec<Reading>> {
    let mut session = lab.start(boot, memory, vec!["debug: action=ignore, serial=report".into()])?;
    let ending = session.watch(Some(lab.boot_time()), |_| Ok(Next::Continue))?;
    ensure!(ending.failure().is_none(), "{}\n{}", ending.failure().unwrap_or_default(), session.tail());
    let log = workspace::folder(&format!("run/{}", lab.name))?.join("bochs.log");
    let text = workspace::read(&log)?;
    // It is large.
    let _ = fs::remove_file(&log);
    let mut frames = Frames::default();
    let mut readings = Vec::new();
    for (ticks, byte) in sent(&text) {
        for frame in frames.append(&[byte])? {
            if let Frame::Output(line) = frame {
                readings.push(reading(ticks / BOCHS_TICKS, &line)?);
            }
        }
    }
    Ok(readings)
}

/// The bytes that were written to COM2's data register, and when.
fn sent(log: &[u8]) -> Vec<(f64, u8)> {
    const WRITE: &str = "d[SER   ] com2 register write to  address: 0x02f";
    let mut sent = Vec::new();
    // Line control: the first registers are the divisor.
    let mut divisor = false;
    for line in log.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        let Some((ticks, write)) = line.split_once(WRITE) else { continue };
        let Some((register, value)) = write.split_once(" = 0x") else { continue };
        let (Ok(ticks), Ok(value)) = (ticks.parse(), u8::from_str_radix(value.trim(), 16)) else { continue };
        match register {
            "b" => divisor = value & 0x80 != 0,
            "8" if !divisor => sent.push((ticks, value)),
            _ => {}
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from: usize, rate: f64, late: impl Fn(usize) -> f64) -> Vec<Reading> {
        let at = |i: usize| Reading {
            emulator: 100.0 + i as f64 * 0.9 + late(i),
            uptime: 5.0 + i as f64 * 0.9 * rate,
            date: (1e9 + i as f64 * 0.9 * rate).floor(),
            then: 5.01 + i as f64 * 0.9 * rate,
        };
        (from..READINGS).map(at).collect()
    }

    #[test]
    fn what_is_late_does_not_count_and_what_drifts_does() {
        assert!(compare(&line(0, 1.0, |i| if i % 9 == 5 { 0.0 } else { 2.0 })).is_ok());
        assert!(compare(&line(0, 1.005, |_| 0.0)).is_ok());
        assert!(compare(&line(0, 1.02, |_| 0.0)).is_err());
        assert!(compare(&line(0, 0.98, |_| 0.0)).is_err());
        assert!(compare(&line(20, 1.0, |_| 0.0)).is_err(), "too short");
        let mut jumps = line(0, 1.0, |_| 0.0);
        jumps[20..].iter_mut().for_each(|reading| reading.uptime += 0.5);
        assert!(compare(&jumps).is_err());
        let mut back = line(0, 1.0, |_| 0.0);
        back[20].uptime -= 1.0;
        assert!(compare(&back).is_err());
    }

    #[test]
    fn the_log_of_bochs_tells_what_was_sent() {
        let log = b"00000362642d[SER   ] com2 register write to  address: 0x02fb = 0x80
00000362643d[SER   ] com2 register write to  address: 0x02f8 = 0x01
00000362644d[SER   ] com2 register write to  address: 0x02fb = 0x03
00000362650d[SER   ] com2 register read from address: 0x02fd = 0x60
00000362652d[SER   ] com2 register write to  address: 0x02f8 = 0x41
00000362653d[SER   ] com1 register write to  address: 0x03f8 = 0x42
";
        assert_eq!(sent(log), [(362_652.0, b'A')]);
    }
}
