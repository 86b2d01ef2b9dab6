//! A model of an NVMe controller, written from the specification alone: it shares no constant with the driver.

use block::model::{Controller, Shared};
use std::vec;
use std::vec::Vec;

/// Bytes of DMA memory; the windows follow.
pub const DMA: u64 = 1 << 20;
/// Bytes of memory behind it.
pub const WINDOW: u64 = 4 << 20;

/// A queue as the controller knows it.
#[derive(Clone, Copy, Default)]
struct Queue {
    base: u64,
    entries: u16,
    place: u16,
    phase: bool,
    doorbell: u16,
}

pub struct Model {
    pub memory: Shared,
    pub disk: Vec<u8>,
    pub cap: u64,
    pub block_log: u8,
    pub metadata: u16,
    pub mdts: u8,
    pub cache: u8,
    /// Looks at CSTS until it follows CC.
    pub delay: u32,
    pub fatal: bool,
    pub absent: bool,
    /// Never becomes ready; never stops.
    pub stuck: (bool, bool),
    /// Admin opcode that fails with a status, or is never answered (status 0).
    pub refuse: Option<(u8, u16)>,
    /// I/O commands that fail with this status, from now on.
    pub failing: u16,
    pub cc: u32,
    ready: bool,
    countdown: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    submissions: [Queue; 2],
    completions: [Queue; 2],
    /// I/O commands that were started, in order.
    pub running: Vec<[u32; 16]>,
    /// All that have ever been started.
    pub log: Vec<[u32; 16]>,
    pub interrupts: u32,
    pub pauses: u32,
    pub flushes: u32,
}

/// CAP: so many entries, contiguous queues, two seconds to get ready, doorbells 4 << `stride` bytes apart, NVM commands.
pub fn cap(entries: u64, stride: u64) -> u64 {
    (entries - 1) | 1 << 16 | 4 << 24 | stride << 32 | 1 << 37
}

impl Model {
    pub fn new() -> Self {
        Self {
            memory: Shared::new(DMA, WINDOW),
            disk: (0..1u32 << 22).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect(),
            cap: cap(2048, 0),
            block_log: 9,
            metadata: 0,
            mdts: 7,
            cache: 1,
            delay: 3,
            fatal: false,
            absent: false,
            stuck: (false, false),
            refuse: None,
            failing: 0,
            cc: 0,
            ready: false,
            countdown: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            submissions: Default::default(),
            completions: Default::default(),
            running: Vec::new(),
            log: Vec::new(),
            interrupts: 0,
            pauses: 0,
            flushes: 0,
        }
    }

    fn doorbell(&mut self, number: u64, value: u32) {
        assert!(self.ready, "a doorbell of a controller that is not ready");
        let queue = (number / 2) as usize;
        if number % 2 == 1 {
            self.completions[queue].doorbell = value as u16;
            return;
        }
        assert!(value < u32::from(self.submissions[queue].entries));
        while u32::from(self.submissions[queue].place) != value {
            let Queue { base, entries, place, .. } = self.submissions[queue];
            self.submissions[queue].place = (place + 1) % entries;
            let command = core::array::from_fn(|i| self.memory.half(base + u64::from(place) * 64 + i as u64 * 4));
            if queue == 0 {
                self.admin(command);
            } else {
                assert!(
                    self.running.iter().all(|other| other[0] >> 16 != command[0] >> 16),
                    "one command under a name"
                );
                self.running.push(command);
                self.log.push(command);
                assert!(self.running.len() < usize::from(entries));
            }
        }
    }

    fn complete(&mut self, queue: usize, id: u32, status: u16) {
        let head = self.submissions[queue].place;
        let Queue { base, entries, place, phase, doorbell } = self.completions[queue];
        assert_ne!((place + 1) % entries, doorbell, "the completion queue overflows");
        let at = base + u64::from(place) * 16;
        self.memory.put(at, 0);
        self.memory.put(at + 4, 0);
        self.memory.put(at + 8, u32::from(head) | (queue as u32) << 16);
        self.memory.put(at + 12, id | u32::from(phase) << 16 | u32::from(status) << 17);
        self.completions[queue].place = (place + 1) % entries;
        self.completions[queue].phase ^= self.completions[queue].place == 0;
        self.interrupts += 1;
    }

