//! The Test Anything Protocol, as the conformance root tasks write it on the console.

/// What came of one test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It makes no sense on this machine, for this reason.
    Skipped(String),
    /// It did not pass; what it found.
    Failed(String),
}

/// What a suite has said.
#[derive(Default, Debug)]
pub struct Report {
    plan: Option<usize>,
    /// Tests by name, in their order.
    pub tests: Vec<(String, Verdict)>,
    /// What it said beside verdicts.
    pub remarks: Vec<String>,
    running: Option<String>,
    bail: Option<String>,
    starts: u32,
}

impl Report {
    /// Takes a line of the console.
    pub fn line(&mut self, line: &str) {
        if line == "TAP version 13" || self.complete() && line.starts_with("kilonova: Kilonova ") {
            self.starts += 1;
        } else if self.starts != 1 {
            // The kernel before the suite; or the machine once more, after its reset.
        } else if let Some(plan) = line.strip_prefix("1..") {
            self.plan = plan.parse().ok();
        } else if let Some(why) = line.strip_prefix("Bail out! ") {
            self.bail.get_or_insert_with(|| why.into());
        } else if let Some(diagnostic) = line.strip_prefix("# ") {
            self.remarks.push(diagnostic.into());
            match self.tests.last_mut() {
                // It follows the verdict.
                Some((_, Verdict::Failed(text))) if self.running.is_none() && text.is_empty() => {
                    *text = diagnostic.into()
                }
                _ => self.running = Some(diagnostic.into()),
            }
        } else if let Some(test) = verdict(line) {
            self.tests.push(test);
            self.running = None;
        }
    }

    /// Whether nothing more can come: all tests are done and the machine has started again, or the suite gave up.
    pub fn over(&self) -> bool {
        self.starts > 1 || self.bail.is_some()
    }

    /// Whether the machine has started again.
    pub fn reset(&self) -> bool {
        self.starts > 1
    }

    /// Whether the suite went through all its tests.
    pub fn complete(&self) -> bool {
        self.plan == Some(self.tests.len()) && self.bail.is_none()
    }

    /// Tests that failed, and that which ran when the suite ended too early; with what is known about each.
    pub fn failures<'a>(&'a self) -> Vec<(&'a str, &'a str)> {
        let failed = |(name, verdict): &'a (String, Verdict)| match verdict {
            Verdict::Failed(text) => Some((name.as_str(), text.as_str())),
            _ => None,
        };
        let mut failures: Vec<(&str, &str)> = self.tests.iter().filter_map(failed).collect();
        if !self.complete() {
            let why = self.bail.as_deref().unwrap_or("never ended");
            failures.push((self.running.as_deref().unwrap_or("the suite"), why));
        }
        failures
    }

    /// Number of tests that passed, and of those that were skipped.
    pub fn counts(&self) -> (usize, usize) {
        let passed = self.tests.iter().filter(|(_, verdict)| *verdict == Verdict::Passed).count();
        let skipped = self.tests.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Skipped(_))).count();
        (passed, skipped)
    }
}

fn verdict(line: &str) -> Option<(String, Verdict)> {
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, name) = rest.split_once(" - ")?;
    number.parse::<usize>().ok()?;
    Some(match name.split_once(" # SKIP ") {
        _ if !passed => (name.into(), Verdict::Failed(String::new())),
        Some((name, why)) => (name.into(), Verdict::Skipped(why.into())),
        None => (name.into(), Verdict::Passed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn verdicts_are_told_apart() {
        let report = report(&[
            "kilonova: 1 CPU",
            "TAP version 13",
            "1..3",
            "# a::first",
            "ok 1 - a::first",
            "# a::second",
            "not ok 2 - a::second",
            "# src/a.rs:3: x is 1, not 2",
            "# a::third",
            "ok 3 - a::third # SKIP only 1 CPU",
        ]);
        assert!(report.complete());
        assert_eq!(report.failures(), [("a::second", "src/a.rs:3: x is 1, not 2")]);
        assert_eq!(report.counts(), (1, 1));
    }

    #[test]
    fn a_test_that_never_ends_is_named() {
        let mut report = report(&["TAP version 13", "1..2", "# a::first", "ok 1 - a::first", "# a::second"]);
        assert!(!report.complete() && !report.over());
        assert_eq!(report.failures(), [("a::second", "never ended")]);
        report.line("Bail out! a::second: event 0xe");
        assert!(report.over());
        assert_eq!(report.failures(), [("a::second", "a::second: event 0xe")]);
    }

    #[test]
    fn a_second_start_is_a_reset() {
        for second in ["TAP version 13", "kilonova: Kilonova 0.1.0 starts"] {
            let report = report(&["TAP version 13", "1..1", "# a::b", "ok 1 - a::b", second, "1..1"]);
            assert!(report.over() && report.reset() && report.complete());
        }
    }
}
