//! The vhost-user frontend as a jailed device process, and the reference backends.

#![forbid(unsafe_code)]

pub mod backend;
