//! The conformance suite: acts as a backend, takes whatever frontend connects, and checks the backend request channel rule by rule.
//!
//! It knows nothing of Portcullis: bytes are laid out by hand here, so that a mistake in `vmm_vhost` cannot hide itself. Each case
//! names the rule that it checks and where the rule comes from: the vhost-user specification, or a decision of this project, which
//! another frontend is free to take otherwise.

mod case;
mod cases;
mod session;
mod tap;
mod wire;

use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use serde::Serialize;

use self::case::Case;
use self::case::Failure;
pub use self::case::Outcome;
pub use self::case::Source;
use self::session::Profile;
use self::session::Session;
pub use self::tap::Tap;

/// How long the suite waits for a frontend to connect (again), for an answer, and for a channel to close.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the first connection.
    pub first: Duration,
    /// For everything else.
    pub then: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            first: Duration::from_secs(60),
            then: Duration::from_secs(5),
        }
    }
}

/// What the suite found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the frontend negotiated, as far as it says anything about itself.
    pub peer: Peer,
    /// Every case in the order in which it ran.
    pub cases: Vec<CaseReport>,
}

/// The frontend, as it introduced itself on the first connection.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Peer {
    /// The virtio features that it acknowledged; nothing before a driver is up.
    pub virtio_features: Option<u64>,
    /// The protocol features that it acknowledged.
    pub protocol_features: u64,
    /// The requests that it sent on the main channel before the request channel was there, in order.
    pub opening: Vec<u32>,
}

/// One case's result.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// A path-like name, unique in the suite.
    pub name: String,
    /// The rule in one sentence.
    pub rule: &'static str,
    /// Whose rule it is.
    pub source: Source,
    /// Whether the frontend keeps it.
    pub result: Outcome,
    /// What was seen.
    pub seen: String,
}

impl Report {
    /// Returns how many cases ended with `outcome`.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.cases
            .iter()
            .filter(|case| case.result == outcome)
            .count()
    }
}

/// Returns the names of all cases, in the order in which they run.
pub fn names() -> Vec<String> {
    cases::all().into_iter().map(|case| case.name).collect()
}

/// Runs the suite against the frontends that connect to `listener`, and tells `progress` each result.
///
/// Cases that end a channel by design, and those after an unexpected end, need a new connection. Where the frontend does not connect
/// again in time, they are reported as not applicable.
///
/// # Errors
/// If no frontend connects at all, or the listener fails.
pub fn run(
    listener: &UnixListener,
    patience: Patience,
    filter: Option<&str>,
    progress: &mut dyn FnMut(&CaseReport),
) -> io::Result<Report> {
    let mut runner = Runner {
        listener,
        patience,
        session: None,
        connected_once: false,
        gone: None,
        peer: Peer::default(),
    };
    let mut reports = Vec::new();
    for case in cases::all() {
        if filter.is_some_and(|text| !case.name.contains(text)) {
            continue;
        }
        let (result, seen) = runner.run(&case)?;
        let report = CaseReport {
            name: case.name,
            rule: case.rule,
            source: case.source,
            result,
            seen,
        };
        progress(&report);
        reports.push(report);
    }
    Ok(Report {
        peer: runner.peer,
        cases: reports,
    })
}

struct Runner<'a> {
    listener: &'a UnixListener,
    patience: Patience,
    session: Option<Session>,
    connected_once: bool,
    /// Why there is no further connection.
    gone: Option<String>,
    peer: Peer,
}

impl Runner<'_> {
    fn run(&mut self, case: &Case) -> io::Result<(Outcome, String)> {
        if let Err(reason) = self.prepare(case.profile)? {
            return Ok((Outcome::NotApplicable, reason));
        }
        let Some(session) = self.session.as_mut() else {
            return Ok((Outcome::NotApplicable, "no session".to_owned()));
        };
        if let Some(missing) = session.lacks(case.needs) {
            return Ok((
                Outcome::NotApplicable,
                format!("the frontend did not negotiate {missing}"),
            ));
        }
        let verdict = (case.run)(session);
        // A case leaves no mapping behind. One that failed may leave replies, too, and does not get to spoil the next.
        if case.ends_channel || verdict.is_err() || !session.clean_up() {
            self.session = None;
        }
        Ok(match verdict {
            Ok(seen) => (Outcome::Pass, seen),
            Err(Failure(seen)) => (Outcome::Fail, seen),
        })
    }

    /// Makes sure that there is a session of `profile`, or says why there is none.
    fn prepare(&mut self, profile: Profile) -> io::Result<Result<(), String>> {
        if let Some(reason) = &self.gone {
            return Ok(Err(reason.clone()));
        }
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.profile == profile && session.is_open())
        {
            return Ok(Ok(()));
        }
        self.session = None;
        let wait = if self.connected_once {
            self.patience.then
        } else {
            self.patience.first
        };
        match Session::accept(self.listener, profile, wait, self.patience.then) {
            Ok(session) => {
                if !self.connected_once {
                    self.peer = session.peer.clone();
                }
                self.connected_once = true;
                self.session = Some(session);
                Ok(Ok(()))
            }
            Err(error) if self.connected_once => {
                let reason = format!("no further connection: {error}");
                self.gone = Some(reason.clone());
                Ok(Err(reason))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn suite_has_its_cases_under_distinct_names() {
        let names = names();
        assert!(names.len() >= 150, "{}", names.len());
        let distinct: HashSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn every_case_states_its_rule() {
        for case in cases::all() {
            assert!(case.rule.len() > 10, "{}", case.name);
        }
    }
}
