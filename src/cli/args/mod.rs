//! The command line as types. What the arguments mean is decided elsewhere.

pub mod ctl;
pub mod policy;

use clap::ArgAction;
use clap::Parser;
use clap::Subcommand;

use ctl::CtlArguments;
use policy::PolicyCommand;

/// A gate between vhost-user backends and a guest's memory.
///
/// Portcullis serves the backend request channel of vhost-user: a backend asks for its memory to be mapped into a
/// guest, a jailed device process reads the request, and a mapping service checks it again and carries it out.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// Log more to standard error: once for what happens, twice for details, three times for everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of this program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running VMM, or change what it serves.
    Ctl(CtlArguments),
    /// Check, show and explain seccomp policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
}
