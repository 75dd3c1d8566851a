//! Fuzz targets: each takes bytes that a hostile peer, or the author of a policy, could have written, runs the real code on
//! them, and panics where a promise is broken.
//!
//! `tests/corpus.rs` runs them over the corpus, and over changes of it, with the stable toolchain. `cargo fuzz run TARGET` runs one
//! without end; `fuzz/README.md` says how.

mod leak;
mod policy;
mod replies;
mod server;
mod tube;
mod wire;

pub use policy::policy;
pub use replies::replies;
pub use server::server;
pub use tube::tube;
pub use wire::wire;

/// A target and its name, which is also that of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("policy", policy),
    ("replies", replies),
    ("server", server),
    ("tube", tube),
    ("wire", wire),
];
