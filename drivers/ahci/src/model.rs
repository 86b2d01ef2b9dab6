//! A model of an AHCI controller with disks, written from the specification alone: it shares no constant with the driver.

use block::model::{Controller, Shared};
use std::vec::Vec;

/// Bytes of DMA memory; the windows follow.
pub const DMA: u64 = 1 << 16;
/// Bytes of memory behind it.
pub const WINDOW: u64 = 2 << 20;

/// What is on a port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plug {
    Nothing,
    /// It shows, but never talks.
    Dead,
    Packet,
    Disk,
}

#[derive(Clone, Copy, Default)]
struct PortState {
    list: u64,
    received: u64,
    status: u32,
    enable: u32,
    command: u32,
    task_file: u32,
    issue: u32,
    /// Looks until the link is there.
    link: u32,
    slot: u32,
    halted: bool,
}

pub struct Model {
    pub memory: Shared,
    pub disk: Vec<u8>,
    pub plugs: [Plug; 6],
    pub slots: u32,
    pub wide: bool,
    pub block: u32,
    pub words: Vec<(usize, u16)>,
    pub absent: bool,
    pub stuck_reset: bool,
    pub firmware: u32,
    pub identify_fails: bool,
    /// The next data command fails, and leaves this in PxTFD.
    pub fail: Option<u32>,
    pub interrupts: u32,
    pub log: Vec<(u8, u64, u32, bool)>,
    control: u32,
    handoff: u32,
    pending: u32,
    ports: [PortState; 6],
}

impl Model {
    pub fn new() -> Self {
        let running = PortState { command: 0xc011, link: 3, task_file: 0x7f, ..PortState::default() };
        Self {
            memory: Shared::new(DMA, WINDOW),
            disk: (0..1u32 << 20).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect(),
            plugs: [Plug::Nothing, Plug::Packet, Plug::Nothing, Plug::Disk, Plug::Disk, Plug::Nothing],
            slots: 32,
            wide: true,
            block: 512,
            words: Vec::new(),
            absent: false,
            stuck_reset: false,
            firmware: 0,
            identify_fails: false,
            fail: None,
            interrupts: 0,
            log: Vec::new(),
            control: 0,
            handoff: 1,
            pending: 0,
            // As a predecessor left them: running.
            ports: [running; 6],
        }
    }

    /// Whether a command waits in a port.
    pub fn is_busy(&self) -> bool {
        self.ports.iter().any(|port| port.issue != 0 && !port.halted)
    }

    /// A port works off one command.
    pub fn step(&mut self) {
        let Some(number) = self.ports.iter().position(|port| port.issue != 0 && !port.halted) else { return };
        let slot = self.ports[number].issue.trailing_zeros();
        self.ports[number].slot = slot;
        let header = self.ports[number].list + u64::from(slot) * 32;
        let (flags, table) = (self.memory.half(header), self.memory.whole(header + 8));
        assert_eq!((flags & 0x1f, table % 128), (5, 0));
        let fis: Vec<u8> = (0..20).step_by(4).flat_map(|at| self.memory.half(table + at).to_le_bytes()).collect();
        assert_eq!((fis[0], fis[1], fis[3], fis[15]), (0x27, 0x80, 0, 0));
        let sector = [10, 9, 8, 6, 5, 4].iter().fold(0u64, |value, &i| value << 8 | u64::from(fis[i]));
        let count = u32::from(fis[12]) | u32::from(fis[13]) << 8;
        let pieces: Vec<(u64, u32)> = (0..u64::from(flags >> 16))
            .map(|i| {
                (self.memory.whole(table + 128 + i * 16), (self.memory.half(table + 140 + i * 16) & 0x3f_ffff) + 1)
            })
            .collect();
        let write = flags & 0x40 != 0;
        if fis[2] != 0xec {
            self.log.push((fis[2], sector, count, write));
            if let Some(status) = self.fail.take() {
                return self.end(number, Some(status));
            }
        }
        match fis[2] {
            0xec if self.identify_fails => return self.end(number, Some(0x41)),
            0xec => self.identify(number, pieces[0]),
            0x25 | 0x35 | 0x3d => {
                assert_eq!((fis[7], write), (0x40, fis[2] != 0x25));
                self.transfer(sector * u64::from(self.block), count * self.block, &pieces, write);
            }
            0xea => assert!(pieces.is_empty() && !write),
            other => panic!("command {other:#x}"),
        }
        self.end(number, None);
    }

    fn end(&mut self, number: usize, failed: Option<u32>) {
        let port = &mut self.ports[number];
        port.task_file = failed.unwrap_or(0x50);
        if failed.is_some() {
            port.halted = true;
            port.status |= 1 << 30;
        } else {
            port.issue &= !(1 << port.slot);
            port.status |= 1;
        }
        if port.status & port.enable != 0 {
            self.interrupts += u32::from(self.pending >> number & 1 == 0 && self.control & 2 != 0);
            self.pending |= 1 << number;
        }
    }

    fn identify(&mut self, number: usize, (address, length): (u64, u32)) {
        assert_eq!(length, 512);
        let mut words = [0u16; 256];
        words[10..20].fill(0x2020);
        words[10] = u16::from_be_bytes([b'S', b'0' + number as u8]);
        words[27..47].fill(0x2020);
        words[27] = u16::from_be_bytes(*b"Mo");
        (words[83], words[84], words[85]) = (0x4400, 0x4040, 0x20);
        let sectors = self.disk.len() as u64 / u64::from(self.block);
        (0..4).for_each(|i| words[100 + i] = (sectors >> (16 * i)) as u16);
        if self.block != 512 {
            (words[106], words[117]) = (0x5000, (self.block / 2) as u16);
        }
        for (at, word) in self.words.clone() {
            words[at] = word;
        }
        for (i, pair) in words.chunks(2).enumerate() {
            self.memory.put(address + i as u64 * 4, u32::from(pair[0]) | u32::from(pair[1]) << 16);
        }
    }

