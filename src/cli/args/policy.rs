//! `portcullis policy`'s arguments.

use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;

use crate::cli::size::parse_number;

/// `portcullis policy`
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check policy files and report every mistake.
    Check {
        /// The files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// What to check for and how to report.
        #[command(flatten)]
        options: PolicyOptions,
    },
    /// Show the rules of a policy after its includes, with where each comes from.
    Show {
        /// The file.
        file: PathBuf,
        /// What to show and how.
        #[command(flatten)]
        options: PolicyOptions,
    },
    /// List the system calls that a policy names, with their numbers.
    Syscalls {
        /// The file.
        file: PathBuf,
        /// What to list and how.
        #[command(flatten)]
        options: PolicyOptions,
    },
    /// Say what a system call would get, and by which line.
    Explain {
        /// The file.
        file: PathBuf,
        /// The system call's name.
        syscall: String,
        /// Its arguments; those that are left out are 0.
        #[arg(value_name = "ARG", num_args = 0..=6, value_parser = parse_number)]
        arguments: Vec<u64>,
        /// What to explain and how.
        #[command(flatten)]
        options: PolicyOptions,
    },
}

/// What the commands on policies have in common.
#[derive(Clone, Debug, Args)]
pub struct PolicyOptions {
    /// The architecture to read the policy for [default: the one that its folder is named after, or this machine's].
    #[arg(long, value_enum)]
    pub arch: Option<ArchChoice>,

    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

/// An architecture that policies exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchChoice {
    /// 64-bit x86.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
}
