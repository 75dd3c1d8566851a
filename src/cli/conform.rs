//! `portcullis conform`: the conformance suite, as TAP or as one JSON document.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::anyhow;

use super::args::conform::ConformArguments;
use super::args::conform::ConformCommand;
use super::failure::Failure;
use super::output;
use crate::conform;
use crate::conform::CaseReport;
use crate::conform::Outcome;
use crate::conform::Patience;
use crate::conform::Tap;

/// Runs the suite; a case that failed is the command's failure.
///
/// # Errors
/// If the socket can't be made, nobody connects, or a case failed.
pub fn run(command: ConformCommand) -> Result<(), Failure> {
    let ConformCommand::Frontend(arguments) = command;
    let only = arguments.only.as_deref();
    let cases = conform::names()
        .iter()
        .filter(|name| only.is_none_or(|text| name.contains(text)))
        .count();
    if cases == 0 {
        let text = only.unwrap_or_default();
        return Err(Failure::usage(anyhow!("no case has {text:?} in its name")));
    }
    let socket = Socket::listen(&arguments.socket)?;
    let patience = Patience {
        first: Duration::from_secs(arguments.wait),
        ..Patience::default()
    };
    let failed = if arguments.json {
        let report = conform::run(&socket.listener, patience, only, &mut |_| ())
            .with_context(|| format!("{}", arguments.socket.display()))?;
        output::print_json(&report)?;
        report.count(Outcome::Fail)
    } else {
        tap(&socket.listener, patience, only, cases, &arguments)?
    };
    if failed > 0 {
        return Err(Failure::new(anyhow!("{failed} of {cases} cases failed")));
    }
    Ok(())
}

fn tap(
    listener: &UnixListener,
    patience: Patience,
    only: Option<&str>,
    cases: usize,
    arguments: &ConformArguments,
) -> Result<usize, Failure> {
    let mut tap = Tap::new(io::stdout(), cases).map_err(Failure::new)?;
    let mut broken = Ok(());
    let mut progress = |case: &CaseReport| {
        if broken.is_ok() {
            broken = tap.case(case);
        }
    };
    let report = conform::run(listener, patience, only, &mut progress)
        .with_context(|| format!("{}", arguments.socket.display()))?;
    broken
        .and_then(|()| tap.end(&report))
        .map_err(Failure::new)?;
    Ok(report.count(Outcome::Fail))
}

/// A listening socket whose path goes with it.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    fn listen(path: &Path) -> Result<Socket, Failure> {
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot listen at {}", path.display()))
            .map_err(|error| {
                Failure::from(error)
                    .advise("name a path where nothing is, in a folder that you may write to")
            })?;
        Ok(Socket {
            listener,
            path: path.to_path_buf(),
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}
