//! `portcullis demo`'s arguments.

use std::path::PathBuf;

use clap::Args;

use super::run::GuestChoice;
use super::run::SandboxChoice;
use crate::cli::size::Size;

/// `portcullis demo`
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// The folder whose files the guest gets to read [default: this repository's, or files of this program].
    pub directory: Option<PathBuf>,

    /// Take files up to this many bytes together; the guest is slow where KVM is emulated.
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    pub limit: Size,

    /// Whether there is a guest.
    #[arg(long, value_enum, default_value_t)]
    pub guest: GuestChoice,

    /// How the device processes are locked up.
    #[arg(long, value_enum, default_value_t)]
    pub sandbox: SandboxChoice,

    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}
