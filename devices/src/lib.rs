//! The plugin: a vhost-user frontend as a jailed device process, and the reference backends.
//!
//! A device process speaks to one backend. Its main thread serves the VMM's control tube and is the only one that waits
//! for the backend ([`VhostUserFrontend`](vhost_user_frontend::VhostUserFrontend)); its worker thread serves the
//! backend's request channel and passes map requests to the VMM's mapping service ([`worker`]). The VMM holds a
//! [`DeviceProcess`](device_process::DeviceProcess).
//!
//! A backend that is part of the VMM is served by the same worker, on a thread ([`in_process`]).
//!
//! This crate does not know which hypervisor there is, and it maps nothing itself.

#![forbid(unsafe_code)]

pub mod backend;
pub mod control;
pub mod device_process;
pub mod exit;
pub mod in_process;
mod iotlb;
pub mod pci_capability;
pub mod shared_objects;
pub mod shmem_config;
pub mod snapshot;
pub mod vhost_user_frontend;
pub mod worker;

#[cfg(test)]
mod testing;
