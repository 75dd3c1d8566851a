//! Where the program's log lines go: to standard error, and by default only warnings and worse.

use std::io;
use std::io::IsTerminal as _;
use std::io::Write;

use tracing::level_filters::LevelFilter;

/// Starts logging for the whole process; `verbose` counts the `--verbose` flags.
pub fn start(verbose: u8) {
    start_at(match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    });
}

/// Starts logging for a device process. What it warns of are a backend's mistakes, which its VMM tells people in its own way.
pub fn start_device() {
    start_at(if io::stderr().is_terminal() {
        LevelFilter::ERROR
    } else {
        LevelFilter::WARN
    });
}

fn start_at(level: LevelFilter) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| BestEffort)
        .with_target(level > LevelFilter::INFO)
        .with_ansi(false);
    // A person sees when a line comes; a log file has to be told.
    let result = if io::stderr().is_terminal() {
        tracing::subscriber::set_global_default(builder.without_time().finish())
    } else {
        tracing::subscriber::set_global_default(builder.finish())
    };
    if result.is_err() {
        tracing::debug!("logging has been started before");
    }
}

/// Standard error, as far as it can be written. A jailed process may not write to a file, for one, and has to live with it.
struct BestEffort;

impl Write for BestEffort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
