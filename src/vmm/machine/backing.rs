//! What lies behind the guest addresses of a shared memory region, and the table of all of them.

// UNSAFETY: Backing is an unsafe trait, because the address that it gives is put under the guest.
#![expect(
    unsafe_code,
    reason = "declares and implements the unsafe trait Backing"
)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use base::MappedRegion;
use base::MemoryMappingArena;
use vm_control::Arena;

use super::Error;
use super::PAGE_BYTES;
use super::layout::ADDRESS_LIMIT;

/// A reserved range of this process's address space that a region of the guest is made of.
///
/// Mappings may come and go inside the range at any time; the range itself stays.
///
/// # Safety
/// 1. From `host_address()`, `len()` bytes are reserved by the value for as long as it lives: nothing else of this
///    process is ever mapped there, and no Rust object lives there.
/// 2. Both functions return the same values at every call, multiples of the page size.
#[expect(
    clippy::len_without_is_empty,
    reason = "a region is never empty: add_memslot refuses it"
)]
pub unsafe trait Backing: Send + Sync {
    /// Returns where the range starts in this process.
    fn host_address(&self) -> u64;
    /// Returns the bytes of the range.
    fn len(&self) -> u64;
    /// Copies bytes out of the range without trusting what is mapped there.
    ///
    /// # Errors
    /// The system's error if a byte has no memory behind it; never a signal.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Copies bytes into the range without trusting what is mapped there.
    ///
    /// # Errors
    /// The system's error if a byte has no writable memory behind it; never a signal.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

// SAFETY: an arena reserves its range until it is dropped and never moves it. All that is mapped there comes through
// the arena, and none of it is a Rust object.
unsafe impl Backing for MemoryMappingArena {
    fn host_address(&self) -> u64 {
        self.as_ptr().expose_provenance() as u64
    }

    fn len(&self) -> u64 {
        self.size() as u64
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        Ok(Self::read_at(self, offset_in_memory(offset)?, out)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Ok(Self::write_at(self, offset_in_memory(offset)?, bytes)?)
    }
}

// SAFETY: it is a shared MemoryMappingArena; the guard of a slot holds one of the shares.
unsafe impl Backing for Arena {
    fn host_address(&self) -> u64 {
        self.host_address()
    }

    fn len(&self) -> u64 {
        self.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        Ok(self.read_at(offset, out)?)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Ok(self.write_at(offset, bytes)?)
    }
}

/// An offset as the host counts bytes in memory.
fn offset_in_memory(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A range of guest addresses and what lies behind it.
#[derive(Clone)]
pub struct MemslotConfig {
    /// What faults call it: the device and the region.
    pub name: String,
    /// Where the guest sees it.
    pub guest_address: u64,
    /// What the guest sees there; kept until the slot is gone.
    pub backing: Arc<dyn Backing>,
    /// Whether the guest may only read, whatever the mappings in the range allow.
    pub read_only: bool,
}

impl MemslotConfig {
    /// Returns the guest address after the last byte. Checked by [`Slots::insert`].
    fn end(&self) -> u64 {
        self.guest_address + self.backing.len()
    }
}

/// The live slots by guest address. Pure bookkeeping; KVM is told elsewhere.
#[derive(Default)]
pub(super) struct Slots {
    table: Mutex<BTreeMap<u64, Arc<MemslotConfig>>>,
}

impl Slots {
    /// Enters a slot after checking its shape and that its addresses are free.
    pub(super) fn insert(&self, config: MemslotConfig) -> Result<(), Error> {
        let (guest_address, len) = (config.guest_address, config.backing.len());
        if len == 0 || !(guest_address | len).is_multiple_of(PAGE_BYTES) {
            return Err(Error::Unaligned { guest_address, len });
        }
        let end = check_reach(guest_address, len)?;
        let mut table = self.lock();
        if table
            .range(..end)
            .next_back()
            .is_some_and(|(_, below)| below.end() > guest_address)
        {
            return Err(Error::Overlap { guest_address, len });
        }
        table.insert(guest_address, Arc::new(config));
        Ok(())
    }

    /// Forgets the slot at exactly this address and returns it, so that the caller decides when the backing goes.
    pub(super) fn remove(&self, guest_address: u64) -> Option<Arc<MemslotConfig>> {
        self.lock().remove(&guest_address)
    }

    /// Finds the slot that covers an address, and the offset in it.
    pub(super) fn find(&self, address: u64) -> Option<(Arc<MemslotConfig>, u64)> {
        let table = self.lock();
        let (_, slot) = table.range(..=address).next_back()?;
        (address < slot.end()).then(|| (Arc::clone(slot), address - slot.guest_address))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<MemslotConfig>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that the guest's page tables reach a range and returns its end.
pub(super) fn check_reach(guest_address: u64, len: u64) -> Result<u64, Error> {
    guest_address
        .checked_add(len)
        .filter(|&end| end <= ADDRESS_LIMIT)
        .ok_or(Error::OutOfReach {
            guest_address,
            len,
            limit: ADDRESS_LIMIT,
        })
}
