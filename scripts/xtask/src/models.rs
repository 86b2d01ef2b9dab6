//! `cargo xtask models`: the protocols between CPUs and between threads, as models in Promela that Spin checks
//! exhaustively at small sizes.
//!
//! The head of each model says how to run it, in lines of three kinds: `* run NAME=VALUE...` and `* long NAME=VALUE...`,
//! which must hold, and `* fault N NAME=VALUE...: what is wrong`, with which the model is broken and Spin must see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, workspace};

/// What `models` was asked to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only models whose name contains this
    filter: Option<String>,
    /// The sizes that take minutes, too
    #[arg(long)]
    all: bool,
}

/// Most memory for the states of one run, in MiB.
const MEMORY: u32 = 8000;
/// Most steps of one interleaving.
const DEPTH: u32 = 2_000_000;

/// One run of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    /// 0: the model as it is.
    fault: u32,
    long: bool,
    /// `NAME=VALUE`.
    sizes: Vec<String>,
    /// What a fault is.
    text: String,
}

/// Checks the models.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::for_models()?;
    let filter = arguments.filter.as_deref().unwrap_or_default();
    let mut failed = Vec::new();
    for model in models()?.into_iter().filter(|model| name(model).contains(filter)) {
        for run in runs(&fs::read_to_string(&model)?)?.iter().filter(|run| arguments.all || !run.long) {
            let start = Instant::now();
            let title = title(&model, run);
            match check(&model, run) {
                Ok(states) => println!("{title}: {states} states ({:.1} s)", start.elapsed().as_secs_f32()),
                Err(error) => {
                    println!("{title}: FAILED: {error:#}");
                    failed.push(title);
                }
            }
        }
    }
    ensure!(failed.is_empty(), "these did not come out as they should: {}", failed.join("; "));
    Ok(())
}

fn models() -> Result<Vec<PathBuf>> {
    let folder = workspace::root().join("tests/models");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut models: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    models.retain(|path| path.extension().is_some_and(|extension| extension == "pml"));
    models.sort();
    Ok(models)
}

fn name(model: &Path) -> String {
    model.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn title(model: &Path, run: &Run) -> String {
    let what = if run.fault == 0 { "holds".to_string() } else { format!("fault {} is found", run.fault) };
    format!("{} {} {what}", name(model), run.sizes.join(" "))
}

/// What the head of a model says.
fn runs(text: &str) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for line in text.lines().filter_map(|line| line.trim().strip_prefix("* ")) {
        let (words, text) = line.split_once(": ").unwrap_or((line, ""));
        let mut words = words.split(' ');
        let (fault, long) = match words.next() {
            Some("run") => (0, false),
            Some("long") => (0, true),
            Some("fault") => (words.next().and_then(|n| n.parse().ok()).context("a fault has a number")?, false),
            _ => continue,
        };
        let sizes: Vec<String> = words.map(String::from).collect();
        if sizes.iter().all(|size| size.contains('=')) {
            runs.push(Run { fault, long, sizes, text: text.to_string() });
        }
    }
    Ok(runs)
}

