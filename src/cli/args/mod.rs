//! The command line as types. What the arguments mean is decided elsewhere.

pub mod backend;
pub mod conform;
pub mod ctl;
pub mod demo;
pub mod policy;
pub mod run;

use std::ffi::OsString;

use clap::ArgAction;
use clap::Parser;
use clap::Subcommand;

use backend::BackendCommand;
use conform::ConformCommand;
use ctl::CtlArguments;
use demo::DemoArguments;
use policy::PolicyCommand;
use run::RunArguments;

use crate::bench::BenchArgs;
use crate::bench::RoleArgs;

/// What a first use looks like.
const EXAMPLE: &str = "\
A backend of your own, or the one that comes with this program:
  portcullis backend files --socket /tmp/files.sock --dir . &
  portcullis run --backend /tmp/files.sock --wait --control /tmp/vm.ctl &
  portcullis ctl --control /tmp/vm.ctl maps
  portcullis ctl --control /tmp/vm.ctl peek 0 0 64
  portcullis ctl --control /tmp/vm.ctl stop";

/// A gate between vhost-user backends and a guest's memory.
///
/// Portcullis serves the backend request channel of vhost-user: a backend asks for its memory to be mapped into a
/// guest, a jailed device process reads the request, and a mapping service checks it again and carries it out.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    arg_required_else_help = true,
    after_help = EXAMPLE
)]
pub struct Arguments {
    /// Log more to standard error; twice or three times for still more.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 100)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of this program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole thing at work: real files, a jailed device process and a guest that reads them.
    Demo(DemoArguments),
    /// Serve one vhost-user backend.
    Run(Box<RunArguments>),
    /// Be a device process; a VMM starts it, with its sockets as inherited descriptors.
    #[command(disable_help_flag = true)]
    Device {
        /// See portcullis device --help.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Be a reference backend.
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Ask a running VMM, or change what it serves.
    Ctl(CtlArguments),
    /// Check, show and explain seccomp policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Check any vhost-user frontend against the rules of the backend request channel.
    #[command(subcommand)]
    Conform(ConformCommand),
    /// Measure the request path beside what the kernel alone costs.
    Bench(BenchArgs),
    /// Be a process of the benchmark.
    #[command(hide = true)]
    BenchRole(RoleArgs),
}
