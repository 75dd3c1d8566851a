//! `portcullis ctl`'s arguments.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use crate::cli::size::parse_number;

/// `portcullis ctl`
#[derive(Debug, Args)]
pub struct CtlArguments {
    /// The control socket of a running VMM.
    #[arg(long, value_name = "SOCKET")]
    pub control: PathBuf,

    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,

    /// What to ask.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What `portcullis ctl` asks.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Show processes, the device's state and the last refused request.
    Status,
    /// List the live mappings.
    Maps,
    /// Show counters.
    Stats,
    /// Read memory of a region, through the guest where there is one.
    Peek {
        /// The region's id.
        #[arg(value_name = "ID")]
        shmid: u8,
        /// Where in the region, in bytes.
        #[arg(value_parser = parse_number)]
        offset: u64,
        /// How many bytes.
        #[arg(value_parser = parse_number)]
        len: u64,
    },
    /// Write memory of a region, through the guest where there is one.
    Poke {
        /// The region's id.
        #[arg(value_name = "ID")]
        shmid: u8,
        /// Where in the region, in bytes.
        #[arg(value_parser = parse_number)]
        offset: u64,
        /// What to write, two hexadecimal digits a byte.
        hex: String,
    },
    /// Reset the device: all its mappings go.
    Reset,
    /// End the VMM and wait until it has ended.
    Stop,
}
