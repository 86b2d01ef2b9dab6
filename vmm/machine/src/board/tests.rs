extern crate std;

use super::*;
use crate::lapic::timer::CrystalClock;
use crate::lapic::{GeneralProtection, Lapic, Outcome};
use crate::{exec_port, pm};
use core::ops::{Deref, DerefMut};
use proptest::prelude::*;

const HZ: u64 = 1_000_000_000;

/// A board with one LAPIC, joined as a vCPU joins them.
#[derive(Clone)]
struct Bench {
    board: Board,
    lapic: Lapic,
    backplane: Arc<Backplane>,
}

impl Deref for Bench {
    type Target = Board;
    fn deref(&self) -> &Board {
        &self.board
    }
}

impl DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Board {
        &mut self.board
    }
}

impl Bench {
    fn collect(&mut self) {
        let _ = self.board.take_wakes();
        if let Some(mail) = self.backplane.collect(0) {
            self.lapic.take(&mail);
        }
    }

    fn publish(&mut self) {
        self.backplane.publish(0, self.lapic.route());
        self.backplane.want_external(self.lapic.passes_external());
        self.collect();
    }

    fn carry_out(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done => {}
            Outcome::EndOfInterrupt(vector) => self.board.end_of_interrupt(vector),
            Outcome::Send(message) => {
                let _ = self.backplane.send(&message, Some(0));
            }
        }
        self.publish();
    }

    fn read_msr(&mut self, index: u32, now: u64) -> Result<u64, GeneralProtection> {
        self.collect();
        self.lapic.rdmsr(index, now)
    }

    fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<(), GeneralProtection> {
        self.collect();
        self.lapic.wrmsr(index, value, now).map(|outcome| self.carry_out(outcome))
    }

    fn mmio_read(&mut self, gpa: u64, width: Width, now: u64) -> u64 {
        self.collect();
        match self.lapic.offset_of(gpa) {
            Some(offset) => self.lapic.read_memory(offset, width, now),
            None => self.board.mmio_read(gpa, width),
        }
    }

    fn mmio_write(&mut self, gpa: u64, width: Width, value: u64, now: u64) {
        self.collect();
        match self.lapic.offset_of(gpa) {
            Some(offset) => {
                let outcome = self.lapic.write_memory(offset, width, value, now);
                self.carry_out(outcome);
            }
            None => self.board.mmio_write(gpa, width, value, now),
        }
    }

    fn advance(&mut self, now: u64) {
        self.lapic.advance(now);
        self.board.advance(now);
        self.collect();
    }

    fn next_deadline(&self, now: u64) -> Option<u64> {
        self.lapic.next_deadline().into_iter().chain(self.board.next_deadline(now)).min()
    }

    fn pending_interrupt(&mut self) -> Option<u8> {
        self.collect();
        self.board.pending_external().or_else(|| self.lapic.pending())
    }

    fn acknowledge(&mut self) -> Option<u8> {
        self.collect();
        self.board.acknowledge_external().or_else(|| self.lapic.acknowledge())
    }

    fn reset(&mut self, now: u64) {
        self.board.reset(now);
        self.backplane.reset();
        self.lapic.reset();
        self.lapic.set_virtual_wire();
        self.publish();
    }
}

fn board() -> Bench {
    let config = Config {
        stc_frequency: HZ,
        wall_clock: WallClock { unix_ns: 1_767_225_600 * HZ, stc: 0 },
        memory_below_4g: 512 << 20,
        memory_above_4g: 0,
        exec_channel: true,
    };
    let backplane = Arc::new(Backplane::new(1));
    let board = Board::new(&config, backplane.clone(), Arc::default(), 0);
    let mut bench = Bench { board, lapic: Lapic::new(0, true, CrystalClock::new(HZ)), backplane };
    bench.lapic.set_virtual_wire();
    bench.publish();
    bench
}

fn out(board: &mut Bench, port: u16, value: u8) {
    let _ = board.io_write(port, Width::Byte, value.into(), 0);
}

fn outs(board: &mut Bench, writes: &[(u16, u8)]) {
    writes.iter().for_each(|&(port, value)| out(board, port, value));
}

