//! Descriptors, events, tubes and mappings, in the shape of crosvm's `base`.
//!
//! Names and signatures follow crosvm's where both have an item; what is behind them is Portcullis's own, on `rustix` and,
//! where that has no safe call, `libc`. This is one of two crates that contain `unsafe` to talk to the kernel. It knows
//! nothing of vhost, virtio or virtual machines.

// The derive macro names this crate by its name, in here as well.
extern crate self as base;

mod arena;
mod closer;
mod deadline;
mod descriptor;
mod errno;
mod event;
pub mod event_token;
mod guarded;
mod inspect;
mod mapped_range;
mod mapped_region;
mod memory_mapping;
mod own_memory;
pub mod packet;
mod pidfd;
mod protection;
mod rate_limit;
pub mod scm;
mod seals;
mod shared_memory;
mod signal_fd;
mod transfer;
mod tube;
mod wait_context;
mod worker_thread;

pub use arena::MemoryMappingArena;
pub use closer::Closer;
pub use closer::NoCloser;
pub(crate) use deadline::Deadline;
pub use descriptor::AsRawDescriptor;
pub use descriptor::Descriptor;
pub use descriptor::FromRawDescriptor;
pub use descriptor::IntoRawDescriptor;
pub use descriptor::RawDescriptor;
pub use descriptor::SafeDescriptor;
pub use errno::Error;
pub use errno::Result;
pub use event::Event;
pub use event::EventWaitResult;
pub use event_token::EventToken;
pub use guarded::GuardedTube;
pub use inspect::DescriptorInfo;
pub use inspect::DescriptorKind;
pub use inspect::inspect;
pub use mapped_region::MappedRegion;
pub use memory_mapping::MemoryMapping;
pub use memory_mapping::MemoryMappingBuilder;
pub use pidfd::Pidfd;
pub use protection::Protection;
pub use rate_limit::RateLimit;
pub use rustix::param::page_size;
pub use seals::Seals;
pub use seals::seal;
pub use seals::seals;
pub use shared_memory::SharedMemory;
pub use signal_fd::SignalFd;
pub use tracing::debug;
pub use tracing::error;
pub use tracing::info;
pub use tracing::trace;
pub use tracing::warn;
pub use transfer::DescriptorFault;
pub use tube::MAX_PACKET;
pub use tube::ReadNotifier;
pub use tube::RecvTube;
pub use tube::SendTube;
pub use tube::Tube;
pub use tube::TubeError;
pub use tube::TubeResult;
pub use wait_context::EventType;
pub use wait_context::TriggeredEvent;
pub use wait_context::WaitContext;
pub use worker_thread::WorkerThread;
