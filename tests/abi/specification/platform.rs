//! ctrl_hw and assign_dev (5.5.1, 5.5.3). That sleep state S5 and a reset end the machine, whoever boots it sees.

use core::sync::atomic::Ordering::Relaxed;

use lab::domain::Domain;
use lab::hypercall::{assign_dev, ctrl_hw};
use lab::report::{Outcome, Stop};
use lab::spec::{BAD_CAP, BAD_DEV, BAD_FTR, BAD_HYP, BAD_PAR, Status, feature};
use lab::{acpi, check, entry, equal, number, selector, tests};

tests! {
    "ctrl_hw::only the root protection domain may" => root_only,
    "ctrl_hw::operations that do not exist" => operations,
    "ctrl_hw::sleep states that do not exist" => states,
    "ctrl_hw::sleep states that the platform has not" => absent_states,
    "ctrl_hw::cache allocation needs support" => cache_allocation,
    "assign_dev::only the root protection domain may" => assign_root_only,
    "assign_dev::there must be an IOMMU" => no_iommu,
}

/// What `call` gives in another protection domain.
fn elsewhere(call: impl Fn() -> Status + 'static) -> Result<Status, Stop> {
    let status = number(u64::MAX);
    let thread = Domain::new()?.spawn(20, move |_| status.store(u64::from(call().0), Relaxed))?;
    thread.done.wait()?;
    Ok(Status(status.load(Relaxed) as u8))
}

fn root_only() -> Outcome {
    for operation in 0..16 {
        // A platform reset, where the operation is 0.
        equal!(elsewhere(move || ctrl_hw(operation, 7))?, BAD_HYP);
    }
    Ok(())
}

fn operations() -> Outcome {
    for operation in [1, 2, 3].into_iter().chain(8..16) {
        equal!(ctrl_hw(operation, 7), BAD_PAR);
    }
    Ok(())
}

fn states() -> Outcome {
    for state in [0, 6] {
        let status = ctrl_hw(0, state);
        check!(status == BAD_PAR || status == BAD_FTR, "state {state}: {status:?}");
    }
    Ok(())
}

fn absent_states() -> Outcome {
    for state in 1..5 {
        if acpi::sleep_values(state).is_none() {
            equal!(ctrl_hw(0, u64::from(state)), BAD_FTR);
        }
    }
    Ok(())
}

fn cache_allocation() -> Outcome {
    if core::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 15 != 0 {
        return Err(Stop::Skipped("classes of service are supported"));
    }
    for operation in 4..8 {
        for descriptor in [0, 1, 0x10000] {
            equal!(ctrl_hw(operation, descriptor), BAD_FTR);
        }
    }
    Ok(())
}

fn assign_root_only() -> Outcome {
    equal!(elsewhere(|| assign_dev(selector(), 0xfed9_0000 >> 12, 0))?, BAD_HYP);
    Ok(())
}

fn no_iommu() -> Outcome {
    if entry::hip(lab::spec::hip::PLATFORM_FEATURES) & feature::IOMMU != 0 {
        return Err(Stop::Skipped("there is an IOMMU"));
    }
    // There can be no DMA space either; which of the two is found first is open.
    let status = assign_dev(selector(), 0xfed9_0000 >> 12, 0);
    check!(status == BAD_DEV || status == BAD_CAP, "{status:?}");
    Ok(())
}
