//! The jail of Portcullis: seccomp policies, the sandbox, and starting a jailed process.
//!
//! * [`policy`] reads and compiles policy files in the common subset of minijail's language.
//! * [`enter`] and [`Jail::lock_down`] take a process into its jail: namespaces, an empty root, no privileges, limits, seccomp.
//! * [`Spawner`] starts such a process from its parent and says how it ended.
//!
//! The crate knows nothing of what the process does in there.

mod arch;
mod descriptors;
mod filter;
mod last_words;
mod log_mode;
mod oom;
pub mod policy;
mod record;
mod sandbox;
mod spawn;
mod violation;

pub use arch::Arch;
pub use arch::Syscall;
pub use arch::UnknownArch;
pub use descriptors::InheritError;
pub use descriptors::take_inherited;
pub use last_words::ABORT_CODE;
pub use last_words::PANIC_CODE;
pub use last_words::name_thread;
pub use log_mode::MissingCall;
pub use oom::NotingAllocator;
pub use policy::Filters;
pub use policy::FiltersError;
pub use policy::Policy;
pub use sandbox::Jail;
pub use sandbox::Limits;
pub use sandbox::Sandbox;
pub use sandbox::SandboxLevel;
pub use sandbox::Step;
pub use sandbox::StepError;
pub use sandbox::UnknownSandboxLevel;
pub use sandbox::enter;
pub use spawn::End;
pub use spawn::ExitReport;
pub use spawn::JailedChild;
pub use spawn::Program;
pub use spawn::SpawnError;
pub use spawn::SpawnRequest;
pub use spawn::Spawner;
pub use spawn::Stderr;
pub use spawn::ViolatingCall;
pub use violation::UnknownViolation;
pub use violation::Violation;
