//! Writing to standard output, where a reader that has gone is the end and not an error.

use std::io;
use std::io::ErrorKind;
use std::io::Write as _;

use anyhow::Context as _;
use serde::Serialize;

/// Prints text as it is.
///
/// # Errors
/// Standard output can't be written. A closed pipe is no error: the reader has seen enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let result = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match result {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints one JSON document on a line of its own.
///
/// # Errors
/// As [`fn@print`].
pub fn print_json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value).context("cannot encode the result as JSON")?;
    line.push('\n');
    print(&line)
}