fn input(board: &mut Bench, port: u16) -> u8 {
    board.io_read(port, Width::Byte, 0) as u8
}

fn pin(board: &mut Bench, pin: u8, low: u32) {
    for (select, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
        board.mmio_write(ioapic::BASE, Width::Dword, select.into(), 0);
        board.mmio_write(ioapic::BASE + 0x10, Width::Dword, value.into(), 0);
    }
}

/// xAPIC to x2APIC, as Linux under a hypervisor does; LINT0 masked.
fn enable_x2apic(board: &mut Bench) {
    let base = board.read_msr(0x1b, 0).unwrap();
    for (msr, value) in [(0x1b, base | 1 << 10), (0x80f, 0x1ff), (0x835, 0x1_0700)] {
        assert_eq!(board.write_msr(msr, value, 0), Ok(()));
    }
}

fn end(board: &mut Bench) {
    assert_eq!(board.write_msr(0x80b, 0, 0), Ok(()));
}

#[test]
fn tsc_deadline() {
    let mut board = board();
    enable_x2apic(&mut board);
    assert_eq!(board.write_msr(0x832, 0x4_00ec, 0), Ok(()));
    assert_eq!(board.write_msr(0x6e0, 1_000_000, 0), Ok(()));
    assert_eq!(board.next_deadline(0), Some(1_000_000));
    board.advance(999_999);
    assert_eq!(board.pending_interrupt(), None);
    board.advance(1_000_000);
    assert_eq!((board.pending_interrupt(), board.acknowledge()), (Some(0xec), Some(0xec)));
    assert_eq!((board.next_deadline(1_000_000), board.read_msr(0x6e0, 1_000_000)), (None, Ok(0)));
    end(&mut board);
}

/// A timer that asks for an interrupt every microsecond or two gets as many as the guest can bear, and none at all
/// while nothing listens.
#[test]
fn no_periodic_timer_floods_the_guest() {
    let mut board = board();
    outs(&mut board, &[(0x43, 0x34), (0x40, 2), (0x40, 0)]);
    let mut write = |offset: u64, value: u64| {
        board.mmio_write(0xfee0_0000 + offset, Width::Dword, value, 0);
    };
    [(0x3e0, 0xb), (0x320, 0x3_00ec), (0x380, 1000)].into_iter().for_each(|(offset, value)| write(offset, value));
    outs(&mut board, &[(0x21, 0xff)]);
    assert_eq!(board.next_deadline(0), None, "all masked");
    outs(&mut board, &[(0x21, 0xfe)]);
    assert!(board.next_deadline(0).is_some());
    board.mmio_write(0xfee0_0350, Width::Dword, 0x1_0700, 0);
    assert_eq!(board.next_deadline(0), None, "nothing passes the 8259A's requests on");
    pin(&mut board, 2, 0x30);
    board.mmio_write(0xfee0_0320, Width::Dword, 0x2_00ec, 0);
    let (mut now, mut wakes) = (0, 0);
    while now < HZ / 10 {
        now = board.next_deadline(now).unwrap();
        board.advance(now);
        wakes += 1;
    }
    assert!((800..=1002).contains(&wakes), "{wakes} in a tenth of a second, from two timers");
}

#[test]
fn serial_interrupts_through_the_ioapic() {
    let mut board = board();
    enable_x2apic(&mut board);
    pin(&mut board, 4, 0x24);
    out(&mut board, 0x3fc, 8);
    out(&mut board, 0x3f9, 1);
    assert_eq!(board.serial_input(b"ls"), 2);
    assert_eq!(board.acknowledge(), Some(0x24));
    assert_eq!((input(&mut board, 0x3f8), input(&mut board, 0x3f8)), (b'l', b's'));
    end(&mut board);
    assert_eq!(board.pending_interrupt(), None);
    assert_eq!(board.io_write(0x3f8, Width::Byte, b'$'.into(), 0), Effect::SerialOutput);
    let mut bytes = [0; 4];
    assert_eq!((board.serial_output_len(), board.drain_serial(&mut bytes), bytes[0]), (1, 1, b'$'));
    board.serial_break();
    assert_eq!(board.acknowledge(), Some(0x24));
}

