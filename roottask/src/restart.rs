//! Whether a virtual machine that has ended is started anew, and when.

use core::fmt;
use plan::{Restart, RestartAfter};
use runtime::parent::Ended;

/// A machine that lived this long, in milliseconds, did not end soon: its next restart waits no longer than the first.
const SETTLED_MS: u64 = 10_000;
/// Longest wait before a restart in milliseconds, unless the plan's own is longer.
const DELAY_MAX_MS: u64 = 10_000;

/// What to do about the end of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is started anew after so many milliseconds.
    Start(u64),
    /// It stays as it is, as the plan says.
    Leave,
    /// It would be started anew, if it were not for this.
    Refuse(Refusal),
}

/// Why a virtual machine is not started anew although the plan says so after this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was started anew so many times already.
    Limit(u32),
    /// It would come to the same end.
    BadConfig,
    /// The kernel cannot take back what the machine used.
    Kernel,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => write!(f, "that has been done {limit} times"),
            Self::BadConfig => write!(f, "its configuration would be as bad"),
            Self::Kernel => write!(f, "this kernel cannot take back what it used"),
        }
    }
}

/// The restarts of one virtual machine so far.
#[derive(Clone, Copy, Debug)]
pub struct History {
    settled_ms: u64,
    restarts: u32,
    /// Restarts since it last lived that long.
    streak: u32,
}

impl Default for History {
    fn default() -> Self {
        Self::new(SETTLED_MS)
    }
}

impl History {
    /// No restarts yet of what has not ended soon if it lived for `settled_ms` milliseconds.
    pub fn new(settled_ms: u64) -> Self {
        Self { settled_ms, restarts: 0, streak: 0 }
    }

    /// Restarts so far.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Decides after an end: `lived_ms` after the last start, on a kernel that can take everything back or cannot.
    /// A restart counts from here on.
    pub fn decide(&mut self, restart: &Restart, how: Ended, lived_ms: u64, reclaims: bool) -> Decision {
        let bad = matches!(how, Ended::Crashed | Ended::BadConfig);
        match restart.after {
            RestartAfter::Never => return Decision::Leave,
            RestartAfter::Crash if !bad => return Decision::Leave,
            _ if !reclaims => return Decision::Refuse(Refusal::Kernel),
            _ if how == Ended::BadConfig => return Decision::Refuse(Refusal::BadConfig),
            _ => {}
        }
        if let Some(limit) = restart.limit.filter(|limit| self.restarts >= *limit) {
            return Decision::Refuse(Refusal::Limit(limit));
        }
        if lived_ms >= self.settled_ms {
            self.streak = 0;
        }
        let first = u64::from(restart.delay);
        let delay = first.saturating_mul(1 << self.streak.min(31)).min(DELAY_MAX_MS.max(first));
        self.restarts += 1;
        self.streak += 1;
        Decision::Start(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn decide(after: RestartAfter, how: Ended) -> Decision {
        History::default().decide(&Restart { after, ..Restart::NEVER }, how, 0, true)
    }

    #[test]
    fn the_plan_says_after_which_end() {
        let start = Decision::Start(100);
        for (how, on_crash, always) in [
            (Ended::PoweredOff, Decision::Leave, start),
            (Ended::Reset, Decision::Leave, start),
            (Ended::Crashed, start, start),
            (Ended::BadConfig, Decision::Refuse(Refusal::BadConfig), Decision::Refuse(Refusal::BadConfig)),
        ] {
            assert_eq!(decide(RestartAfter::Never, how), Decision::Leave);
            assert_eq!(decide(RestartAfter::Crash, how), on_crash);
            assert_eq!(decide(RestartAfter::Any, how), always);
        }
    }

    #[test]
    fn a_kernel_that_takes_nothing_back_cannot_restart() {
        let on_crash = Restart { after: RestartAfter::Crash, ..Restart::NEVER };
        let mut history = History::default();
        let refused = Decision::Refuse(Refusal::Kernel);
        assert_eq!(history.decide(&on_crash, Ended::Crashed, 0, false), refused);
        assert_eq!(history.decide(&on_crash, Ended::PoweredOff, 0, false), Decision::Leave);
        assert_eq!(Refusal::Kernel.to_string(), "this kernel cannot take back what it used");
    }

    #[test]
    fn the_limit_counts_all_restarts() {
        let restart = Restart { after: RestartAfter::Any, limit: Some(2), delay: 0 };
        let mut history = History::default();
        for lived in [0, 1 << 40] {
            assert_eq!(history.decide(&restart, Ended::Crashed, lived, true), Decision::Start(0));
        }
        let refused = Decision::Refuse(Refusal::Limit(2));
        assert_eq!(history.decide(&restart, Ended::Reset, 1 << 40, true), refused);
        assert_eq!(history.restarts(), 2);
    }

    #[test]
    fn a_machine_that_soon_ends_again_waits_longer() {
        let restart = Restart { after: RestartAfter::Crash, limit: None, delay: 100 };
        let mut history = History::default();
        let mut delay = |lived| match history.decide(&restart, Ended::Crashed, lived, true) {
            Decision::Start(delay) => delay,
            other => panic!("{other:?}"),
        };
        assert_eq!([0; 9].map(&mut delay), [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!([9999, 10_000, 0].map(&mut delay), [10_000, 100, 200]);
        assert_eq!((0..100).map(|_| delay(0)).max(), Some(10_000));
        let long = Restart { delay: 60_000, ..restart };
        assert_eq!(History::default().decide(&long, Ended::Crashed, 0, true), Decision::Start(60_000));
    }
}
