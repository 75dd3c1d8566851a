//! The machine itself: guest memory, slots, and orders to the guest or, without one, the host's own access.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use base::Event;

use super::Access;
use super::Error;
use super::FaultCallback;
use super::GuestFault;
use super::GuestMemory;
use super::HolePolicy;
use super::MemslotConfig;
use super::agent;
use super::agent::MAX_ORDER_BYTES;
use super::backing::Slots;
use super::backing::check_reach;
use super::cpu;
use super::doorbell::Doorbells;
use super::driver;
use super::driver::DriverConfig;
use super::driver::GuestDriver;
use super::guest::Guest;
use super::hole::Holes;
use super::host;
use super::irq::IrqLine;
use super::irq::Lines;
use super::kvm::VirtualMachine;
use super::vcpu::Order;
use crate::vmm::mmio::Bus;

/// Who carries out what is asked of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// The agent in a KVM guest.
    Kvm,
    /// The host, since there is no guest.
    None,
}

impl GuestKind {
    /// Returns who sees what a peek shows: `guest` or `host`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Kvm => "guest",
            Self::None => "host",
        }
    }
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::None => "none",
        })
    }
}

/// What a machine is made of.
pub struct MachineConfig {
    /// The guest's RAM; at least 6 MiB with a KVM guest.
    pub ram_bytes: u64,
    /// What a guest access without memory behind it does.
    pub holes: HolePolicy,
    /// How long the guest has for an order, that is, for each MiB of an access.
    pub deadline: Duration,
    /// Who is told of guest accesses without memory behind them.
    pub on_fault: FaultCallback,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            ram_bytes: 16 << 20,
            holes: HolePolicy::default(),
            deadline: Duration::from_secs(10),
            on_fault: Box::new(|_| ()),
        }
    }
}

/// A sum that the guest made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// What [`super::host_sum`] gives for the same bytes.
    pub total: u64,
    /// What the access met.
    pub access: Access,
}

/// What the machine, its slots and its vCPU have in common.
pub(super) struct Shared {
    pub(super) memory: GuestMemory,
    pub(super) slots: Arc<Slots>,
    holes: Mutex<Holes>,
    pub(super) lines: Lines,
    /// The devices that the guest's memory exits go to.
    pub(super) bus: Bus,
    /// Declared after the slots and the memory, and dropped with the last user of the machine.
    pub(super) vm: Option<VirtualMachine>,
}

impl Shared {
    /// Locks what completes accesses to holes.
    pub(super) fn holes(&self) -> MutexGuard<'_, Holes> {
        self.holes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A region's place in the guest. Dropping it takes the region out of the guest and then lets go of its backing.
pub struct Memslot {
    shared: Arc<Shared>,
    guest_address: u64,
    /// KVM's number for it.
    slot: Option<u32>,
}

impl Memslot {
    /// Returns where the guest sees the region.
    pub fn guest_address(&self) -> u64 {
        self.guest_address
    }
}

impl Drop for Memslot {
    fn drop(&mut self) {
        let backing = self.shared.slots.remove(self.guest_address);
        if let Some(slot) = &backing {
            let len = slot.backing.len();
            self.shared.holes().forget(self.guest_address, len);
        }
        if let (Some(vm), Some(slot)) = (&self.shared.vm, self.slot)
            && let Err(error) = vm.remove(slot, self.guest_address)
        {
            // The guest could still reach the range: it must not be given to anybody else.
            tracing::error!(
                "memslot at {:#x}: {error:#}; its range stays reserved",
                self.guest_address
            );
            std::mem::forget(backing);
        }
    }
}

/// A machine. All methods take `&self`; orders of several threads queue up.
pub struct Machine {
    /// Before `shared`: the vCPU's thread ends first.
    guest: Option<Guest>,
    shared: Arc<Shared>,
}

impl Machine {
    /// Makes a machine with a KVM guest.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Permission`] if there is no usable `/dev/kvm`; otherwise what KVM says.
    pub fn open(config: MachineConfig) -> Result<Self, Error> {
        let deadline = config.deadline;
        if config.ram_bytes < driver::MIN_RAM_BYTES {
            return Err(super::MemoryError::Size {
                len: config.ram_bytes,
            }
            .into());
        }
        let memory = GuestMemory::new(config.ram_bytes)?;
        cpu::load(&memory)?;
        agent::load(&memory)?;
        driver::load(&memory)?;
        let (vm, vcpu) = VirtualMachine::open(memory.clone())?;
        let shared = Self::share(config, memory, Some(vm));
        let guest = Guest::start(vcpu, Arc::clone(&shared), deadline)?;
        Ok(Self {
            guest: Some(guest),
            shared,
        })
    }

