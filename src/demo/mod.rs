//! `portcullis demo`: the whole thing at work, on one machine, in one command.
//!
//! A reference backend, a process of its own, maps the files of a folder through a jailed device process; the guest sums
//! each file, and the sum is compared with the host's. The same backend then makes hostile requests, and a second one asks
//! for the first one's region. Last, both are killed, and nothing may be left.

mod backend;
mod progress;
pub mod report;
mod scratch;
mod show;
mod source;

use anyhow::anyhow;
use base::SignalFd;

use crate::cli::args::demo::DemoArguments;
use crate::cli::failure::Failure;
use crate::cli::output::print;
use crate::cli::output::print_json;

/// Runs `portcullis demo`.
///
/// # Errors
/// Something was not as it should be, or could not be shown at all.
pub fn run(arguments: &DemoArguments, signals: SignalFd) -> Result<(), Failure> {
    let scratch = scratch::Scratch::new(signals)?;
    let report = show::show(arguments, &scratch)?;
    drop(scratch);
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    if report.ok {
        Ok(())
    } else {
        Err(Failure::new(anyhow!(
            "the demo found something that is not as it should be"
        )))
    }
}
