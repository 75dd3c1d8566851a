//! The control protocol between `portcullis ctl` and a running VMM.
//!
//! [`message`] holds what is said, [`server`] the VMM's side and [`client`] the other.

pub mod client;
pub mod message;
pub mod server;
