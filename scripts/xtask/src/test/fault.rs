//! Bad input: each case ends at once, with a line that says what is wrong.

use anyhow::Result;

use super::{Lab, QEMU, Test};
use crate::guest::Recipe;

pub const TESTS: &[Test] = &[
    Test::new("fault::no root task", no_root_task),
    Test::new("fault::a root task that is cut short", cut_root_task),
    Test::new("fault::a root task that is no program", no_program),
    Test::new("fault::no archive", no_archive),
    Test::new("fault::an archive that is cut short", cut_archive),
    Test::new("fault::a guest kernel that is cut short", cut_guest_kernel),
    // Bochs has no CPU with XSAVE and without VT-x.
    Test::new("fault::a CPU without virtualization", no_virtualization).only(QEMU),
    Test::new("fault::too little memory for a virtual machine", little_memory),
    Test::new("fault::too little memory for the kernel", no_memory).only(QEMU),
];

/// A boot loader that was given the kernel alone.
fn no_root_task(lab: &Lab) -> Result<()> {
    lab.boot("none")
        .run()?
        .fatal("kilonova: fatal: the boot loader gave no root image: pass it as the first module (QEMU: -initrd)")
}

/// Bytes of the root task's ELF file, as it stands at the bundle's start.
fn root_task(lab: &Lab) -> Result<usize> {
    Ok(lab.programs.stripped("roottask")?.len())
}

fn cut_root_task(lab: &Lab) -> Result<()> {
    let half = root_task(lab)? / 2;
    lab.boot("micro")
        .alter(&|bundle| bundle[..half].to_vec())
        .run()?
        .fatal("kilonova: fatal: root image: truncated: the file ends inside segment")
}

fn no_program(lab: &Lab) -> Result<()> {
    lab.boot("micro")
        .alter(&|bundle| vec![b'x'; bundle.len()])
        .run()?
        .fatal("kilonova: fatal: root image: not a 64-bit little-endian ELF file")
}

fn no_archive(lab: &Lab) -> Result<()> {
    let length = root_task(lab)?;
    lab.boot("micro")
        .alter(&|bundle| bundle[..length].to_vec())
        .run()?
        .fatal("root: fatal: no archive behind the root image")
}

fn cut_archive(lab: &Lab) -> Result<()> {
    lab.boot("micro")
        .alter(&|bundle| bundle[..bundle.len() - 8192].to_vec())
        .run()?
        .fatal("root: fatal: the archive is truncated: it ends in the entry at offset ")
}

fn cut_guest_kernel(lab: &Lab) -> Result<()> {
    let mut image = Recipe::read("debian-cloud")?.make(lab.programs)?;
    image.truncate(image.len() / 2);
    let outcome = lab.boot("linux").replace("guests/linux/kernel", image).run()?;
    outcome.ended()?;
    outcome.says("truncated").map(|_| ())
}

fn no_virtualization(lab: &Lab) -> Result<()> {
    lab.boot("micro")
        .cpu_model("max,-svm")
        .run()?
        .fatal("root: fatal: this CPU offers neither VMX nor SVM: virtual machines are impossible")
}

fn little_memory(lab: &Lab) -> Result<()> {
    lab.boot("linux").memory(256).run()?.fatal("root: fatal: vm linux: not enough memory: the guest needs 512 MiB")
}

/// So little that not even the boot loader's part of the work is possible: an end, and no silence.
fn no_memory(lab: &Lab) -> Result<()> {
    lab.boot("micro").memory(8).run()?.fatal("kilonova: fatal: ")
}
