//! `portcullis conform`'s arguments.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

/// `portcullis conform`
#[derive(Debug, Subcommand)]
pub enum ConformCommand {
    /// Act as a backend and check the frontends that connect, rule by rule.
    ///
    /// Some cases end the connection by design: a frontend that connects again is asked all of them. `portcullis run
    /// --backend SOCKET --wait --restart on-failure` does.
    Frontend(ConformArguments),
}

/// `portcullis conform frontend`
#[derive(Debug, Args)]
pub struct ConformArguments {
    /// Where to listen; the socket is made, and removed at the end.
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,
    /// Run only the cases whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Seconds to wait for the first connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
    /// Print one JSON document instead of TAP.
    #[arg(long)]
    pub json: bool,
}
