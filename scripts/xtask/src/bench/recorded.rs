//! The counts that have been reviewed, and the gate: none may get worse by more than the tolerance.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::count::Counts;
use super::figures::FIGURES;
use crate::workspace;

/// Where they are.
const FILE: &str = "tests/bench/recorded.toml";
/// Where people read them.
const DOCUMENT: &str = "docs/performance.md";
const TABLE_BEGIN: &str = "<!-- recorded -->";
const TABLE_END: &str = "<!-- end of recorded -->";
/// Counts that are no events.
const NOT_EVENTS: [&str; 3] = ["kernel", "user", "guest"];
/// How much worse a count may get, as a part of the recorded one.
const TOLERANCE: f64 = 0.02;

const HEAD: &str = "\
# What the kernel's operations cost, by figure: instructions, lines and pages, and events.
# `cargo xtask test` fails where instructions or events get worse by more than 2 %. After a change that is meant and explained,
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
    for (name, counts) in &recorded {
        let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} = {count}")).collect();
        writeln!(text, "\"{name}\" = {{ {} }}", counts.join(", "))?;
    }
    workspace::write(&workspace::root().join(FILE), text.as_bytes())?;
    let document = workspace::root().join(DOCUMENT);
    let old = String::from_utf8(workspace::read(&document)?)?;
    workspace::write(&document, with_table(&old, &recorded)?.as_bytes())
}

/// The document with the table of what is recorded.
fn with_table(document: &str, recorded: &Recorded) -> Result<String> {
    let (before, rest) = document.split_once(TABLE_BEGIN).with_context(|| format!("{DOCUMENT} has no table"))?;
    let (_, after) = rest.split_once(TABLE_END).with_context(|| format!("the table of {DOCUMENT} has no end"))?;
    Ok(format!("{before}{TABLE_BEGIN}{}{TABLE_END}{after}", table(recorded)?))
}

fn table(recorded: &Recorded) -> Result<String> {
    let mut text = String::from(
        "\n| figure | kernel | at most | user | guest | lines, code + data | events |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    // In the order of the printed table.
    for figure in FIGURES {
        let Some(counts) = recorded.get(figure.name) else { continue };
        let count = |name: &str| counts.get(name).copied().unwrap_or_default();
        let most = figure.most.map_or_else(|| "-".into(), |most| most.to_string());
        let events: Vec<String> = counts
            .iter()
            .filter(|(name, _)| !NOT_EVENTS.contains(&name.as_str()) && !NOT_COMPARED.contains(&name.as_str()))
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        writeln!(
            text,
            "| `{}` | {} | {most} | {} | {} | {} + {} | {} |",
            figure.name,
            count("kernel"),
            count("user"),
            count("guest"),
            count("code_lines"),
            count("data_lines"),
            events.join(", "),
        )?;
    }
    Ok(text)
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

/// Lines and pages depend on where the linker puts things: they are recorded, and not compared.
const NOT_COMPARED: [&str; 4] = ["code_lines", "data_lines", "code_pages", "data_pages"];

fn compare(name: &str, old: &BTreeMap<String, u64>, new: &BTreeMap<String, u64>) -> Vec<String> {
    let got_worse = |(count, new): (&String, &u64)| {
        let old = old.get(count).copied().unwrap_or_default();
        (*new as f64 > old as f64 * (1.0 + TOLERANCE)).then(|| format!("{name}: {count} was {old}, is {new}"))
    };
    new.iter().filter(|(count, _)| !NOT_COMPARED.contains(&count.as_str())).filter_map(got_worse).collect()
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
        assert!(compare("x", &[("code_lines".into(), 1)].into(), &[("code_lines".into(), 2)].into()).is_empty());
    }

    #[test]
    fn the_document_shows_what_is_recorded() {
        let document = workspace::read(&workspace::root().join(DOCUMENT)).expect("is there");
        let document = String::from_utf8(document).expect("is text");
        let made = with_table(&document, &read().expect("is understood")).expect("has a table");
        assert!(made == document, "`cargo xtask bench --record NAME` writes the table of {DOCUMENT}");
    }
}
