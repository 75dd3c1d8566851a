//! Split rings on the backend's side: what the frontend says of them, until a device can run one.
//!
//! A ring runs while it has memory, a size, addresses and a kick, and is enabled; then the device has it. Whatever changes
//! takes it back first, except for what can change under a running ring: the memory, of which each request takes the
//! latest, and the call. A frontend may wait for its answer to `SET_MEM_TABLE` before it answers the request that the ring
//! waits for; so that message waits for no ring.
//!
//! Packed rings and polled rings (a kick without a descriptor) are refused. Guest memory is mapped: a frontend that
//! shortens its memory kills the backend, which trusts it.
//!
//! Specification: vhost-user, "Ring states".

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use base::Event;
use base::SafeDescriptor;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio_queue::Queue;
use virtio_queue::QueueT;
use vm_memory::GuestAddress;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryAtomic;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestRegionMmap;

use super::serve::PROTOCOL_FEATURES;

/// How large a ring can be.
pub const MAX_RING_SIZE: u16 = 1024;

/// The driver says at which request it wants to be interrupted.
pub const EVENT_IDX: u64 = 1 << 29;
/// Descriptors in tables of their own.
pub const INDIRECT: u64 = 1 << 28;
/// The device is no legacy one.
pub const VERSION_1: u64 = 1 << 32;

/// Guest memory that can be exchanged under its users.
pub type SharedMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// How to interrupt the driver; the frontend can change it at any time.
#[derive(Clone, Debug, Default)]
pub struct Call {
    event: Arc<Mutex<Option<Event>>>,
}

impl Call {
    /// Interrupts the driver, if it wants to be.
    ///
    /// # Errors
    /// Those of the system.
    pub fn signal(&self) -> io::Result<()> {
        let event = self.event.lock().unwrap_or_else(PoisonError::into_inner);
        event.as_ref().map_or(Ok(()), Event::signal)?;
        Ok(())
    }

    fn set(&self, event: Option<Event>) {
        *self.event.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }
}

/// A ring that runs.
#[derive(Debug)]
pub struct Ring {
    /// Its state, with addresses of the guest.
    pub queue: Queue,
    /// The memory that it is in.
    pub memory: SharedMemory,
    /// Signalled by the driver after it made requests available.
    pub kick: Event,
    /// Signalled after requests are used.
    pub call: Call,
}

/// A device's side of its rings. All calls come from the serving thread.
pub trait RingDevice {
    /// The ring runs: the device processes what is available, and then what each kick announces.
    ///
    /// # Errors
    /// The ring does not run; the frontend's message fails.
    fn start(&mut self, index: u16, ring: Ring) -> io::Result<()>;

    /// The ring runs no longer: no request is half done when this returns. Gives the ring back.
    ///
    /// # Errors
    /// It is lost; the frontend's message fails.
    fn stop(&mut self, index: u16) -> io::Result<Ring>;
}

/// Where a ring's parts are, in addresses of the frontend's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

/// What is known of one ring.
#[derive(Debug, Default)]
struct Setup {
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<Event>,
    call: Call,
    enabled: bool,
    running: bool,
}

/// A piece of guest memory in the frontend's address space.
#[derive(Clone, Copy, Debug)]
struct Piece {
    user: u64,
    guest: u64,
    len: u64,
}

/// All rings of one connection.
#[derive(Debug)]
pub struct Rings {
    features: u64,
    memory: Option<SharedMemory>,
    pieces: Vec<Piece>,
    setups: Vec<Setup>,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn event(file: File) -> Event {
    Event::from(SafeDescriptor::from(file))
}

impl Rings {
    /// Makes `count` rings of which nothing is known.
    pub fn new(count: u16) -> Self {
        Self {
            features: 0,
            memory: None,
            pieces: Vec::new(),
            setups: (0..count).map(|_| Setup::default()).collect(),
        }
    }

    /// Takes what the driver has accepted.
    ///
    /// # Errors
    /// Those of the device, which is asked to start rings that need not be enabled.
    pub fn set_features(&mut self, features: u64, device: &mut dyn RingDevice) -> io::Result<()> {
        self.features = features;
        (0..self.setups.len()).try_for_each(|at| self.update(at, device))
    }

