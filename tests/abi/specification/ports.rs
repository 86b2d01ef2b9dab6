//! Port capabilities (2.1.5, 4.1.4, 6.1.3.3, 6.2.3.3, 8.2.2).

use lab::console::COM1;
use lab::domain::Domain;
use lab::hypercall::{Delegation, ctrl_pd};
use lab::probe::{self, Fault, Prober};
use lab::report::{Outcome, Stop, must};
use lab::spec::{Selector, event, perm};
use lab::{acpi, check, equal, root, tests};

/// The port of power-on self-tests: whatever is written there, nothing happens.
const POST: u16 = 0x80;
/// The scratch register of COM1.
const SCRATCH: u16 = COM1 + 7;

tests! {
    "ports::at first root has none" => none,
    "ports::a delegated port can be used, others cannot" => delegated,
    "ports::a port that was taken away cannot be used" => taken_away,
    "ports::without permission A a port is not there" => masked,
    "ports::only what the source has is given" => source,
    "ports::ranges" => ranges,
    "ports::a PD's first PIO space is that of its threads" => first_space,
    "ports::spaces of two PDs are apart" => apart,
    "ports::power management is protected" => protected,
}

fn give(src: Selector, dst: Selector, port: u16, order: u64, mask: u64) -> Outcome {
    let port = u64::from(port);
    must(ctrl_pd(&Delegation { src, dst, ssb: port, dsb: port, order, mask, mad: 0 }))
}

const REFUSED: Option<Fault> = Some(Fault { number: event::GP, error: 0, address: 0 });

fn none() -> Outcome {
    for port in [0x20, 0x40, 0x60, 0x64, 0x70, POST, 0xcf8, 0xcf9, COM1 - 1, COM1 + 8, 0x500, 0xffff] {
        let fault = probe::root()?.input(port)?.map(|fault| Fault { address: 0, ..fault });
        check!(fault == REFUSED, "port {port:#x}: {fault:x?}");
    }
    Ok(())
}

fn output(prober: &Prober, port: u16) -> Result<Option<Fault>, Stop> {
    Ok(prober.output(port, 0)?.map(|fault| Fault { address: 0, ..fault }))
}

fn delegated() -> Outcome {
    give(root::NOVA_PIO, root::PIO, POST, 0, perm::A)?;
    equal!(output(probe::root()?, POST)?, None);
    equal!(probe::root()?.input(POST)?, None);
    equal!(output(probe::root()?, POST + 1)?, REFUSED);
    equal!(output(probe::root()?, POST - 1)?, REFUSED);
    give(root::NOVA_PIO, root::PIO, POST, 0, 0)
}

fn taken_away() -> Outcome {
    for _ in 0..2 {
        give(root::NOVA_PIO, root::PIO, POST, 0, perm::A)?;
        equal!(output(probe::root()?, POST)?, None);
        give(root::PIO, root::PIO, POST, 0, 0)?;
        equal!(output(probe::root()?, POST)?, REFUSED);
    }
    Ok(())
}

fn masked() -> Outcome {
    give(root::NOVA_PIO, root::PIO, POST, 0, perm::ALL & !perm::A)?;
    equal!(output(probe::root()?, POST)?, REFUSED);
    Ok(())
}

fn source() -> Outcome {
    let domain = Domain::empty()?;
    // The source has it not: neither has the destination, though the NOVA PIO space has.
    give(root::PIO, domain.pio, POST, 0, perm::A)?;
    give(domain.pio, root::PIO, POST, 0, perm::A)?;
    equal!(output(probe::root()?, POST)?, REFUSED);
    give(root::NOVA_PIO, domain.pio, POST, 0, perm::A)?;
    give(domain.pio, root::PIO, POST, 0, perm::A)?;
    equal!(output(probe::root()?, POST)?, None);
    // A null capability of the source replaces it.
    give(domain.pio, domain.pio, POST, 0, 0)?;
    give(domain.pio, root::PIO, POST, 0, perm::A)?;
    equal!(output(probe::root()?, POST)?, REFUSED);
    Ok(())
}

fn ranges() -> Outcome {
    let domain = Domain::new()?;
    let there = Prober::within(&domain)?;
    give(root::NOVA_PIO, domain.pio, 0x80, 4, perm::A)?;
    for port in 0x7f..=0x90 {
        let expected = if (0x80..0x90).contains(&port) { None } else { REFUSED };
        let found = there.input(port)?.map(|fault| Fault { address: 0, ..fault });
        check!(found == expected, "port {port:#x}: {found:x?}");
    }
    // All ports at once.
    give(root::NOVA_PIO, domain.pio, 0, 16, perm::A)?;
    equal!(there.input(0xfff0)?, None);
    equal!(there.input(SCRATCH)?, None);
    give(root::NOVA_PIO, domain.pio, 0, 16, 0)?;
    check!(there.input(0xfff0)?.is_some() && there.input(0x80)?.is_some());
    Ok(())
}

fn first_space() -> Outcome {
    let domain = Domain::new()?;
    let there = Prober::within(&domain)?;
    let second = lab::capability::space(domain.pd, lab::hypercall::create::PIO)?;
    give(root::NOVA_PIO, second, POST, 0, perm::A)?;
    equal!(output(there, POST)?, REFUSED);
    give(second, domain.pio, POST, 0, perm::A)?;
    equal!(output(there, POST)?, None);
    Ok(())
}

fn apart() -> Outcome {
    let domain = Domain::new()?;
    let there = Prober::within(&domain)?;
    // Root has COM1.
    check!(there.input(SCRATCH)?.is_some());
    give(root::PIO, domain.pio, SCRATCH, 0, perm::A)?;
    equal!(there.output(SCRATCH, 0x5a)?, None);
    equal!(lab::console::input(SCRATCH), 0x5a);
    check!(there.input(SCRATCH - 1)?.is_some());
    give(domain.pio, domain.pio, SCRATCH, 0, 0)?;
    check!(there.input(SCRATCH)?.is_some());
    equal!(lab::console::input(SCRATCH), 0x5a);
    Ok(())
}

/// PM1a_CNT, PM1b_CNT, PM2_CNT, SMI_CMD (ACPI 6.5, 5.2.9).
fn protected() -> Outcome {
    let ports = [(64, 4), (68, 4), (72, 4), (48, 4)].map(|(offset, size)| acpi::fadt(offset, size).unwrap_or(0) as u16);
    check!(ports.iter().any(|port| *port != 0), "the FADT names no port");
    for port in ports.into_iter().filter(|port| *port != 0) {
        give(root::NOVA_PIO, root::PIO, port, 0, perm::A)?;
        let fault = probe::root()?.input(port)?;
        check!(fault.is_some(), "port {port:#x} can be had");
    }
    Ok(())
}
