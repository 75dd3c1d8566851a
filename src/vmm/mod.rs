//! The reference VMM: guest memory, a machine, the mapping service, one device, and the loop that serves them all.

pub mod backend_socket;
pub mod events;
pub mod machine;
pub mod mmio;
pub mod proof;
