//! How a command fails: one line on standard error that says what, why and what to do.

use std::fmt;
use std::process::ExitCode;

use crate::text::without_error_numbers;

/// The command ran and did not succeed.
const FAILED: u8 = 1;
/// The command line itself is wrong.
const WRONG_USAGE: u8 = 2;
/// The command ran, and what it looked at breaks rules.
const DEVIATIONS: u8 = 3;

/// The end of a command that did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    error: anyhow::Error,
    advice: Option<String>,
    code: u8,
}

impl Failure {
    /// A failure whose cause leaves nothing to advise.
    pub fn new(error: impl Into<anyhow::Error>) -> Self {
        Self {
            error: error.into(),
            advice: None,
            code: FAILED,
        }
    }

    /// The command line asks for something that can't be.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: WRONG_USAGE,
            ..Self::new(error)
        }
    }

    /// The command ran, and what it looked at breaks rules.
    pub fn deviations(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: DEVIATIONS,
            ..Self::new(error)
        }
    }

    /// Adds what the user can do about it.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// What the user can do about it, if there is something.
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let advice = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Advice>())
            .map(|advice| advice.text.clone());
        Self {
            error,
            advice,
            code: FAILED,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:#}", self.error);
        f.write_str(&one_line(&text))?;
        match &self.advice {
            Some(advice) => write!(f, "; {}", one_line(advice)),
            None => Ok(()),
        }
    }
}

/// An error with advice that travels inside an [`anyhow::Error`] until it is printed.
#[derive(Debug)]
struct Advice {
    text: String,
    error: anyhow::Error,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Advice {}

/// Adds to an error what the user can do about it.
pub trait Advise<T> {
    /// On error, attaches `advice`; of several, the outermost is shown.
    fn advise(self, advice: &str) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Advise<T> for Result<T, E> {
    fn advise(self, advice: &str) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            anyhow::Error::new(Advice {
                text: advice.to_owned(),
                error,
            })
        })
    }
}

/// Turns a wrong command line into the one line that this program prints about it.
pub fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let body: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let body = body.join(" ").replace(" tip: ", "; ");
    let body = body.strip_prefix("error: ").unwrap_or(&body);
    format!(
        "{}; try '{} --help'",
        body.trim_end_matches('.'),
        command(&text)
    )
}

/// The command that a usage text is about: its words up to the first argument.
fn command(text: &str) -> String {
    let usage = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Usage:"))
        .unwrap_or("portcullis");
    let words: Vec<&str> = usage
        .split_whitespace()
        .take_while(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    words.join(" ")
}

/// Joins lines, drops the numbers that Rust adds to the system's reasons, and escapes what can't be printed.
fn one_line(text: &str) -> String {
    let joined = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    super::table::printable(&without_error_numbers(&joined))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use anyhow::anyhow;
    use clap::Parser as _;

    #[test]
    fn failure_says_what_why_and_what_to_do_in_one_line() {
        let result: Result<(), _> = Err(anyhow!("no such file\nor directory"))
            .context("cannot connect to /run/x")
            .advise("start the backend first");
        let failure = Failure::from(result.expect_err("failed"));
        assert_eq!(
            failure.to_string(),
            "cannot connect to /run/x: no such file or directory; start the backend first"
        );
    }

    #[test]
    fn failure_with_context_above_the_advice_keeps_both() {
        let result: Result<(), _> = Err(anyhow!("refused")).advise("start it");
        let failure = Failure::from(result.context("cannot connect").expect_err("failed"));
        assert_eq!(failure.to_string(), "cannot connect: refused; start it");
    }

    #[test]
    fn failure_of_the_system_is_printed_without_its_number() {
        let error = std::io::Error::from_raw_os_error(2);
        let failure = Failure::new(anyhow!(error).context("cannot open x (os error y)"));
        assert_eq!(
            failure.to_string(),
            "cannot open x (os error y): No such file or directory"
        );
    }

    #[test]
    fn failure_without_advice_ends_with_its_cause() {
        assert_eq!(Failure::new(anyhow!("broken")).to_string(), "broken");
    }

    #[test]
    fn wrong_usage_is_one_line_that_names_the_command_to_ask() {
        let error = crate::cli::args::Arguments::try_parse_from(["portcullis", "run"])
            .expect_err("incomplete");
        assert_eq!(
            usage_line(&error),
            "the following required arguments were not provided: --backend <SOCKET>; try 'portcullis run --help'"
        );
    }
}
