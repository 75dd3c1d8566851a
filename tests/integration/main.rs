//! The integration tests: the real binary, real processes, and peers that may do anything.
//!
//! One module a feature. What they share is in [`rig`] and in the crate `fixture`.

#![forbid(unsafe_code)]
#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is nothing but tests"
)]

mod bare;
mod daemon;
mod rig;

mod blobs_backend;
mod channel;
mod conformance;
mod control;
mod deaths;
mod demo;
mod files_backend;
mod golden_path;
mod guest;
mod guest_driver;
mod jail_proof;
mod kills;
mod logs;
mod options;
mod policy_usage;
mod published_peers;
mod real_peers;
mod regions;
mod seals;
mod soak;
mod stalls;
mod strict;
mod two_devices;