    fn transfer(&mut self, start: u64, length: u32, pieces: &[(u64, u32)], write: bool) {
        assert_eq!(pieces.iter().map(|piece| piece.1).sum::<u32>(), length);
        assert!(start + u64::from(length) <= self.disk.len() as u64);
        let places = pieces.iter().flat_map(|&(address, length)| (address..address + u64::from(length)).step_by(4));
        for (at, address) in (start as usize..).step_by(4).zip(places) {
            if write {
                let value = self.memory.half(address).to_le_bytes();
                self.disk[at..at + 4].copy_from_slice(&value);
            } else {
                self.memory.put(address, u32::from_le_bytes(self.disk[at..at + 4].try_into().unwrap()));
            }
        }
    }

    fn read_port(&mut self, number: usize, register: u64) -> u32 {
        let plug = self.plugs[number];
        let port = &mut self.ports[number];
        let receives = port.command & 1 << 4 != 0;
        match register {
            0x10 => port.status,
            0x18 => port.command | port.slot << 8,
            0x20 => port.task_file,
            0x24 if plug == Plug::Disk && receives => 0x101,
            0x24 if plug == Plug::Packet && receives => 0xeb14_0101,
            0x24 => u32::MAX,
            0x28 => {
                port.link = port.link.saturating_sub(1);
                match plug {
                    Plug::Nothing => 0,
                    Plug::Dead => 1,
                    _ if port.link != 0 => 1,
                    _ => {
                        port.task_file = if port.task_file == 0x7f { 0x50 } else { port.task_file };
                        0x123
                    }
                }
            }
            0x38 => port.issue,
            other => panic!("port register {other:#x} read"),
        }
    }

    fn write_port(&mut self, number: usize, register: u64, value: u32) {
        let port = &mut self.ports[number];
        let part = |old: u64, high: bool| match high {
            true => old as u32 as u64 | u64::from(value) << 32,
            false => old >> 32 << 32 | u64::from(value),
        };
        match register {
            0x00 | 0x04 => port.list = part(port.list, register == 4),
            0x08 | 0x0c => port.received = part(port.received, register == 12),
            0x10 => port.status &= !value,
            0x14 => port.enable = value,
            0x18 => {
                let (starts, receives) = (value & 1 != 0, value & 1 << 4 != 0);
                if starts && port.command & 1 == 0 {
                    assert!(port.command & 0xc010 == 0x4010, "ST while FIS receive is off, or the list runs");
                    assert_eq!(port.task_file & 0x88, 0, "ST while the device is busy (10.3.1)");
                    assert_eq!((port.list % 1024, port.received % 256), (0, 0));
                }
                if !starts {
                    // PxCI is cleared when ST goes from 1 to 0 (3.3.14).
                    port.issue = 0;
                    port.halted = false;
                    port.slot = 0;
                }
                assert!(receives || !starts);
                port.command = value & 0x17 | u32::from(starts) << 15 | u32::from(receives) << 14;
            }
            0x30 => {}
            0x38 => {
                assert!(port.command & 1 != 0 && value >> 1 >> (self.slots - 1) == 0);
                assert_eq!(port.issue & value, 0, "a slot that is in use");
                port.issue |= value;
            }
            other => panic!("port register {other:#x} written"),
        }
    }
}

impl Controller for Model {
    fn read(&mut self, register: u64) -> u32 {
        if self.absent {
            return u32::MAX;
        }
        match register {
            0x00 => 5 | (self.slots - 1) << 8 | u32::from(self.wide) << 31,
            0x04 => {
                let value = self.control;
                if !self.stuck_reset {
                    self.control &= !1;
                }
                value
            }
            0x0c => 0x3f,
            0x24 => 1,
            0x28 => {
                self.firmware = self.firmware.saturating_sub(u32::from(self.handoff & 2 != 0));
                self.handoff & 2 | u32::from(self.firmware != 0)
            }
            0x100..0x400 => self.read_port(((register - 0x100) / 0x80) as usize, register & 0x7f),
            other => panic!("register {other:#x} read"),
        }
    }
    fn write(&mut self, register: u64, value: u32) {
        match register {
            0x04 => {
                assert!(value & 1 << 31 != 0);
                assert_eq!(self.firmware, 0, "the firmware owns the controller");
                self.control = value;
                if value & 1 != 0 {
                    self.ports = [PortState { command: 6, link: 3, task_file: 0x7f, ..PortState::default() }; 6];
                    self.pending = 0;
                }
            }
            0x08 => {
                let still = (0..6).filter(|&i| self.ports[i].status & self.ports[i].enable != 0);
                let still = still.fold(0, |bits, i| bits | 1 << i);
                self.pending = self.pending & !value | still;
            }
            0x28 => self.handoff = value,
            0x100..0x400 => {
                self.write_port(((register - 0x100) / 0x80) as usize, register & 0x7f, value);
                // Before interrupts are on the driver waits for what it does.
                if self.control & 2 == 0 {
                    self.step();
                }
            }
            other => panic!("register {other:#x} written"),
        }
    }
    fn memory(&self) -> &Shared {
        &self.memory
    }
}