    /// Takes the guest's memory. Rings that run go on in it, at their addresses of the guest.
    ///
    /// # Errors
    /// If it can't be mapped; the memory from before is still there.
    pub fn set_memory(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        device: &mut dyn RingDevice,
    ) -> io::Result<()> {
        let mut mapped = Vec::new();
        let mut pieces = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let guest = GuestAddress(region.guest_phys_addr);
            let mapping = region.mmap_region(file).map_err(io::Error::other)?;
            let mapping = GuestRegionMmap::new(mapping, guest)
                .ok_or_else(|| invalid("a region beyond the last address"))?;
            mapped.push(mapping);
            pieces.push(Piece {
                user: region.user_addr,
                guest: region.guest_phys_addr,
                len: region.memory_size,
            });
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        self.pieces = pieces;
        match &self.memory {
            Some(shared) => shared
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .replace(memory),
            None => self.memory = Some(SharedMemory::new(memory)),
        }
        (0..self.setups.len()).try_for_each(|at| self.update(at, device))
    }

    /// Sets a ring's size.
    ///
    /// # Errors
    /// If it is no power of two or too large; those of the device.
    pub fn set_size(
        &mut self,
        index: u32,
        size: u32,
        device: &mut dyn RingDevice,
    ) -> io::Result<()> {
        let size = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= MAX_RING_SIZE)
            .ok_or_else(|| invalid("a ring's size is a power of two up to 1024"))?;
        self.change(index, device, |setup| setup.size = size)
    }

