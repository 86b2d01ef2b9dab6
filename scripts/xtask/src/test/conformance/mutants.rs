//! Seeded faults of the kernel, each of which one conformance test must notice: `tests/abi/mutants.toml`.
//!
//! The kernel knows nothing of them: each is a change of one place in a copy of its source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{EDU_BEHIND_IOMMU, Suite};
use crate::emulator::Emulator;
use crate::programs::{self, Programs};
use crate::{setup, workspace};

/// What `mutants` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only mutants whose name contains this
    name: Option<String>,
    /// Only the few that run with every test run
    #[arg(long)]
    quick: bool,
}

/// The file.
#[derive(Deserialize)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// A fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// Where it is, relative to the kernel's folder.
    file: PathBuf,
    /// What stands there once.
    from: String,
    to: String,
    /// The test that must fail.
    #[serde(default)]
    test: String,
    /// The root task that has it, or [`HOST_SUITE`].
    #[serde(default = "conformance")]
    suite: String,
    /// All tests must pass.
    #[serde(default)]
    survives: bool,
    #[serde(default)]
    quick: bool,
    #[serde(default = "one")]
    cpus: u32,
    #[serde(default)]
    on: Place,
}

fn one() -> u32 {
    1
}

fn conformance() -> String {
    "conformance".into()
}

/// Where a mutant runs.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Place {
    #[default]
    Qemu,
    Bochs,
}

impl Place {
    fn emulator(self) -> Emulator {
        match self {
            Self::Qemu => Emulator::Qemu,
            Self::Bochs => Emulator::Bochs,
        }
    }
}

/// The package whose tests run on the host.
const HOST_SUITE: &str = "iommu";
/// The root task that needs a device for attacks, behind an IOMMU.
const DEVICES: &str = "devices";

/// The kernel's folder.
const KERNEL: &str = "microhypervisor";
/// Packages that make up the kernel.
const MEMBERS: &str = "members = [\"iommu\", \"microhypervisor\", \"microhypervisor/abi\", \"microhypervisor/core\"]\n";

fn all() -> Result<Vec<Mutant>> {
    let path = workspace::root().join("tests/abi/mutants.toml");
    let text = String::from_utf8(workspace::read(&path)?)?;
    let mutants: Mutants = toml::from_str(&text).with_context(|| format!("in {}", workspace::shown(&path)))?;
    Ok(mutants.mutant)
}

/// A copy of the kernel's source, which can be built.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    /// A new one, in the folder `name`.
    fn new(name: &str) -> Result<Self> {
        let folder = workspace::folder(&format!("mutants/{name}"))?;
        let root = workspace::root();
        for part in [KERNEL, "iommu", ".cargo"] {
            copy_folder(&root.join(part), &folder.join(part))?;
        }
        let manifest = String::from_utf8(workspace::read(&root.join("Cargo.toml"))?)?;
        workspace::write(&folder.join("Cargo.toml"), reduced(&manifest)?.as_bytes())?;
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
        Ok(Self { folder })
    }

    /// Builds the kernel with a mutant; where it is.
    fn build(&self, mutant: &Mutant) -> Result<PathBuf> {
        // What a fault leaves unused nobody wants to know.
        let arguments = ["build", "--release", "--target", programs::TARGET, "--package", KERNEL];
        let built = self.cargo(mutant, &arguments)?;
        let messages = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "the kernel with the fault '{}' cannot be built:\n{messages}", mutant.name);
        let kernel = self.folder.join("target").join(programs::TARGET).join("release").join(KERNEL);
        let kept = self.folder.join("kernel");
        fs::copy(&kernel, &kept).with_context(|| format!("cannot copy {}", workspace::shown(&kernel)))?;
        Ok(kept)
    }

    /// Runs a mutant's test on the host; whether it fails.
    fn fails(&self, mutant: &Mutant) -> Result<bool> {
        let built = self.cargo(mutant, &["test", "--package", HOST_SUITE, "--no-run"])?;
        let messages = String::from_utf8_lossy(&built.stderr);
        ensure!(built.status.success(), "the crate with the fault '{}' cannot be built:\n{messages}", mutant.name);
        let run = self.cargo(mutant, &["test", "--package", HOST_SUITE, "--lib", &mutant.test, "--", "--exact"])?;
        let said = String::from_utf8_lossy(&run.stdout);
        ensure!(said.contains("running 1 test\n"), "there is no test {}:\n{said}", mutant.test);
        Ok(!run.status.success())
    }

    /// Runs cargo on the copy with a mutant.
    fn cargo(&self, mutant: &Mutant, arguments: &[&str]) -> Result<Output> {
        let original = workspace::root().join(KERNEL).join(&mutant.file);
        let text = String::from_utf8(workspace::read(&original)?)?;
        let changed = mutant.change(&text)?;
        let file = self.folder.join(KERNEL).join(&mutant.file);
        workspace::write(&file, changed.as_bytes())?;
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(&self.folder).env("CARGO_TARGET_DIR", self.folder.join("target")).env_remove("RUSTFLAGS");
        let output = cargo.args(["--quiet", "--offline"]).args(arguments).output().context("cannot start cargo");
        workspace::write(&file, text.as_bytes())?;
        output
    }
}

