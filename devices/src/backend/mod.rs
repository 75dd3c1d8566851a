//! Reference backends: programs on the other end of the main channel and of the request channel.
//!
//! They are there to run and to test frontends with, this project's and others. A backend trusts its
//! frontend and waits for it; nothing here is part of a VMM.

pub mod blobs;
pub mod channel;
pub mod config_space;
pub mod files;
pub mod layout;
pub mod listen;
pub mod probe;
pub mod report;
pub mod rings;
pub mod serve;
pub mod walk;
