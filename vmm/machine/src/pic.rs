//! The two 8259A interrupt controllers.
//!
//! Intel 8259A (231468-003): initialization (ICW1 to ICW4), operation (OCW1 to OCW3), rotation, special mask, poll,
//! special fully nested mode, automatic end of interrupt. Edge/level control: ICH9 datasheet, 13.4.8.

/// Which of the pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chip {
    /// At 0x20, IRQ 0 to 7; its output goes to the processor.
    Master,
    /// At 0xa0, IRQ 8 to 15; its output goes to IRQ 2 of the first.
    Slave,
}

/// The input of the master that the slave drives.
const CASCADE: u8 = 2;

/// What the next write to the odd port means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Debug)]
struct Controller {
    lines: u8,
    requests: u8,
    service: u8,
    mask: u8,
    level: u8,
    vector: u8,
    expect: Expect,
    single: bool,
    needs_icw4: bool,
    auto_end: bool,
    rotate_on_auto_end: bool,
    nested_specially: bool,
    mask_specially: bool,
    read_service: bool,
    poll: bool,
    /// The input with the lowest priority; the next one has the highest.
    lowest: u8,
}

impl Controller {
    const fn new() -> Self {
        Self {
            lines: 0,
            requests: 0,
            service: 0,
            mask: 0xff,
            level: 0,
            vector: 0,
            expect: Expect::Mask,
            single: false,
            needs_icw4: false,
            auto_end: false,
            rotate_on_auto_end: false,
            nested_specially: false,
            mask_specially: false,
            read_service: false,
            poll: false,
            lowest: 7,
        }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << input;
        if self.level & bit != 0 {
            self.requests = if asserted { self.requests | bit } else { self.requests & !bit };
        } else if asserted && self.lines & bit == 0 {
            self.requests |= bit;
        } else if !asserted {
            // A request must stay until it is acknowledged.
            self.requests &= !bit;
        }
        self.lines = if asserted { self.lines | bit } else { self.lines & !bit };
    }

    /// Position in the order of priorities of the first input in `set`; 8 when it is empty.
    fn rank(&self, set: u8) -> u32 {
        set.rotate_right(u32::from(self.lowest) + 1).trailing_zeros()
    }

    fn input_at(&self, rank: u32) -> u8 {
        (rank as u8 + self.lowest + 1) & 7
    }

    /// The input that would be acknowledged.
    fn pending(&self, cascade: Option<u8>) -> Option<u8> {
        let rank = self.rank(self.requests & !self.mask);
        if rank == 8 {
            return None;
        }
        let mut blocking = self.service;
        if self.mask_specially {
            blocking &= !self.mask;
        }
        if self.nested_specially
            && let Some(input) = cascade
        {
            blocking &= !(1 << input);
        }
        (rank < self.rank(blocking)).then(|| self.input_at(rank))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.level & bit == 0 {
            self.requests &= !bit;
        }
        if !self.auto_end {
            self.service |= bit;
        } else if self.rotate_on_auto_end {
            self.lowest = input;
        }
    }

    fn end(&mut self, input: Option<u8>, rotate: bool) {
        let input = match input {
            Some(input) => input,
            None => {
                let candidates = if self.mask_specially { self.service & !self.mask } else { self.service };
                match self.rank(candidates) {
                    8 => return,
                    rank => self.input_at(rank),
                }
            }
        };
        self.service &= !(1 << input);
        if rotate {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1. The lines' levels and the trigger modes are outside.
            *self = Self { lines: self.lines, level: self.level, vector: self.vector, mask: 0, ..Self::new() };
            self.requests = self.lines & self.level;
            self.expect = Expect::Icw2;
            self.single = value & 2 != 0;
            self.needs_icw4 = value & 1 != 0;
        } else if value & 8 != 0 {
            // OCW3.
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_service = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.mask_specially = value & 0x20 != 0;
            }
        } else {
            // OCW2.
            let input = value & 7;
            match value >> 5 {
                0 => self.rotate_on_auto_end = false,
                1 => self.end(None, false),
                3 => self.end(Some(input), false),
                4 => self.rotate_on_auto_end = true,
                5 => self.end(None, true),
                6 => self.lowest = input,
                7 => self.end(Some(input), true),
                _ => {}
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.mask = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.vector = value & 0xf8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Mask,
                }
            }
            // The wiring is what it is.
            Expect::Icw3 if self.needs_icw4 => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                self.auto_end = value & 2 != 0;
                self.nested_specially = value & 0x10 != 0;
                Expect::Mask
            }
        };
    }

    fn read(&mut self, odd: bool) -> u8 {
        if odd {
            self.mask
        } else if self.read_service {
            self.service
        } else {
            self.requests
        }
    }
}

