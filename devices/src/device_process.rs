//! The device process, from both sides.
//!
//! [`DeviceProcess`] is the VMM's handle: it starts the process, and each of its calls has a deadline, since behind the
//! process there is a backend that may never answer. [`run`] is the process itself. Between them are the control tube,
//! the event tube and a command line that names descriptors by number ([`DeviceArgs`]).

mod args;
mod calls;
mod child;
mod error;
mod handle;
mod hooks;
mod log_level;
mod serve;
mod state;

pub use self::args::ArgsError;
pub use self::args::DeviceArgs;
pub use self::args::SandboxOptions;
pub use self::child::run;
pub use self::error::Error;
pub use self::handle::DEFAULT_DEADLINE;
pub use self::handle::DeviceProcess;
pub use self::handle::DeviceProcessConfig;
pub use self::log_level::LogLevel;
pub use self::log_level::UnknownLogLevel;
pub use self::serve::MAX_CHANNELS;
pub use self::state::MAX_STATE_BYTES;

#[cfg(test)]
mod tests;
