//! `portcullis run`'s arguments.

use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;

use crate::cli::size::RegionArgument;
use crate::cli::size::Size;
use crate::vmm::config::DEFAULT_DEVICE_NAME;
use crate::vmm::machine::HolePolicy;

/// `portcullis run`
#[derive(Debug, Args)]
pub struct RunArguments {
    /// The socket on which the backend listens.
    #[arg(long, value_name = "SOCKET")]
    pub backend: PathBuf,

    /// Wait for the socket to appear.
    #[arg(long)]
    pub wait: bool,

    /// The kind of device: fs, gpu, media, pmem, wl, or a virtio device id; it names the device.
    #[arg(long, value_name = "TYPE", default_value = DEFAULT_DEVICE_NAME)]
    pub device_type: String,

    /// A region of a backend that does not describe its regions itself; may be given several times.
    #[arg(long, value_name = "ID=SIZE")]
    pub region: Vec<RegionArgument>,

    /// Listen on this socket for portcullis ctl.
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Whether there is a guest.
    #[arg(long, value_enum, default_value_t)]
    pub guest: GuestChoice,

    /// The guest's memory.
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    pub memory: Size,

    /// What the guest meets where nothing is mapped: all-ones, scratch, scratch=BYTES, or stop.
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub holes: HolePolicy,

    /// What the device process and its jail may do.
    #[command(flatten)]
    pub jail: JailArguments,

    /// Live mappings that the device may have.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_mappings: u32,

    /// Bytes that the device may have mapped [default: as many as its regions have].
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<Size>,

    /// Map only memory that is sealed against shrinking.
    #[arg(long)]
    pub require_seals: bool,

    /// Fill in the pages of so much mapped memory of each region ahead of the guest; a backend can have as much allocated.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub populate: Size,

    /// Let an unmap name its mapping by the offset alone, as some published backends do.
    #[arg(long)]
    pub offset_only_unmap: bool,

    /// Tell each rule of the protocol that the backend breaks, count them, and exit with 3 at the end if there were any.
    #[arg(long)]
    pub strict: bool,

    /// The protocol feature bit by which an old peer offers its shared memory regions.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..64))]
    pub legacy_shmem_bit: Option<u8>,

    /// Whether the device comes back after it ended by itself.
    #[arg(long, value_enum, default_value_t)]
    pub restart: RestartChoice,

    /// End when the device ends.
    #[arg(long, conflicts_with = "restart")]
    pub once: bool,

    /// Print one JSON object a line for each event instead of text.
    #[arg(long)]
    pub json: bool,
}

/// The jail of a device process.
#[derive(Clone, Debug, Args)]
pub struct JailArguments {
    /// How the device process is locked up.
    #[arg(long, value_enum, default_value_t)]
    pub sandbox: SandboxChoice,

    /// What becomes of a device process that makes a forbidden system call.
    #[arg(long, value_enum, default_value_t)]
    pub seccomp: SeccompChoice,

    /// Read the policies from this folder, not from the program.
    #[arg(long, value_name = "DIR")]
    pub seccomp_policy_dir: Option<PathBuf>,
}

/// Whether there is a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GuestChoice {
    /// A KVM guest where there is KVM, none otherwise.
    #[default]
    Auto,
    /// A KVM guest, or failure.
    Kvm,
    /// No guest: memory is read by the host.
    None,
}

/// How a device process is locked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SandboxChoice {
    /// Namespaces, an empty root, no capabilities, limits and seccomp.
    #[default]
    Full,
    /// Seccomp alone.
    Seccomp,
    /// Nothing: for debugging only.
    None,
}

/// What becomes of a device process that makes a forbidden system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SeccompChoice {
    /// It says which call it was, and dies.
    #[default]
    Trap,
    /// The kernel kills it.
    Kill,
    /// The call is let through and logged: for writing policies only.
    Log,
}

/// Whether a device comes back after it ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RestartChoice {
    /// It stays down; the VMM stays up.
    #[default]
    Never,
    /// A new device process is started and the backend is connected again.
    OnFailure,
}
