//! What a call that the policy does not allow leads to.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// What a call that the policy does not allow leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Violation {
    /// A signal, whose handler says which call it was; then the process dies of it.
    Trap,
    /// The process dies on the spot; nothing can run in between.
    Kill,
    /// The call is made, and the parent notes that the policy lacks it. For writing policies; it protects from nothing.
    Log,
}

impl Violation {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Kill => "kill",
            Self::Log => "log",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no reaction to violations.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reaction to seccomp violations: use trap, kill or log")]
pub struct UnknownViolation;

impl FromStr for Violation {
    type Err = UnknownViolation;

    fn from_str(text: &str) -> Result<Self, UnknownViolation> {
        [Self::Trap, Self::Kill, Self::Log]
            .into_iter()
            .find(|violation| violation.name() == text)
            .ok_or(UnknownViolation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for violation in [Violation::Trap, Violation::Kill, Violation::Log] {
            assert_eq!(violation.to_string().parse(), Ok(violation));
        }
        assert_eq!("Trap".parse::<Violation>(), Err(UnknownViolation));
    }
}
