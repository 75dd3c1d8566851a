//! `portcullis ctl`'s arguments.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;

use crate::cli::size::Size;

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

/// Parses a number as programs print them: decimal, or hexadecimal behind `0x`.
fn parse_number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text
            .parse::<Size>()
            .map(|size| size.0)
            .or_else(|_| text.parse()),
    };
    parsed.map_err(|_| "expected a number such as 4096, 0x1000 or 4K".to_owned())
}
