//! Interrupts by messages (5.5.2): a device raises what it was authorized for.

use lab::entry::hip;
use lab::hypercall::{assign_int, flag};
use lab::interrupt::semaphore;
use lab::memory::{PAGE, delegate, poke};
use lab::report::{Outcome, Stop};
use lab::semaphore::Semaphore;
use lab::spec::{SUCCESS, TIMEOUT, hip as page, perm};
use lab::{check, equal, root, tests};

use crate::device::{Edu, Fault, assigned, filled, forget_faults, iommu, next_fault};

tests! {
    "message::an authorized device raises its interrupt" => authorized,
    "message::a masked interrupt is not signalled" => masked,
    "message::a message that was made up raises another interrupt without an IOMMU only" => forged,
    "message::another device's interrupt is out of reach" => foreign,
    "message::a message that a device writes by DMA is one like others" => written,
    "message::an interrupt that nobody has is out of reach" => absent,
}

/// The semaphore of the message-signalled interrupt `number`, drained.
fn message(number: u64) -> Result<Semaphore, Stop> {
    let sm = semaphore(hip(page::INT_PIN) + number)?;
    assign_int(sm.0, flag::INT_MASKED, root::cpu(), 0);
    while sm.down_until(1) == SUCCESS {}
    Ok(sm)
}

fn authorized() -> Outcome {
    check!(hip(page::INT_MSI) >= 64, "few messages");
    let edu = Edu::new()?;
    // The last one, too.
    for number in [0, 1, hip(page::INT_MSI) - 1] {
        let sm = message(number)?;
        let (status, address, data) = assign_int(sm.0, 0, root::cpu(), edu.source);
        equal!(status, SUCCESS);
        equal!(address >> 20, 0xfee);
        check!(data < 1 << 16);
        edu.set_message(address, data);
        for _ in 0..10 {
            edu.interrupt();
            sm.wait()?;
        }
        equal!(sm.down_until(1), TIMEOUT);
    }
    check!(next_fault().is_none());
    Ok(())
}

fn masked() -> Outcome {
    let edu = Edu::new()?;
    let sm = message(2)?;
    let (_, address, data) = assign_int(sm.0, 0, root::cpu(), edu.source);
    edu.set_message(address, data);
    assign_int(sm.0, flag::INT_MASKED, root::cpu(), edu.source);
    edu.interrupt();
    lab::time::sleep(2)?;
    equal!(sm.down_until(1), TIMEOUT);
    equal!(assign_int(sm.0, 0, root::cpu(), edu.source), (SUCCESS, address, data));
    edu.interrupt();
    sm.wait()?;
    forget_faults();
    Ok(())
}

/// The reason of the fault that is recorded, by the device, or 0.
fn reason(edu: &Edu) -> u64 {
    let fault = next_fault();
    forget_faults();
    fault.filter(|Fault { source, .. }| *source == edu.source).map_or(0, |fault| fault.reason)
}

fn forged() -> Outcome {
    let edu = Edu::new()?;
    let victim = message(3)?;
    equal!(assign_int(victim.0, 0, root::cpu(), edu.source ^ 8).0, SUCCESS);
    // The plain format (Intel SDM vol. 3A, 11.11). Messages have vectors from 0x98 on.
    let vector = 0x98 + 3;
    edu.set_message(0xfee0_0000, vector);
    forget_faults();
    edu.interrupt();
    lab::time::sleep(2)?;
    let found = victim.down_until(1);
    if iommu() && found == SUCCESS {
        return Err(Stop::Skipped("QEMU lets messages of the plain format through"));
    }
    equal!(found, if iommu() { TIMEOUT } else { SUCCESS });
    // Compatibility format blocked (VT-d specification 7.1.3).
    equal!(reason(&edu), if iommu() { 0x25 } else { 0 });
    Ok(())
}

fn foreign() -> Outcome {
    let edu = Edu::new()?;
    let victim = message(4)?;
    let (_, address, data) = assign_int(victim.0, 0, root::cpu(), edu.source ^ 8);
    edu.set_message(address, data);
    forget_faults();
    edu.interrupt();
    lab::time::sleep(2)?;
    equal!(victim.down_until(1), if iommu() { TIMEOUT } else { SUCCESS });
    // Another source id.
    equal!(reason(&edu), if iommu() { 0x26 } else { 0 });
    Ok(())
}

/// The message is data here, which the device writes to the address of the LAPIC.
fn written() -> Outcome {
    let edu = Edu::new()?;
    let (page, address) = filled(0);
    let victim = message(5)?;
    let (_, target, data) = assign_int(victim.0, 0, root::cpu(), edu.source ^ 8);
    poke(page, data);
    if iommu() {
        let space = assigned(&edu)?;
        delegate(page, space, 0, 0, perm::R)?;
        edu.read(0, PAGE)?;
    } else {
        edu.read(address, PAGE)?;
    }
    // QEMU does not know who writes.
    let told = || {
        let fault = next_fault();
        forget_faults();
        fault.filter(|fault| fault.source == edu.source || fault.source == 0xffff).map_or(0, |fault| fault.reason)
    };
    if iommu() {
        // An entry that nobody has.
        told();
        edu.write_to(0xfee0_0010 | 200 << 5, 4)?;
        equal!(told(), 0x22);
    }
    edu.write_to(target, 4)?;
    lab::time::sleep(2)?;
    let found = victim.down_until(1);
    if iommu() && found == SUCCESS {
        return Err(Stop::Skipped("QEMU does not check the source of a message that is written by DMA"));
    }
    equal!(found, if iommu() { TIMEOUT } else { SUCCESS });
    equal!(told(), if iommu() { 0x26 } else { 0 });
    Ok(())
}

fn absent() -> Outcome {
    if !iommu() {
        return Err(Stop::Skipped("there is no IOMMU"));
    }
    let edu = Edu::new()?;
    // Entries 200 (VT-d specification 5.1.2.2), within the table, and 5000, behind it.
    for (entry, expected) in [(200, 0x22), (5000, 0x21)] {
        edu.set_message(0xfee0_0010 | entry << 5, 0);
        forget_faults();
        edu.interrupt();
        lab::time::sleep(2)?;
        equal!(reason(&edu), expected);
    }
    Ok(())
}
