//! What can go wrong with a machine.

use std::time::Duration;

use thiserror::Error as ThisError;

use super::GuestFault;
use super::MemoryError;

/// Why a machine could not be made or an order was not carried out.
#[remain::sorted]
#[derive(Debug, ThisError)]
pub enum Error {
    /// The kernel's KVM speaks another version of its interface.
    #[error("/dev/kvm: interface version {version} instead of 12")]
    ApiVersion {
        /// The version that the kernel reported.
        version: i32,
    },
    /// The guest did not carry out an order in time; it has been reset and takes further orders.
    #[error("the guest did not answer within {deadline:?}; its vCPU was reset")]
    Deadline {
        /// The time that the order was given.
        deadline: Duration,
    },
    /// The guest's driver gave up on a device.
    #[error("the guest's driver for the device at {registers:#x}: {step}")]
    Driver {
        /// Where the device's registers should be.
        registers: u64,
        /// What failed.
        step: super::DriverStep,
    },
    /// The guest's driver has no room for such queues.
    #[error("the guest's driver can't set up {queues} queues of {queue_size} entries")]
    DriverQueues {
        /// How many were asked for.
        queues: u16,
        /// The entries of each.
        queue_size: u16,
    },
    /// The guest's driver can't make such a request.
    #[error(
        "the guest's driver can't put {request} bytes with room for {response} on queue {queue}"
    )]
    DriverRequest {
        /// The queue.
        queue: u16,
        /// The bytes of the request.
        request: usize,
        /// The bytes of the response.
        response: usize,
    },
    /// An event could not be duplicated for the kernel.
    #[error("an interrupt's eventfd could not be duplicated")]
    Event(#[source] base::Error),
    /// The guest stopped in the middle of an order; it has been reset and takes further orders.
    #[error("the guest stopped ({exit}) at instruction {instruction:#x}; its vCPU was reset")]
    GuestStopped {
        /// What KVM called it.
        exit: &'static str,
        /// The guest's instruction pointer.
        instruction: u64,
    },
    /// A KVM call failed.
    #[error("{operation} failed")]
    Kvm {
        /// The call.
        operation: &'static str,
        /// Its error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest memory could not be made or reached.
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    /// There is no `/dev/kvm`.
    #[error("/dev/kvm does not exist: load the kvm module, or run without a guest (--guest none)")]
    Missing,
    /// There is no guest that could do this.
    #[error("there is no guest to run a driver in: this needs /dev/kvm")]
    NoGuest,
    /// The guest tells no more interrupts apart.
    #[error("all {lines} interrupt lines of the guest are in use")]
    NoLine {
        /// How many there are.
        lines: u8,
    },
    /// `/dev/kvm` could not be opened, for an unusual reason.
    #[error("/dev/kvm cannot be opened")]
    Open {
        /// The error of `open`.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A range is not addressable by the guest.
    #[error(
        "guest range {guest_address:#x}+{len:#x} is beyond {limit:#x}, the end of what the guest can address"
    )]
    OutOfReach {
        /// Where the range starts.
        guest_address: u64,
        /// Its bytes.
        len: u64,
        /// The end of the guest's address space.
        limit: u64,
    },
    /// A memslot would cover guest addresses that are taken.
    #[error("guest range {guest_address:#x}+{len:#x} overlaps guest memory or another region")]
    Overlap {
        /// Where the range starts.
        guest_address: u64,
        /// Its bytes.
        len: u64,
    },
    /// `/dev/kvm` may not be opened by this user.
    #[error(
        "/dev/kvm may not be opened: join the group that owns it, or run without a guest (--guest none)"
    )]
    Permission,
    /// The guest met a hole and the policy says that the VM stops.
    #[error("the VM has stopped: {0}")]
    Stopped(GuestFault),
    /// A thread could not be started.
    #[error("the vCPU's thread could not be started")]
    Thread(#[source] std::io::Error),
    /// A memslot's address or length is not made of whole pages.
    #[error("memslot {guest_address:#x}+{len:#x} is empty or not made of whole pages")]
    Unaligned {
        /// Where the slot would start.
        guest_address: u64,
        /// Its bytes.
        len: u64,
    },
    /// The guest met a hole at an instruction that is not one of the agent's, and KVM did not say where.
    #[error(
        "instruction {instruction:#x} of the guest met a hole at an address that KVM does not tell"
    )]
    UnknownFault {
        /// The guest's instruction pointer.
        instruction: u64,
    },
    /// The vCPU's thread has ended.
    #[error("the vCPU has stopped for good")]
    VcpuGone,
}

impl Error {
    /// Wraps a KVM error with the name of the call.
    pub(super) fn kvm(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { operation, source }
    }
}
