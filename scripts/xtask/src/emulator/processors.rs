//! The host's processors.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

/// One of those that we may use, another one each time.
pub fn one() -> Result<usize> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let status = std::fs::read_to_string("/proc/self/status").context("which processors are there?")?;
    let usable =
        allowed(&status).filter(|usable| !usable.is_empty()).context("no Cpus_allowed_list in /proc/self/status")?;
    // Of several of us, each begins elsewhere.
    let turn = std::process::id() as usize + NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(usable[turn % usable.len()])
}

/// The processors that the kernel's text about a process allows it, see `proc_pid_status(5)`.
fn allowed(status: &str) -> Option<Vec<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    let ranges: Option<Vec<_>> = list.trim().split(',').map(range).collect();
    Some(ranges?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_understood() {
        assert_eq!(
            allowed("Name:\tx\nCpus_allowed_list:\t0-2,5,7-8\nMems_allowed:\t1\n"),
            Some(vec![0, 1, 2, 5, 7, 8])
        );
        assert_eq!(allowed("Cpus_allowed_list:\t3\n"), Some(vec![3]));
        assert_eq!(allowed("Cpus_allowed_list:\tx\n"), None);
        assert_eq!(allowed("Name:\tx\n"), None);
        assert!(one().is_ok());
    }
}
