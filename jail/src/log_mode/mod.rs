//! The mode for writing policies: calls that the policy lacks are made, and the parent notes them.
//!
//! The filter's answer for such a call is to ask a supervisor (`SECCOMP_RET_USER_NOTIF`). The parent holds the listener, notes the call and
//! lets it through. That protects from nothing, and it is slow; it needs no privileges and loses nothing, unlike the kernel's audit log.

mod child;
mod supervisor;

pub(crate) use child::install;
pub use supervisor::MissingCall;
pub(crate) use supervisor::Supervisor;
