//! The whole service, over tubes, with real descriptors.

mod closing;
mod external;
mod fixture;
mod lifecycle;
mod refusals;
mod stalls;
