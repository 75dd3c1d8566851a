//! `portcullis backend`: the reference backends.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use devices::backend::blobs;
use devices::backend::files;
use devices::backend::files::Options;
use devices::backend::report::Format;
use devices::backend::report::Printer;
use devices::backend::report::Report;

use super::args::backend::BackendCommand;
use super::args::backend::BlobsArguments;
use super::args::backend::FilesArguments;
use super::failure::Advise as _;
use super::failure::Failure;
use super::output;

/// Runs `portcullis backend`.
///
/// # Errors
/// The backend could not start, or its socket failed.
pub fn run(command: BackendCommand) -> Result<(), Failure> {
    match command {
        BackendCommand::Files(arguments) => serve_files(arguments),
        BackendCommand::Blobs(arguments) => serve_blobs(arguments),
    }
}

fn serve_files(arguments: FilesArguments) -> Result<(), Failure> {
    let ready_descriptor = ready(arguments.ready_fd)?;
    let format = if arguments.json {
        Format::Json
    } else {
        Format::Table
    };
    let mut printer = Printer::new(io::stdout(), format);
    let options = Options {
        socket: arguments.socket,
        directory: arguments.dir,
        region_size: arguments.region_size.map(|size| size.0),
        writable: arguments.writable,
        once: arguments.once,
        ready_descriptor,
        probes: arguments.probe,
    };
    let mut report = |event: &Report<'_>| {
        // A reader that has gone is no reason to stop serving.
        if let Err(error) = printer.print(event) {
            tracing::debug!("cannot print an event: {error}");
        }
    };
    files::run(options, &mut report).map_err(Failure::new)
}

fn serve_blobs(arguments: BlobsArguments) -> Result<(), Failure> {
    let options = blobs::Options {
        region_size: arguments.region_size.0,
        limits: blobs::Limits {
            max_blobs: arguments.max_blobs,
            max_bytes: arguments.max_bytes.0,
        },
        executor: arguments.executor,
        once: arguments.once,
        ready_descriptor: ready(arguments.ready_fd)?,
        ..blobs::Options::new(arguments.socket)
    };
    let json = arguments.json;
    let mut report = |event: &blobs::Report| {
        let printed = if json {
            output::print_json(event)
        } else {
            output::print(&format!("{event}\n"))
        };
        if let Err(error) = printed {
            tracing::debug!("cannot print an event: {error}");
        }
    };
    blobs::run(options, &mut report).map_err(Failure::new)
}

/// Takes over the descriptor that `--ready-fd` names.
fn ready(number: Option<i32>) -> Result<Option<OwnedFd>, Failure> {
    let taken = number.map(inherited).transpose().advise(
        "--ready-fd takes the number of a descriptor that was left open for this program",
    )?;
    Ok(taken)
}

fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    jail::take_inherited(number).with_context(|| format!("cannot use descriptor {number}"))
}
