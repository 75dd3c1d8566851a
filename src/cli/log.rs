//! Where the program's log lines go: to standard error, and by default only warnings and worse.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

/// Starts logging for the whole process; `verbose` counts the `--verbose` flags.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(verbose > 1)
        .with_ansi(false);
    // A person sees when a line comes; a log file has to be told.
    let result = if std::io::stderr().is_terminal() {
        tracing::subscriber::set_global_default(builder.without_time().finish())
    } else {
        tracing::subscriber::set_global_default(builder.finish())
    };
    if result.is_err() {
        tracing::debug!("logging has been started before");
    }
}
