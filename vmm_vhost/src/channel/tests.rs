//! The request channel against a peer of raw bytes.

mod flow;
mod golden;
mod refused;
mod streams;