/// The pair.
#[derive(Clone, Debug)]
pub struct Pic {
    master: Controller,
    slave: Controller,
}

impl Default for Pic {
    fn default() -> Self {
        Self { master: Controller::new(), slave: Controller::new() }
    }
}

impl Pic {
    fn controller(&mut self, chip: Chip) -> &mut Controller {
        match chip {
            Chip::Master => &mut self.master,
            Chip::Slave => &mut self.slave,
        }
    }

    fn cascade(&mut self) {
        let asserted = self.slave.pending(None).is_some();
        // The slave drops its output during an acknowledge cycle, so each further request is a new edge.
        self.master.set_line(CASCADE, asserted);
    }

    /// Sets the level of IRQ 0 to 15; IRQ 2 is taken by the slave.
    pub fn set_line(&mut self, irq: u8, asserted: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.master.set_line(irq, asserted),
            8..=15 => {
                self.slave.set_line(irq - 8, asserted);
                self.cascade();
            }
            _ => {}
        }
    }

    /// Whether an IRQ is masked at its controller or at the cascade.
    pub fn is_masked(&self, irq: u8) -> bool {
        match irq {
            0..=7 => self.master.mask & 1 << irq != 0,
            8..=15 => self.slave.mask & 1 << (irq - 8) != 0 || self.master.mask & 1 << CASCADE != 0,
            _ => true,
        }
    }

    /// The INTR output.
    pub fn output(&self) -> bool {
        self.master.pending(Some(CASCADE)).is_some()
    }

    /// The vector that an acknowledge cycle would give now; `None` while the output is low.
    pub fn pending(&self) -> Option<u8> {
        match self.master.pending(Some(CASCADE))? {
            CASCADE => Some(self.slave.vector | self.slave.pending(None).unwrap_or(7)),
            input => Some(self.master.vector | input),
        }
    }

    /// The acknowledge cycle. Without a request it is the spurious interrupt, IRQ 7.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending(Some(CASCADE)) else { return self.master.vector | 7 };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.vector | input;
        }
        let input = self.slave.pending(None);
        if let Some(input) = input {
            self.slave.acknowledge(input);
        }
        self.master.set_line(CASCADE, false);
        self.cascade();
        self.slave.vector | input.unwrap_or(7)
    }

    /// Reads the even (`odd` false) or the odd port of a chip.
    pub fn read(&mut self, chip: Chip, odd: bool) -> u8 {
        let cascade = (chip == Chip::Master).then_some(CASCADE);
        let controller = self.controller(chip);
        if core::mem::take(&mut controller.poll) {
            let pending = controller.pending(cascade);
            if let Some(input) = pending {
                controller.acknowledge(input);
                self.cascade();
            }
            return pending.map_or(0, |input| 0x80 | input);
        }
        controller.read(odd)
    }

    /// Writes the even or the odd port of a chip.
    pub fn write(&mut self, chip: Chip, odd: bool, value: u8) {
        let controller = self.controller(chip);
        if odd {
            controller.write_data(value);
        } else {
            controller.write_command(value);
        }
        self.cascade();
    }

    /// Reads an edge/level control register.
    pub fn trigger(&self, chip: Chip) -> u8 {
        match chip {
            Chip::Master => self.master.level,
            Chip::Slave => self.slave.level,
        }
    }

    /// Writes an edge/level control register; timer, keyboard, cascade, clock and coprocessor are always edges.
    pub fn set_trigger(&mut self, chip: Chip, value: u8) {
        let value = value & if chip == Chip::Master { 0xf8 } else { 0xde };
        self.controller(chip).level = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn initialized() -> Pic {
        let mut pic = Pic::default();
        for (chip, icw) in [(Chip::Master, [0x30, 4, 1]), (Chip::Slave, [0x38, 2, 1])] {
            pic.write(chip, false, 0x11);
            icw.into_iter().for_each(|value| pic.write(chip, true, value));
        }
        pic
    }

    #[test]
    fn linux_finds_it() {
        let mut pic = Pic::default();
        pic.write(Chip::Slave, true, 0xff);
        pic.write(Chip::Master, true, 0xfb);
        assert_eq!(pic.read(Chip::Master, true), 0xfb);
    }

    #[test]
    fn priorities_and_end() {
        let mut pic = initialized();
        pic.set_line(4, true);
        pic.set_line(1, true);
        assert_eq!(pic.pending(), Some(0x31));
        assert_eq!(pic.acknowledge(), 0x31);
        assert!(!pic.output());
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(Chip::Master, false, 0x20);
        pic.write(Chip::Master, false, 0x20);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(Chip::Master, false, 0x64);
        assert!(!pic.output());
        assert_eq!(pic.acknowledge(), 0x37);
    }

    #[test]
    fn cascade() {
        let mut pic = initialized();
        pic.set_line(8, true);
        pic.set_line(12, true);
        assert_eq!(pic.pending(), Some(0x38));
        assert_eq!(pic.acknowledge(), 0x38);
        assert_eq!(pic.pending(), None);
        pic.write(Chip::Slave, false, 0x20);
        pic.write(Chip::Master, false, 0x20);
        assert_eq!(pic.acknowledge(), 0x3c);
        assert!(pic.is_masked(16) && !pic.is_masked(8));
    }

    #[test]
    fn level_triggered_lines_come_back() {
        let mut pic = initialized();
        pic.set_trigger(Chip::Slave, 0xff);
        assert_eq!(pic.trigger(Chip::Slave), 0xde);
        pic.set_line(9, true);
        assert_eq!(pic.acknowledge(), 0x39);
        pic.write(Chip::Slave, false, 0x20);
        pic.write(Chip::Master, false, 0x20);
        assert_eq!(pic.acknowledge(), 0x39);
        pic.set_line(9, false);
        pic.write(Chip::Slave, false, 0x20);
        pic.write(Chip::Master, false, 0x20);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_end_rotation_poll_and_reads() {
        let mut pic = Pic::default();
        pic.write(Chip::Master, false, 0x13);
        pic.write(Chip::Master, true, 0x20);
        pic.write(Chip::Master, true, 0x03);
        pic.set_line(3, true);
        assert_eq!(pic.read(Chip::Master, false), 8);
        assert_eq!(pic.acknowledge(), 0x23);
        pic.write(Chip::Master, false, 0x0b);
        assert_eq!(pic.read(Chip::Master, false), 0);
        // Lowest priority to 3: 4 comes before 0.
        pic.write(Chip::Master, false, 0xc3);
        pic.set_line(0, true);
        pic.set_line(4, true);
        pic.write(Chip::Master, false, 0x0c);
        assert_eq!(pic.read(Chip::Master, false), 0x84);
        assert_eq!(pic.acknowledge(), 0x20);
        pic.write(Chip::Master, false, 0x0c);
        assert_eq!(pic.read(Chip::Master, false), 0);
    }

    #[test]
    fn special_mask_lets_lower_priorities_in() {
        let mut pic = initialized();
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.set_line(5, true);
        assert!(!pic.output());
        pic.write(Chip::Master, true, 0x02);
        pic.write(Chip::Master, false, 0x68);
        assert_eq!(pic.pending(), Some(0x35));
    }

    proptest! {
        #[test]
        fn what_is_pending_is_what_is_acknowledged(ops in prop::collection::vec((0u8..4, any::<u8>(), any::<u8>()), 0..300)) {
            let mut pic = initialized();
            for (op, a, b) in ops {
                let chip = if a & 1 == 0 { Chip::Master } else { Chip::Slave };
                match op {
                    0 => pic.set_line(a & 0x1f, b & 1 != 0),
                    1 => pic.write(chip, a & 2 != 0, b),
                    2 => { pic.read(chip, a & 2 != 0); }
                    _ => pic.set_trigger(chip, b),
                }
                prop_assert_eq!(pic.output(), pic.pending().is_some());
                if let Some(vector) = pic.pending() {
                    prop_assert_eq!(pic.clone().acknowledge(), vector);
                }
            }
        }
    }
}