    /// Makes a machine without a guest: the host answers.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no memory to be had.
    pub fn without_guest(config: MachineConfig) -> Result<Self, Error> {
        let memory = GuestMemory::new(config.ram_bytes)?;
        Ok(Self {
            guest: None,
            shared: Self::share(config, memory, None),
        })
    }

    fn share(
        config: MachineConfig,
        memory: GuestMemory,
        vm: Option<VirtualMachine>,
    ) -> Arc<Shared> {
        let slots = Arc::new(Slots::default());
        let holes = Mutex::new(Holes::new(
            config.holes,
            Arc::clone(&slots),
            config.on_fault,
        ));
        Arc::new(Shared {
            memory,
            slots,
            holes,
            lines: Lines::default(),
            bus: Bus::new(),
            vm,
        })
    }

    /// Tells who answers.
    pub fn kind(&self) -> GuestKind {
        if self.guest.is_some() {
            GuestKind::Kvm
        } else {
            GuestKind::None
        }
    }

    /// Returns the guest's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Returns the bus of the devices that have no memory behind their addresses.
    pub fn bus(&self) -> &Bus {
        &self.shared.bus
    }

    /// Lets an event interrupt the guest, until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::NoLine`] if all are in use; [`Error::Kvm`] for an event that is connected already.
    pub fn connect_interrupt(&self, event: &Event) -> Result<IrqLine, Error> {
        IrqLine::connect(&self.shared, event)
    }

    /// Returns what makes doorbells at an address.
    pub fn doorbells(&self, address: u64) -> Doorbells {
        Doorbells::new(&self.shared, address)
    }

    /// Gives orders that are yet to come another deadline.
    pub fn set_deadline(&self, deadline: Duration) {
        if let Some(guest) = &self.guest {
            guest.set_deadline(deadline);
        }
    }

    /// Makes the guest's driver for the virtio-mmio device at an address.
    ///
    /// # Errors
    /// [`Error::NoGuest`]; [`Error::DriverQueues`] for queues that it has no room for.
    pub fn driver(
        &self,
        registers: u64,
        line: IrqLine,
        config: DriverConfig,
    ) -> Result<GuestDriver<'_>, Error> {
        self.guest()?;
        GuestDriver::new(self, registers, line, config)
    }

    /// Returns the guest, if there is one and it has not stopped.
    pub(super) fn guest(&self) -> Result<&Guest, Error> {
        match self.stopped() {
            Some(fault) => Err(Error::Stopped(fault)),
            None => self.guest.as_ref().ok_or(Error::NoGuest),
        }
    }

    /// Returns the fault that stopped the VM, under [`HolePolicy::Stop`].
    pub fn stopped(&self) -> Option<GuestFault> {
        self.shared.holes().stopped().cloned()
    }