#[test]
fn the_sci_is_a_level() {
    let mut board = board();
    enable_x2apic(&mut board);
    pin(&mut board, 9, 0x8029);
    assert_eq!(board.io_write(0x602, Width::Word, 0x100, 0), Effect::None);
    board.press_power_button();
    assert_eq!(board.acknowledge(), Some(0x29));
    end(&mut board);
    assert_eq!(board.acknowledge(), Some(0x29));
    assert_eq!(board.io_write(0x600, Width::Word, 0x100, 0), Effect::None);
    end(&mut board);
    assert_eq!(board.pending_interrupt(), None);
}

#[test]
fn the_timer_ticks_at_pin_two() {
    let mut board = board();
    enable_x2apic(&mut board);
    outs(&mut board, &[(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)]);
    // Masked everywhere: nobody needs to wake for it, and no tick is made up for later.
    assert_eq!(board.next_deadline(0), None);
    let late = 10 * HZ;
    for (offset, value) in [(0, 0x14), (0x10, 0x30)] {
        board.mmio_write(ioapic::BASE + offset, Width::Dword, value, late);
    }
    assert_eq!(board.pending_interrupt(), None);
    let mut now = late;
    for _ in 0..100 {
        let due = board.next_deadline(now).unwrap();
        assert!(due > now && due - now <= 10_001_000);
        now = due;
        board.advance(now);
        assert_eq!((board.acknowledge(), board.acknowledge()), (Some(0x30), None));
        end(&mut board);
    }
    assert!((now - late).abs_diff(HZ) < 11_000_000);
}

#[test]
fn the_timer_ticks_through_the_8259_in_virtual_wire_mode() {
    let mut board = board();
    let icw = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)];
    outs(&mut board, &icw);
    outs(&mut board, &[(0x43, 0x34), (0x40, 0), (0x40, 0x10)]);
    // Programming the channel raised its output: the first edge.
    assert_eq!(board.acknowledge(), Some(0x20));
    out(&mut board, 0x20, 0x20);
    let due = board.next_deadline(0).unwrap();
    assert_eq!(due, Clock::new(HZ).ticks(0x1000, crate::pit::HERTZ));
    board.advance(due);
    assert_eq!((board.pending_interrupt(), board.acknowledge()), (Some(0x20), Some(0x20)));
    out(&mut board, 0x20, 0x20);
    // LINT0 masked: nothing arrives any more, except through pin 0 as ExtINT.
    enable_x2apic(&mut board);
    board.advance(2 * due);
    assert_eq!(board.pending_interrupt(), None);
    pin(&mut board, 0, 0x700);
    assert_eq!(board.pending_interrupt(), Some(0x20));
}

#[test]
fn self_ipis_and_nmis() {
    let mut board = board();
    enable_x2apic(&mut board);
    assert_eq!(board.write_msr(0x83f, 0xf6, 0), Ok(()));
    assert_eq!(board.acknowledge(), Some(0xf6));
    end(&mut board);
    assert_eq!(board.write_msr(0x830, 0x4_00fb, 0), Ok(()));
    assert_eq!(board.acknowledge(), Some(0xfb));
    end(&mut board);
    assert_eq!(board.write_msr(0x830, 0x4_0400, 0), Ok(()));
    assert!(board.lapic.signals().nmi && board.lapic.take_nmi() && !board.lapic.take_nmi());
    assert_eq!(board.write_msr(0x830, 5 << 32 | 0xfb, 0), Ok(()));
    assert_eq!((board.pending_interrupt(), board.backplane.undelivered()), (None, 1));
}

