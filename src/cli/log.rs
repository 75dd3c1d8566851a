//! Where the program's log lines go: to standard error, and by default only warnings and worse.

use std::io;
use std::io::IsTerminal as _;
use std::io::Write;

use devices::device_process::LogLevel;
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

/// Starts logging for a command that tells of a backend's mistakes itself: without `--verbose`, only failures are logged.
pub fn start_quiet(verbose: u8) {
    match verbose {
        0 => start_at(LevelFilter::ERROR),
        _ => start(verbose),
    }
}

/// Whether a person reads the log, who would not want to read everything twice.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// How much the device processes of a command log.
pub fn device_level(verbose: u8) -> LogLevel {
    match verbose {
        0 if is_watched() => LogLevel::Error,
        0 => LogLevel::Warn,
        1 => LogLevel::Info,
        2 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

/// Starts logging for a device process, as its VMM told it.
pub fn start_device(level: LogLevel) {
    start_at(match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    });
}

fn start_at(level: LevelFilter) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| BestEffort)
        .with_target(level > LevelFilter::INFO)
        .with_ansi(false);
    // A person sees when a line comes; a log file has to be told.
    let result = if is_watched() {
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
