//! The command line: typed arguments, what people and programs get to read, and exit codes.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done, and `run --strict` has seen rules broken. An error is one line on standard
//! error. With `--json` there is one JSON document on standard output (`run`: one event a line), and nothing else.

pub mod args;
pub mod backend;
pub mod conform;
pub mod ctl;
pub mod device;
pub mod event_printer;
pub mod failure;
pub mod log;
pub mod output;
pub mod policy;
pub mod run;
pub mod size;
pub mod table;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use args::Arguments;
use args::Command;
use failure::Failure;
use failure::usage_line;

use crate::bench;
use crate::demo;
use crate::vmm;

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // A device process has to be up in no time, and does not need the rest of the command line for it.
    if arguments.next().is_some_and(|command| command == "device") {
        return device::run(arguments.collect());
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return answer_parse_error(&error),
    };
    if let Command::Device { arguments } = arguments.command {
        return device::run(arguments);
    }
    match arguments.command {
        Command::Demo(_) => log::start_quiet(arguments.verbose),
        Command::Run(_) if log::is_watched() => log::start_quiet(arguments.verbose),
        _ => log::start(arguments.verbose),
    }
    match run(arguments.command, arguments.verbose) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            failure.exit_code()
        }
    }
}

fn run(command: Command, verbose: u8) -> Result<(), Failure> {
    match command {
        Command::Demo(arguments) => {
            let signals = vmm::signals().map_err(Failure::new)?;
            demo::run(&arguments, signals)
        }
        Command::Run(arguments) => run::run(&arguments, verbose),
        Command::Device { .. } => Ok(()),
        Command::Backend(command) => backend::run(command),
        Command::Ctl(arguments) => ctl::run(arguments),
        Command::Policy(command) => policy::run(command),
        Command::Conform(command) => conform::run(command),
        Command::Bench(arguments) => Ok(bench::run(&arguments)?),
        Command::BenchRole(arguments) => Ok(bench::run_role(&arguments)?),
    }
}

/// Help and versions are printed as they are; a wrong command line gets one line.
fn answer_parse_error(error: &clap::Error) -> ExitCode {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    if error.use_stderr() {
        complain(&usage_line(error));
        ExitCode::from(2)
    } else {
        // Nothing is left to do if standard output is closed.
        let _ = error.print();
        ExitCode::SUCCESS
    }
}

/// Prints a warning that no log level hides.
pub(crate) fn warn(line: &str) {
    complain(&format!("warning: {line}"));
}

/// Prints the one line about what went wrong; a closed standard error leaves the exit code to speak.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "portcullis: {line}");
}
