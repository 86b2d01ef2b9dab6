//! The counts that have been reviewed, and the gate: none may get worse by more than the tolerance.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::count::Counts;
use crate::workspace;

/// Where they are.
const FILE: &str = "tests/bench/recorded.toml";
/// How much worse a count may get, as a part of the recorded one.
const TOLERANCE: f64 = 0.02;

const HEAD: &str = "\
# What the kernel's operations cost, by figure: instructions, lines and pages, and events.
# `cargo xtask test` fails where a count gets worse by more than 2 %. After a change that is meant and explained,
# `cargo xtask bench --record` writes this file; the difference is reviewed with the change.
";

type Recorded = BTreeMap<String, BTreeMap<String, u64>>;

/// Every count of a figure, by name.
fn numbers(counts: &Counts) -> Result<BTreeMap<String, u64>> {
    serde_json::from_value(serde_json::to_value(counts)?).context("a count is no number")
}

fn read() -> Result<Recorded> {
    let text = String::from_utf8(workspace::read(&workspace::root().join(FILE))?)?;
    toml::from_str(&text).with_context(|| format!("{FILE} cannot be understood"))
}

/// Writes these figures into the file; others stay as they are.
pub fn record<'a>(figures: impl Iterator<Item = (&'static str, &'a Counts)>) -> Result<()> {
    let mut recorded = read().unwrap_or_default();
    for (name, counts) in figures {
        recorded.insert(name.into(), numbers(counts)?);
    }
    let mut text = String::from(HEAD);
    for (name, counts) in recorded {
        let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} = {count}")).collect();
        writeln!(text, "\"{name}\" = {{ {} }}", counts.join(", "))?;
    }
    workspace::write(&workspace::root().join(FILE), text.as_bytes())
}

/// What got worse than it is recorded.
pub fn worse<'a>(figures: impl Iterator<Item = (&'static str, &'a Counts)>) -> Result<Vec<String>> {
    let recorded = read()?;
    let mut complaints = Vec::new();
    for (name, counts) in figures {
        match recorded.get(name) {
            Some(old) => complaints.extend(compare(name, old, &numbers(counts)?)),
            None => complaints.push(format!("{name} is not in {FILE}")),
        }
    }
    Ok(complaints)
}

fn compare(name: &str, old: &BTreeMap<String, u64>, new: &BTreeMap<String, u64>) -> Vec<String> {
    let got_worse = |(count, new): (&String, &u64)| {
        let old = old.get(count).copied().unwrap_or_default();
        (*new as f64 > old as f64 * (1.0 + TOLERANCE)).then(|| format!("{name}: {count} was {old}, is {new}"))
    };
    new.iter().filter_map(got_worse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_percent_are_tolerated_and_new_events_are_not() {
        let counts = |kernel, cr3| [("kernel".into(), kernel), ("cr3".into(), cr3)].into();
        assert!(compare("x", &counts(100, 2), &counts(102, 2)).is_empty());
        assert_eq!(compare("x", &counts(100, 2), &counts(103, 2)), ["x: kernel was 100, is 103"]);
        assert_eq!(compare("x", &counts(100, 0), &counts(90, 1)), ["x: cr3 was 0, is 1"]);
    }

    #[test]
    fn the_file_is_understood() {
        read().expect("is understood");
    }
}