    /// Sets where a ring is.
    ///
    /// # Errors
    /// Those of the device, which is asked to start the ring if that was all that lacked.
    pub fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
        device: &mut dyn RingDevice,
    ) -> io::Result<()> {
        self.change(index, device, |setup| setup.addresses = Some(addresses))
    }

    /// Sets the available index at which a ring starts.
    ///
    /// # Errors
    /// If the index has more than 16 bits, as a packed ring's, or the ring runs.
    pub fn set_base(&mut self, index: u32, base: u32) -> io::Result<()> {
        let base = u16::try_from(base).map_err(|_| invalid("the base of a packed ring"))?;
        let at = self.place(index)?;
        let setup = &mut self.setups[at];
        if setup.running {
            return Err(invalid("the base of a ring that runs"));
        }
        setup.base = base;
        Ok(())
    }

    /// Stops a ring and returns its next available index.
    ///
    /// # Errors
    /// Those of the device.
    pub fn take_base(&mut self, index: u32, device: &mut dyn RingDevice) -> io::Result<u16> {
        let at = self.place(index)?;
        self.stop(at, device)?;
        // It starts again with the next kick that the frontend sends.
        self.setups[at].kick = None;
        Ok(self.setups[at].base)
    }

    /// Sets a ring's kick.
    ///
    /// # Errors
    /// For a ring that is to be polled; those of the device.
    pub fn set_kick(
        &mut self,
        index: u32,
        kick: Option<File>,
        device: &mut dyn RingDevice,
    ) -> io::Result<()> {
        let kick = kick.ok_or_else(|| invalid("a ring without a kick"))?;
        self.change(index, device, |setup| setup.kick = Some(event(kick)))
    }

    /// Sets a ring's call; without one the driver is not interrupted.
    ///
    /// # Errors
    /// If there is no such ring.
    pub fn set_call(&mut self, index: u32, call: Option<File>) -> io::Result<()> {
        let at = self.place(index)?;
        self.setups[at].call.set(call.map(event));
        Ok(())
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// Those of the device.
    pub fn set_enabled(
        &mut self,
        index: u32,
        enabled: bool,
        device: &mut dyn RingDevice,
    ) -> io::Result<()> {
        let at = self.place(index)?;
        self.setups[at].enabled = enabled;
        self.update(at, device)
    }

    /// Forgets everything but the memory. The device has given up its rings by itself, whatever they were doing.
    pub fn reset(&mut self) {
        for setup in &mut self.setups {
            *setup = Setup::default();
        }
        self.features = 0;
    }

    fn place(&self, index: u32) -> io::Result<usize> {
        usize::try_from(index)
            .ok()
            .filter(|at| *at < self.setups.len())
            .ok_or_else(|| invalid("no such ring"))
    }

    /// Changes something that can't change under a running ring.
    fn change(
        &mut self,
        index: u32,
        device: &mut dyn RingDevice,
        change: impl FnOnce(&mut Setup),
    ) -> io::Result<()> {
        let at = self.place(index)?;
        self.stop(at, device)?;
        change(&mut self.setups[at]);
        self.update(at, device)
    }

    /// Starts or stops a ring, as it should be.
    fn update(&mut self, at: usize, device: &mut dyn RingDevice) -> io::Result<()> {
        let setup = &self.setups[at];
        let enabled = setup.enabled || self.features & PROTOCOL_FEATURES == 0;
        match (enabled && self.is_ready(setup), setup.running) {
            (true, false) => self.start(at, device),
            (false, true) => self.stop(at, device),
            _ => Ok(()),
        }
    }

    fn is_ready(&self, setup: &Setup) -> bool {
        let has_kick = setup.running || setup.kick.is_some();
        self.memory.is_some() && setup.size != 0 && setup.addresses.is_some() && has_kick
    }

    /// Starts a ring. One that can't be started loses its kick, so that it can be set up anew.
    fn start(&mut self, at: usize, device: &mut dyn RingDevice) -> io::Result<()> {
        let kick = self.setups[at].kick.take();
        let kick = kick.ok_or_else(|| invalid("a ring without a kick"))?;
        let (memory, queue) = self.queue(&self.setups[at])?;
        let index = index(at)?;
        let setup = &mut self.setups[at];
        let ring = Ring {
            queue,
            memory,
            kick,
            call: setup.call.clone(),
        };
        device.start(index, ring)?;
        setup.running = true;
        Ok(())
    }

    fn stop(&mut self, at: usize, device: &mut dyn RingDevice) -> io::Result<()> {
        let setup = &mut self.setups[at];
        if std::mem::replace(&mut setup.running, false) {
            let ring = device.stop(index(at)?)?;
            setup.base = ring.queue.next_avail();
            setup.kick = Some(ring.kick);
        }
        Ok(())
    }

    /// Makes the queue of a ring of which everything is known.
    fn queue(&self, setup: &Setup) -> io::Result<(SharedMemory, Queue)> {
        let (Some(memory), Some(addresses)) = (&self.memory, setup.addresses) else {
            return Err(invalid("a ring without memory"));
        };
        let mut queue = Queue::new(MAX_RING_SIZE).map_err(io::Error::other)?;
        queue.try_set_size(setup.size).map_err(io::Error::other)?;
        let descriptors = self.translate(addresses.descriptors)?;
        let available = self.translate(addresses.available)?;
        let used = self.translate(addresses.used)?;
        queue
            .try_set_desc_table_address(descriptors)
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .and_then(|()| queue.try_set_used_ring_address(used))
            .map_err(io::Error::other)?;
        queue.set_event_idx(self.features & EVENT_IDX != 0);
        queue.set_ready(true);
        let view = memory.memory();
        if !queue.is_valid(&*view) {
            return Err(invalid("a ring that is not in the guest's memory"));
        }
        let next_used = queue
            .used_idx(&*view, Ordering::Acquire)
            .map_err(io::Error::other)?;
        queue.set_next_avail(setup.base);
        queue.set_next_used(next_used.0);
        Ok((memory.clone(), queue))
    }

    /// Finds the guest's address of one of the frontend's.
    fn translate(&self, user: u64) -> io::Result<GuestAddress> {
        let found = self.pieces.iter().find_map(|piece| {
            let offset = user
                .checked_sub(piece.user)
                .filter(|offset| *offset < piece.len)?;
            piece.guest.checked_add(offset)
        });
        found
            .map(GuestAddress)
            .ok_or_else(|| invalid("an address that is not in the guest's memory"))
    }
}

fn index(at: usize) -> io::Result<u16> {
    u16::try_from(at).map_err(|_| invalid("no such ring"))
}

#[cfg(test)]
mod tests;
