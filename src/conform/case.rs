//! What a case is, and the ways in which it ends.

use std::fmt;

use serde::Serialize;

use super::session::Profile;
use super::session::Session;

/// Whose rule a case checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The vhost-user specification.
    Spec,
    /// A decision of this project where the specification is silent.
    Portcullis,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The frontend keeps the rule.
    #[serde(rename = "pass")]
    Pass,
    /// It does not.
    #[serde(rename = "fail")]
    Fail,
    /// It could not be asked.
    #[serde(rename = "na")]
    NotApplicable,
}

/// What was seen instead of what the rule asks for.
#[derive(Debug)]
pub(super) struct Failure(pub(super) String);

impl<T: fmt::Display> From<T> for Failure {
    fn from(what: T) -> Failure {
        Failure(what.to_string())
    }
}

/// What was seen: as the rule asks for, or otherwise.
pub(super) type Verdict = Result<String, Failure>;

/// One rule and the way to check it.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) rule: &'static str,
    pub(super) source: Source,
    pub(super) profile: Profile,
    /// Protocol features without which the case cannot be asked.
    pub(super) needs: u64,
    /// Whether the channel is of no use afterwards.
    pub(super) ends_channel: bool,
    pub(super) run: Box<dyn Fn(&mut Session) -> Verdict>,
}

impl Case {
    /// Makes a case of the specification over the full profile, which needs acknowledgements and shared memory.
    pub(super) fn spec(
        name: impl Into<String>,
        rule: &'static str,
        run: impl Fn(&mut Session) -> Verdict + 'static,
    ) -> Case {
        Case {
            name: name.into(),
            rule,
            source: Source::Spec,
            profile: Profile::Full,
            needs: super::session::feature::REPLY_ACK | super::session::feature::SHMEM,
            ends_channel: false,
            run: Box::new(run),
        }
    }

    /// Makes a case of this project's own.
    pub(super) fn ours(
        name: impl Into<String>,
        rule: &'static str,
        run: impl Fn(&mut Session) -> Verdict + 'static,
    ) -> Case {
        Case {
            source: Source::Portcullis,
            ..Case::spec(name, rule, run)
        }
    }

    pub(super) fn in_profile(self, profile: Profile, needs: u64) -> Case {
        Case {
            profile,
            needs,
            ..self
        }
    }

    pub(super) fn ending_the_channel(self) -> Case {
        Case {
            ends_channel: true,
            ..self
        }
    }
}
