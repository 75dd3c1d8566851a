//! virtio-mmio, version 2, for the reference VMM: a bus for the guest's memory exits, the registers of one device,
//! and the trait of the device behind them.
//!
//! The registers are a pure model: no KVM, no threads, no system calls but the interrupt's eventfd. What a driver does
//! wrong is ignored as the specification wants it or leaves the status bit unset that it asked for; nothing that a
//! guest writes can fail, panic or block here. A device may block in its own calls: see [`VirtioDevice`].
//!
//! Specification: virtio 1.3, section 4.2 "Virtio Over MMIO".

#![forbid(unsafe_code)]

mod bus;
mod device;
mod interrupt;
pub mod register;
mod transport;

#[cfg(test)]
mod tests;

pub use bus::Bus;
pub use bus::BusDevice;
pub use bus::BusError;
pub use device::ActivateError;
pub use device::Activation;
pub use device::QueueSetup;
pub use device::SharedMemoryWindow;
pub use device::VirtioDevice;
pub use interrupt::InterruptLine;
pub use transport::VirtioMmio;
