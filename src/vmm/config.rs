//! What a VMM is asked to be.

use std::path::PathBuf;

use devices::device_process::LogLevel;
use devices::device_process::SandboxOptions;
use devices::shmem_config::ShmemRegion;

use super::machine::HolePolicy;

/// The name of a device whose user did not name its kind.
pub const DEFAULT_DEVICE_NAME: &str = "vhost-user";

/// Everything about one run of the VMM.
#[derive(Clone, Debug)]
pub struct Config {
    /// The backend's socket.
    pub backend: PathBuf,
    /// Whether to wait for the socket to appear.
    pub wait: bool,
    /// The device that the backend is.
    pub device: DeviceOptions,
    /// The guest.
    pub guest: Guest,
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// What the guest meets where nothing is mapped.
    pub holes: HolePolicy,
    /// Where to listen for control clients.
    pub control: Option<PathBuf>,
    /// Whether a device comes back.
    pub restart: Restart,
    /// Whether the VMM ends with its device.
    pub once: bool,
}

/// Whether there is a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Where the system allows it.
    Auto,
    /// Or the VMM fails.
    Kvm,
    /// Memory is read by the host.
    None,
}

/// Whether a device comes back after it ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It stays down.
    Never,
    /// A new device process is started once the backend can be connected again.
    OnFailure,
}

/// One device.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Its name, in every output.
    pub name: String,
    /// How its process is locked up.
    pub sandbox: SandboxOptions,
    /// How much its process logs.
    pub log: LogLevel,
    /// The most live mappings.
    pub max_mappings: u32,
    /// The most mapped bytes; `None` for as many as its regions have.
    pub max_bytes: Option<u64>,
    /// Map only memory that is sealed against shrinking.
    pub require_seals: bool,
    /// Bytes of memory that are filled in ahead of the guest, in each of its regions.
    pub populate: u64,
    /// Let an unmap name its mapping by the offset alone.
    pub offset_only_unmap: bool,
    /// Tell what the backend does against the protocol.
    pub strict: bool,
    /// Its regions; empty where the backend is asked.
    pub regions: Vec<ShmemRegion>,
    /// The protocol feature bit by which an old peer means shared memory regions.
    pub legacy_shmem_bit: Option<u8>,
}

impl DeviceOptions {
    /// A device with the default limits.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            sandbox: SandboxOptions::default(),
            log: LogLevel::default(),
            max_mappings: 4096,
            max_bytes: None,
            require_seals: false,
            populate: 0,
            offset_only_unmap: false,
            strict: false,
            regions: Vec::new(),
            legacy_shmem_bit: None,
        }
    }
}
