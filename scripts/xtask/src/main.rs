//! The front door: `cargo xtask VERB` from anywhere in the repository.
//!
//! Each verb makes what it needs first, says what it does on standard error, and ends non-zero with one line that names
//! the cause and the next step when it cannot go on. Standard output carries only what was asked for.

mod bench;
mod bundle;
mod check;
mod cpio;
mod devices;
mod emulator;
mod exec;
mod guest;
mod image;
mod models;
mod observe;
mod package;
mod programs;
mod run;
mod session;
mod setup;
mod source;
mod system;
mod terminal;
mod test;
mod tree;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run and test Kilonova.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, about)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install whatever is missing on this machine
    Setup,
    /// Build a system and boot it
    Run(run::Arguments),
    /// List the devices of a system's machine, who has them, and why one cannot be passed through
    Devices(devices::Arguments),
    /// Measure what things cost, beside what they cost elsewhere
    Bench(bench::Arguments),
    /// Check formatting, lints, documentation, dependencies and sizes
    Check,
    /// Run the host's tests, then systems in emulators
    Test(test::Arguments),
    /// Check the models of the kernel's protocols with Spin, exhaustively at small sizes
    Models(models::Arguments),
    /// Compare a kernel with the specification of its interface, and show the report
    Conformance(test::Conformance),
    /// Let a hostile program make random hypercalls
    Fuzz(test::Fuzz),
    /// Break the kernel in one place after the other, and see a conformance test fail each time
    Mutants(test::Mutants),
    /// Make boot media of a system
    Image {
        /// System file, or the name of one in tests/systems
        #[arg(default_value = "linux")]
        system: String,
        /// Where the ISO goes: GRUB starts the system by multiboot2
        #[arg(long, value_name = "FILE")]
        iso: PathBuf,
        /// Another kernel with the same interface
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = terminal::restore_on_signals().and_then(|()| match Arguments::parse().verb {
        Verb::Setup => setup::everything().map(|()| ExitCode::SUCCESS),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Devices(arguments) => devices::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Check => check::run().map(|()| ExitCode::SUCCESS),
        Verb::Models(arguments) => models::run(&arguments).map(|()| ExitCode::SUCCESS),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Conformance(arguments) => test::conformance(&arguments),
        Verb::Fuzz(arguments) => test::fuzz(&arguments),
        Verb::Mutants(arguments) => test::mutants(&arguments),
        Verb::Image { system, iso, kernel } => {
            image::make(&system, &iso, kernel.as_deref()).map(|()| ExitCode::SUCCESS)
        }
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