    /// Puts a region into the guest's address space, until the guard is dropped.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::OutOfReach`] or [`Error::Overlap`] for a wrong range, [`Error::Kvm`] if KVM
    /// does not want it. Nothing has changed then.
    pub fn add_memslot(&self, config: MemslotConfig) -> Result<Memslot, Error> {
        let (guest_address, len) = (config.guest_address, config.backing.len());
        if self.shared.memory.overlaps(guest_address, len) {
            return Err(Error::Overlap { guest_address, len });
        }
        self.shared.slots.insert(config.clone())?;
        let slot = match self
            .shared
            .vm
            .as_ref()
            .map(|vm| vm.add_slot(&config))
            .transpose()
        {
            Ok(slot) => slot,
            Err(error) => {
                self.shared.slots.remove(guest_address);
                return Err(error);
            }
        };
        Ok(Memslot {
            shared: Arc::clone(&self.shared),
            guest_address,
            slot,
        })
    }

    /// Reads guest physical memory as the guest sees it. Bytes that no memory is behind are what the policy says.
    ///
    /// # Errors
    /// [`Error::OutOfReach`]; [`Error::Deadline`] if the guest hangs; [`Error::Stopped`] under [`HolePolicy::Stop`].
    pub fn peek(&self, guest_address: u64, out: &mut [u8]) -> Result<Access, Error> {
        self.check(guest_address, out.len() as u64)?;
        let Some(guest) = &self.guest else {
            return host::peek(&self.shared, guest_address, out);
        };
        let mut access = Access::default();
        let mut address = guest_address;
        for piece in out.chunks_mut(ORDER_BYTES) {
            let len = piece.len() as u64;
            let answer = guest.order(Order::Peek {
                guest_address: address,
                len,
            })?;
            piece.copy_from_slice(&answer.bytes);
            access.append(answer.access);
            address += len;
        }
        Ok(access)
    }

    /// Writes guest physical memory as the guest would. Bytes that no writable memory is behind go where the policy
    /// says.
    ///
    /// # Errors
    /// As [`Self::peek`].
    pub fn poke(&self, guest_address: u64, bytes: &[u8]) -> Result<Access, Error> {
        self.check(guest_address, bytes.len() as u64)?;
        let Some(guest) = &self.guest else {
            return host::poke(&self.shared, guest_address, bytes);
        };
        let mut access = Access::default();
        let mut address = guest_address;
        for piece in bytes.chunks(ORDER_BYTES) {
            let answer = guest.order(Order::Poke {
                guest_address: address,
                bytes: piece.to_vec(),
            })?;
            access.append(answer.access);
            address += piece.len() as u64;
        }
        Ok(access)
    }

    /// Sums guest physical memory as the guest sees it; see [`super::host_sum`].
    ///
    /// # Errors
    /// As [`Self::peek`].
    pub fn sum(&self, guest_address: u64, len: u64) -> Result<Sum, Error> {
        let end = self.check(guest_address, len)?;
        let mut sum = Sum {
            total: 0,
            access: Access::default(),
        };
        let mut address = guest_address;
        while address < end {
            let len = (end - address).min(MAX_ORDER_BYTES);
            let access = match &self.guest {
                Some(guest) => {
                    let answer = guest.order(Order::Sum {
                        guest_address: address,
                        len,
                        total: sum.total,
                    })?;
                    sum.total = answer.total;
                    answer.access
                }
                None => {
                    let mut bytes = vec![0; usize::try_from(len).expect("at most MAX_ORDER_BYTES")];
                    let access = host::peek(&self.shared, address, &mut bytes)?;
                    sum.total = agent::continue_sum(sum.total, &bytes);
                    access
                }
            };
            sum.access.append(access);
            address += len;
        }
        Ok(sum)
    }

    /// Checks that a range can be addressed and that the VM has not stopped; returns the range's end.
    fn check(&self, guest_address: u64, len: u64) -> Result<u64, Error> {
        match self.stopped() {
            Some(fault) => Err(Error::Stopped(fault)),
            None => check_reach(guest_address, len),
        }
    }
}

/// [`MAX_ORDER_BYTES`] as a length of slices.
#[expect(clippy::cast_possible_truncation, reason = "a MiB")]
const ORDER_BYTES: usize = MAX_ORDER_BYTES as usize;