#[test]
fn ways_out() {
    let mut board = board();
    assert_eq!(board.io_write(pm::PM1A_CONTROL, Width::Word, 5 << 10 | 1 << 13, 0), Effect::PowerOff);
    assert_eq!(board.io_write(pm::RESET_PORT, Width::Byte, pm::RESET_VALUE.into(), 0), Effect::Reset);
    assert_eq!(board.io_write(0x64, Width::Byte, 0xfe, 0), Effect::Reset);
    assert_eq!(board.io_write(0x92, Width::Byte, 1, 0), Effect::Reset);
    assert_eq!(board.io_write(0x402, Width::Byte, 1, 0), Effect::DebugOutput);
    assert_eq!(board.io_write(exec_port::MARK_PORT, Width::Dword, 3, 0), Effect::Mark(3));
    assert_eq!(board.io_read(exec_port::MAGIC_PORT, Width::Dword, 0), exec_port::MAGIC);
    assert_eq!(board.io_write(exec_port::PORT, Width::Word, 0x6261, 0), Effect::ExecOutput);
    assert_eq!(board.exec_output(b"c"), 1);
    let mut bytes = [0; 4];
    assert_eq!((board.drain_exec(&mut bytes), &bytes[..3]), (3, &b"abc"[..]));
    board.reset(5);
    assert_eq!(board.io_write(pm::RESET_PORT, Width::Byte, pm::RESET_VALUE.into(), 0), Effect::Reset);
}

#[test]
fn wide_accesses_are_cut_into_bytes() {
    let mut board = board();
    // Index and data of the clock in one word: seconds, then what they are.
    assert_eq!(board.io_write(0x70, Width::Word, 0x5a40, 0), Effect::None);
    assert_eq!(board.io_read(0x70, Width::Word, 0), 0x5a40);
    assert_eq!(board.io_read(0x3c0, Width::Dword, 0), u32::MAX);
    assert_eq!(board.io_read(0xfffe, Width::Dword, 0), u32::MAX);
    assert_eq!(board.unclaimed_ports().reads, 2);
    assert_eq!((board.mmio_read(0xd000_0000, Width::Word, 0), board.unclaimed_memory().reads), (0xffff, 1));
}

#[test]
fn reset_keeps_output_and_forgets_interrupts() {
    let mut board = board();
    enable_x2apic(&mut board);
    out(&mut board, 0x3f8, b'x');
    assert_eq!(board.write_msr(0x83f, 0xf6, 0), Ok(()));
    board.reset(100);
    assert_eq!((board.pending_interrupt(), board.serial_output_len()), (None, 1));
    assert_eq!(board.read_msr(0x1b, 100), Ok(0xfee0_0900));
    assert_eq!(board.next_deadline(100), None);
}

proptest! {
    /// A guest may do anything: the board neither panics nor contradicts itself, and time always goes on.
    #[test]
    fn hostile_guest(ops in prop::collection::vec((0u8..9, any::<u16>(), any::<u64>()), 0..400)) {
        const PORTS: [u16; 30] = [
            0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc,
            0x3fd, 0x4d0, 0x4d1, 0x600, 0x602, 0x604, 0x608, 0xcf8, 0xcfc, 0xe90, 0x1f, 0xffff,
        ];
        let mut board = board();
        let mut now = 0;
        for (op, where_to, value) in ops {
            let port = PORTS[usize::from(where_to >> 3) % PORTS.len()];
            let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword][usize::from(where_to & 3)];
            let msr = [0x1b, 0x6e0, 0x800 + u32::from(where_to & 0x3f)][usize::from(where_to >> 6) % 3];
            let gpa = if where_to & 4 == 0 { 0xfee0_0000 + u64::from(where_to & 0x3f8) } else { ioapic::BASE + (value & 0x50) };
            match op {
                0 => { let _ = board.io_write(port, width, value as u32, now); }
                1 => { board.io_read(port, width, now); }
                2 => { board.mmio_write(gpa, width, value >> 8, now); }
                3 => { board.mmio_read(gpa, width, now); }
                4 => { let _ = board.write_msr(msr, value & 0xffff_ffff, now); }
                5 => { let _ = board.read_msr(msr, now); }
                6 => { board.serial_input(&value.to_le_bytes()); }
                7 => { board.acknowledge(); }
                _ => now += value >> 32,
            }
            board.advance(now);
            if let Some(due) = board.next_deadline(now) {
                prop_assert!(due > now, "service never ends: {due} at {now}");
                if where_to & 0x8000 != 0 {
                    now = due;
                    board.advance(now);
                }
            }
            prop_assert_eq!(board.pending_interrupt(), board.clone().acknowledge());
            board.drain_serial(&mut [0; 64]);
        }
    }
}
