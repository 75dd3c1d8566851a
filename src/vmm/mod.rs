//! The reference VMM: guest memory, a machine, the mapping service, one device, and the loop that serves them all.

mod aside;
mod backend_socket;
mod clients;
pub mod config;
mod device;
mod device_events;
mod device_state;
pub mod events;
pub mod frontend_device;
mod holes;
pub mod host;
pub mod machine;
mod main_loop;
pub mod mmio;
pub mod proof;
mod supervisor;
mod timer;

pub use main_loop::Error;
pub use main_loop::run;
pub use main_loop::signals;