    fn admin(&mut self, command: [u32; 16]) {
        let (opcode, id) = (command[0] as u8, command[0] >> 16);
        let status = match self.refuse {
            Some((refused, 0)) if refused == opcode => return,
            Some((refused, status)) if refused == opcode => status,
            _ => {
                self.admin_command(opcode, &command);
                0
            }
        };
        self.complete(0, id, status);
    }

    fn admin_command(&mut self, opcode: u8, command: &[u32; 16]) {
        let address = u64::from(command[6]) | u64::from(command[7]) << 32;
        let queue =
            Queue { base: address, entries: (command[10] >> 16) as u16 + 1, place: 0, phase: true, doorbell: 0 };
        match opcode {
            6 => {
                let mut page = [0u8; 4096];
                if command[10] == 1 {
                    page[4..24].copy_from_slice(b"serial 1            ");
                    page[24..64].fill(b' ');
                    page[24..30].copy_from_slice(b"Model\x07");
                    (page[77], page[525]) = (self.mdts, self.cache);
                } else {
                    assert_eq!((command[10], command[1]), (0, 1));
                    let blocks = self.disk.len() as u64 >> self.block_log;
                    page[..8].copy_from_slice(&blocks.to_le_bytes());
                    // The third format is in use.
                    page[26] = 2;
                    page[136..138].copy_from_slice(&self.metadata.to_le_bytes());
                    page[138] = self.block_log;
                }
                (0..1024).for_each(|i| {
                    self.memory
                        .put(address + i * 4, u32::from_le_bytes(page[i as usize * 4..][..4].try_into().unwrap()));
                });
            }
            9 => assert_eq!((command[10], command[11]), (7, 0)),
            5 => {
                assert_eq!((command[10] & 0xffff, command[11]), (1, 3), "queue 1, contiguous, interrupt entry 0");
                self.completions[1] = queue;
            }
            1 => {
                assert_eq!((command[10] & 0xffff, command[11]), (1, 1 << 16 | 1), "queue 1 to queue 1, contiguous");
                assert_ne!(self.completions[1].entries, 0);
                self.submissions[1] = queue;
            }
            other => panic!("admin command {other:#x}"),
        }
    }

    /// The `pick`th running command takes place.
    pub fn execute(&mut self, pick: usize) {
        let pick = pick % self.running.len();
        let command = self.running.remove(pick);
        let id = command[0] >> 16;
        if self.failing != 0 {
            return self.complete(1, id, self.failing);
        }
        assert_eq!((command[1], command[0] & 0xff00), (1, 0), "namespace 1, PRPs");
        match command[0] & 0xff {
            0 => self.flushes += 1,
            opcode @ (1 | 2) => self.transfer(&command, opcode == 1),
            other => panic!("command {other:#x}"),
        }
        self.complete(1, id, 0);
    }

    fn transfer(&mut self, command: &[u32; 16], write: bool) {
        let first = u64::from(command[10]) | u64::from(command[11]) << 32;
        let length = (u64::from(command[12] & 0xffff) + 1) << self.block_log;
        assert!(self.mdts == 0 || length <= 4096 << self.mdts, "more than MDTS");
        let start = (first << self.block_log) as usize;
        assert!(start + length as usize <= self.disk.len());
        for (i, address) in self.pages(command, length).into_iter().enumerate() {
            let byte = start + i * 4;
            let on_disk: [u8; 4] = self.disk[byte..byte + 4].try_into().unwrap();
            if write {
                let value = self.memory.half(address).to_le_bytes();
                self.disk[byte..byte + 4].copy_from_slice(&value);
            } else {
                self.memory.put(address, u32::from_le_bytes(on_disk));
            }
        }
    }