/// Runs Spin; the number of states if the outcome is the right one.
fn check(model: &Path, run: &Run) -> Result<u64> {
    let title = format!("{}-{}-{}", name(model), run.fault, run.sizes.join("-").replace('=', ""));
    // Others may be checking the same in another process.
    let folder = workspace::folder("models")?.join(format!("{title}-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = verify(&folder, model, run);
    // A trail is kept, for `spin -t -p`.
    if result.is_ok() {
        let _ = fs::remove_dir_all(&folder);
    }
    result.with_context(|| format!("Spin's files are in {}", folder.display()))
}

fn verify(folder: &Path, model: &Path, run: &Run) -> Result<u64> {
    let define = |size: &String| format!("-D{size}");
    let mut spin = Command::new("spin");
    spin.arg("-a").arg(format!("-DFAULT={}", run.fault)).args(run.sizes.iter().map(define)).arg(model);
    output(spin.current_dir(folder))?;
    let limit = format!("-DMEMLIM={MEMORY}");
    output(Command::new("cc").current_dir(folder).args([
        "-O0",
        "-w",
        "-DSAFETY",
        "-DCOLLAPSE",
        &limit,
        "-o",
        "pan",
        "pan.c",
    ]))?;
    let report = output(Command::new(folder.join("pan")).current_dir(folder).arg(format!("-m{DEPTH}")))?;
    let errors = number(&report, "errors: ").context("no report")?;
    let states = report.lines().find_map(|line| line.trim().strip_suffix(" states, stored")?.parse().ok());
    let complete = !report.contains("max search depth too small") && !report.contains("out of memory");
    match (run.fault, errors) {
        (0, 0) if complete => states.context("no number of states"),
        (0, 0) => bail!("not all states were searched"),
        (0, _) => bail!("a mistake was found:\n{report}"),
        (_, 0) => bail!("the seeded mistake was not found: {}", run.text),
        _ => states.context("no number of states"),
    }
}

/// The number behind `label`.
fn number(report: &str, label: &str) -> Option<u64> {
    let rest = &report[report.find(label)? + label.len()..];
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{program}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("`{program}` failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this machine has Spin; `cargo xtask setup` installs it.
    fn has_spin() -> bool {
        let there = Command::new("spin").arg("-V").output().is_ok();
        if !there {
            println!("skipped: there is no spin");
        }
        there
    }

    #[test]
    fn the_head_says_how_to_run() {
        let run = |fault, long, sizes: &[&str], text: &str| Run {
            fault,
            long,
            sizes: sizes.iter().map(ToString::to_string).collect(),
            text: text.to_string(),
        };
        let head =
            "/*\n * A model. run by who\n * run A=1 B=2\n * long A=3\n * fault 7 A=1: no lock\n * run of words\n */\n";
        let expected =
            [run(0, false, &["A=1", "B=2"], ""), run(0, true, &["A=3"], ""), run(7, false, &["A=1"], "no lock")];
        assert_eq!(runs(head).expect("good"), expected);
    }

    #[test]
    fn a_mistake_is_told_and_so_is_a_fault_that_is_none() {
        if !has_spin() {
            return;
        }
        let folder = std::env::temp_dir().join(format!("kilonova-models-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("can write");
        let model = folder.join("race.pml");
        let text = "byte n, over;\nactive [SIZE] proctype P() { byte x;\n#if FAULT == 1\nx = n; n = x + 1\n#else\nn++\n#endif\n; over++ }\n\
                    init { (over == SIZE) -> assert(n == SIZE) }\n";
        fs::write(&model, text).expect("can write");
        let run = |fault| Run { fault, long: false, sizes: vec!["SIZE=2".into()], text: "x".into() };
        assert!(verify(&folder, &model, &run(0)).is_ok());
        assert!(verify(&folder, &model, &run(1)).is_ok());
        let error = verify(&folder, &model, &run(2)).expect_err("nothing is wrong").to_string();
        assert!(error.contains("was not found"), "{error}");
        fs::write(&model, text.replace("#if FAULT == 1", "#if FAULT == 0")).expect("can write");
        let error = verify(&folder, &model, &run(0)).expect_err("a race").to_string();
        assert!(error.contains("a mistake was found"), "{error}");
        let _ = fs::remove_dir_all(&folder);
    }

    #[test]
    fn the_protocols_hold_and_every_fault_is_found() {
        if !has_spin() {
            return;
        }
        for model in models().expect("there are models") {
            let runs = runs(&fs::read_to_string(&model).expect("is readable")).expect("good");
            assert!(runs.iter().any(|run| run.fault != 0), "{} has no fault", model.display());
            for run in runs.iter().filter(|run| !run.long) {
                let states = check(&model, run).unwrap_or_else(|error| panic!("{}: {error:#}", title(&model, run)));
                println!("{}: {states} states", title(&model, run));
            }
        }
    }
}
