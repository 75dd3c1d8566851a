//! The reference VMM and the command line of Portcullis.
//!
//! The gate itself lives in the crates below this one. Here are a small VMM that shows it working, the tools
//! around it, and nothing that another VMM would need.

pub mod bench;
pub mod cli;
pub mod conform;
pub mod control;
pub mod demo;
pub mod text;
pub mod vmm;