/// The workspace's manifest with the kernel's packages only.
fn reduced(manifest: &str) -> Result<String> {
    let start = manifest.find("members = [").context("Cargo.toml has no members")?;
    let end = manifest.find("\n[workspace.package]").context("Cargo.toml has no [workspace.package]")?;
    let (head, rest) = (manifest.get(..start).unwrap_or_default(), manifest.get(end..).unwrap_or_default());
    Ok(format!("{head}{MEMBERS}{rest}"))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", workspace::shown(to)))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", workspace::shown(from)))? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy)?;
        } else if fs::read(&path).ok() != fs::read(&copy).ok() {
            fs::copy(&path, &copy).with_context(|| format!("cannot copy {}", workspace::shown(&path)))?;
        }
    }
    Ok(())
}

impl Mutant {
    fn change(&self, text: &str) -> Result<String> {
        let count = text.matches(&self.from).count();
        ensure!(count == 1, "mutant '{}': its place stands {count} times in {}", self.name, self.file.display());
        Ok(text.replace(&self.from, &self.to))
    }

    /// Whether the conformance root task does with it what it should.
    fn judge(&self, copy: &Copy, programs: &Programs, name: &str) -> Result<()> {
        if self.suite == HOST_SUITE {
            ensure!(copy.fails(self)?, "`{}` does not notice that {}", self.test, self.name);
            return Ok(());
        }
        let kernel = copy.build(self)?;
        let devices: &[&str] = if self.suite == DEVICES { &EDU_BEHIND_IOMMU } else { &[] };
        let suite = Suite { cpus: self.cpus, only: &self.test, patience: PATIENCE, devices, ..Suite::new(&self.suite) };
        let (report, ending) = suite.run(programs, &kernel, self.on.emulator(), name)?;
        let failures = report.failures();
        if self.survives {
            ensure!(failures.is_empty(), "without extensions these fail: {failures:?} ({ending:?})");
        } else if !failures.iter().any(|(name, _)| *name == self.test) {
            bail!("`{}` does not notice that {} ({ending:?}; {failures:?})", self.test, self.name);
        }
        Ok(())
    }
}

/// A mutant may well hang.
const PATIENCE: Duration = Duration::from_secs(150);

/// `cargo xtask mutants`: all that match, one line for each.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::for_machine(Emulator::Qemu)?;
    setup::for_machine(Emulator::Bochs)?;
    let programs = Programs::build(["conformance"])?;
    let filter = arguments.name.as_deref().unwrap_or_default();
    let wanted = |mutant: &Mutant| mutant.name.contains(filter) && (mutant.quick || !arguments.quick);
    let failed = judge_all(&programs, "source", wanted)?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Judges the mutants that are wanted; the number of those that nobody noticed.
fn judge_all(programs: &Programs, folder: &str, wanted: impl Fn(&Mutant) -> bool) -> Result<usize> {
    let copy = Copy::new(folder)?;
    let (mut noticed, mut failed) = (0, 0);
    for mutant in all()?.iter().filter(|mutant| wanted(mutant)) {
        let start = Instant::now();
        match mutant.judge(&copy, programs, &format!("mutant-{folder}")) {
            Ok(()) => {
                noticed += 1;
                let time = start.elapsed().as_secs_f32();
                println!("mutant '{}': {} ({time:.0} s)", mutant.name, mutant.verdict());
            }
            Err(error) => {
                failed += 1;
                println!("mutant '{}': FAILED: {error:#}", mutant.name);
            }
        }
    }
    println!("{noticed} mutants as they should be, {failed} not");
    ensure!(noticed + failed > 0, "no mutant has such a name");
    Ok(failed)
}

impl Mutant {
    fn verdict(&self) -> String {
        if self.survives { "all tests pass".into() } else { format!("noticed by `{}`", self.test) }
    }
}

/// A few mutants, or all of them but these.
pub fn test(programs: &Programs, quick: bool) -> Result<()> {
    let folder = if quick { "quick" } else { "all" };
    let failed = judge_all(programs, folder, |mutant| mutant.quick == quick)?;
    ensure!(failed == 0, "{failed} mutants were not noticed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_has_its_place_and_a_name_of_its_own() {
        let mutants = all().unwrap();
        let mut names: Vec<&str> = mutants.iter().map(|mutant| mutant.name.as_str()).collect();
        for mutant in &mutants {
            let text = fs::read_to_string(workspace::root().join(KERNEL).join(&mutant.file)).unwrap();
            mutant.change(&text).unwrap();
            assert_eq!(mutant.survives, mutant.test.is_empty(), "{}", mutant.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), mutants.len());
        assert!(mutants.iter().filter(|mutant| !mutant.survives).count() >= 30);
        assert!(mutants.iter().any(|mutant| mutant.quick));
    }

    #[test]
    fn the_manifest_keeps_everything_but_members() {
        let manifest = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        let reduced = reduced(&manifest).unwrap();
        assert!(
            reduced.contains(MEMBERS) && !reduced.contains("scripts/xtask") && reduced.contains("[profile.release]")
        );
    }
}
