//! The plugin: a vhost-user frontend as a jailed device process, and the reference backends.

#![forbid(unsafe_code)]

pub mod backend;
pub mod exit;
pub mod shmem_config;
