//! How much a device process logs, as its VMM tells it.

use std::fmt;
use std::str::FromStr;

/// What is logged at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What ends the process.
    Error,
    /// And a backend's mistakes.
    #[default]
    Warn,
    /// And what happens.
    Info,
    /// And details.
    Debug,
    /// And everything else.
    Trace,
}

/// The text is not the name of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {}", LogLevel::NAMES)]
pub struct UnknownLogLevel;

impl LogLevel {
    /// All names, for messages.
    pub(super) const NAMES: &'static str = "error, warn, info, debug or trace";

    const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or(UnknownLogLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_each_level_leads_back_to_it() {
        for level in LogLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
    }

    #[test]
    fn unknown_level_is_refused_with_the_names() {
        assert_eq!("loud".parse::<LogLevel>(), Err(UnknownLogLevel));
        assert_eq!(
            UnknownLogLevel.to_string(),
            "expected error, warn, info, debug or trace"
        );
    }
}
