//! The machine that the reference VMM runs its guest in: guest memory, a KVM virtual machine with one vCPU, and the
//! programs in it: an agent that reads, writes and sums guest physical memory for the host, and a virtio driver.
//!
//! What is asked of the machine goes through the guest where there is one, so an answer shows what a guest sees: a
//! file that a backend mapped, a page that was mapped anew, a hole. Without KVM the same calls are served on the
//! host, through [`Backing::read_at`] and [`Backing::write_at`], and [`Machine::kind`] says so.
//!
//! An access that meets no memory (a hole in a region, a page beyond the end of a truncated file, a write to what
//! is mapped read-only) never ends the VM by itself: see [`hole`]. What KVM reports of it, and why the guest is as it is, is
//! written down in `docs/guest.md`.

mod agent;
mod backing;
mod cpu;
mod doorbell;
pub mod driver;
mod error;
mod guest;
pub mod hole;
mod host;
mod irq;
mod kvm;
mod layout;
mod listing;
#[expect(
    clippy::module_inception,
    reason = "the type that the folder is named for"
)]
mod machine;
mod memory;
mod vcpu;

#[cfg(test)]
pub(super) mod tests;

pub use agent::host_sum;
pub use backing::Backing;
pub use backing::MemslotConfig;
pub use doorbell::Doorbell;
pub use doorbell::Doorbells;
pub use driver::DriverConfig;
pub use driver::DriverStep;
pub use driver::GuestDriver;
pub use driver::Started;
pub use error::Error;
pub use hole::Access;
pub use hole::FaultCallback;
pub use hole::FaultKind;
pub use hole::GuestFault;
pub use hole::HolePolicy;
pub use hole::Place;
pub use irq::IrqLine;
pub use layout::LayoutError;
pub use layout::RegionLayout;
pub use machine::GuestKind;
pub use machine::Machine;
pub use machine::MachineConfig;
pub use machine::Memslot;
pub use machine::Sum;
pub use memory::GuestMemory;
pub use memory::MemoryError;
pub use memory::MemoryRegion;

/// Bytes of a page; a fault concerns one page.
pub const PAGE_BYTES: u64 = 4096;
/// [`PAGE_BYTES`] as the length of an array.
const PAGE_LEN: usize = 4096;