    /// The address of each four bytes, by the PRP entries (4.3).
    fn pages(&self, command: &[u32; 16], length: u64) -> Vec<u64> {
        let pair = |i: usize| u64::from(command[i]) | u64::from(command[i + 1]) << 32;
        let (prp1, prp2) = (pair(6), pair(8));
        let first = (4096 - prp1 % 4096).min(length);
        let mut parts = vec![(prp1, first)];
        let mut left = length - first;
        if left > 4096 {
            let mut at = prp2;
            while left != 0 {
                assert!(at / 4096 == prp2 / 4096, "the list leaves its page: not chained by this driver");
                let page = u64::from(self.memory.half(at)) | u64::from(self.memory.half(at + 4)) << 32;
                assert!(page.is_multiple_of(4096));
                parts.push((page, left.min(4096)));
                (left, at) = (left - left.min(4096), at + 8);
            }
        } else if left != 0 {
            assert!(prp2.is_multiple_of(4096));
            parts.push((prp2, left));
        }
        parts.into_iter().flat_map(|(address, length)| (address..address + length).step_by(4)).collect()
    }
}

impl Controller for Model {
    fn read(&mut self, register: u64) -> u32 {
        if self.absent {
            return u32::MAX;
        }
        match register {
            0 => self.cap as u32,
            4 => (self.cap >> 32) as u32,
            0x14 => self.cc,
            0x1c => {
                let (enabled, (never_ready, never_stops)) = (self.cc & 1 != 0, self.stuck);
                let stays = if enabled { never_ready } else { never_stops };
                self.countdown = self.countdown.saturating_sub(1);
                if self.ready != enabled && self.countdown == 0 && !stays {
                    self.ready = enabled;
                }
                u32::from(self.ready) | u32::from(self.fatal) << 1
            }
            other => panic!("register {other:#x} read"),
        }
    }
    fn write(&mut self, register: u64, value: u32) {
        match register {
            0x24 => self.aqa = value,
            0x28 => self.asq = self.asq >> 32 << 32 | u64::from(value),
            0x2c => self.asq = self.asq as u32 as u64 | u64::from(value) << 32,
            0x30 => self.acq = self.acq >> 32 << 32 | u64::from(value),
            0x34 => self.acq = self.acq as u32 as u64 | u64::from(value) << 32,
            0x14 => {
                let changes = (self.cc ^ value) & 1 != 0;
                assert!(changes || value & 1 == 0 || self.cc == value, "settings change while it is enabled");
                self.cc = value;
                self.countdown = if changes { self.delay } else { 0 };
                if changes && value & 1 != 0 {
                    assert!(!self.ready && self.asq.is_multiple_of(4096) && self.acq.is_multiple_of(4096));
                    assert_eq!(value >> 4 & 0x7ff, 0, "4 KiB pages, NVM commands, round robin");
                    assert_eq!((value >> 16 & 0xf, value >> 20 & 0xf), (6, 4), "entry sizes");
                    let (submissions, completions) = ((self.aqa & 0xfff) as u16 + 1, (self.aqa >> 16) as u16 + 1);
                    let queue = |base, entries| Queue { base, entries, place: 0, phase: true, doorbell: 0 };
                    self.submissions = [queue(self.asq, submissions), Queue::default()];
                    self.completions = [queue(self.acq, completions), Queue::default()];
                } else if changes {
                    self.running.clear();
                }
            }
            doorbell => {
                let stride = 4 << (self.cap >> 32 & 0xf);
                assert!(doorbell >= 0x1000 && (doorbell - 0x1000).is_multiple_of(stride), "register {doorbell:#x}");
                self.doorbell((doorbell - 0x1000) / stride, value);
            }
        }
    }
    fn memory(&self) -> &Shared {
        &self.memory
    }
    fn pause(&mut self) {
        self.pauses += 1;
    }
}
