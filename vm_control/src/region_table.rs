//! The live mappings of one region, and the rules that a new or a going mapping must keep.
//!
//! Pure bookkeeping: it touches no memory and no descriptor.

use base::Error;
use base::Protection;
use base::page_size;
use serde::Deserialize;
use serde::Serialize;

use crate::extents::Extents;
use crate::extents::Position;
use crate::limits::Usage;

/// What a mapping shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MappingKind {
    /// A dma-buf.
    DmaBuf,
    /// Memory of the VMM's process.
    External,
    /// A regular file.
    File,
    /// A memfd.
    Memfd,
    /// An allocation of a Vulkan driver.
    Vulkan,
}

/// One live mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Bytes from the region's start, page aligned.
    pub offset: u64,
    /// Bytes that were asked for.
    pub len: u64,
    /// What the guest may do with it.
    pub protection: Protection,
    /// What it shows.
    pub kind: MappingKind,
}

impl Mapping {
    /// The length rounded up to a page: what bounds, overlap and quotas see.
    pub fn footprint(&self) -> u64 {
        // A mapping in a table passed `footprint` once.
        footprint(self.len).unwrap_or(self.len)
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.footprint())
    }
}

/// Returns `len` rounded up to a page.
///
/// # Errors
/// EINVAL for 0, ERANGE where the result does not fit.
pub fn footprint(len: u64) -> Result<u64, Error> {
    if len == 0 {
        return Err(Error::new(libc::EINVAL));
    }
    len.checked_next_multiple_of(page())
        .ok_or(Error::new(libc::ERANGE))
}

fn page() -> u64 {
    page_size() as u64
}

/// A checked place for a new mapping. Valid until the table changes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    position: Position,
    offset: u64,
    len: u64,
    footprint: u64,
}

impl Place {
    /// The mapping's bytes rounded up to a page.
    pub fn footprint(&self) -> u64 {
        self.footprint
    }
}

/// The mappings of one region.
#[derive(Debug)]
pub struct RegionTable {
    len: u64,
    extents: Extents,
}

impl RegionTable {
    /// Makes an empty table for a region of `len` bytes.
    pub fn new(len: u64) -> Self {
        Self {
            len,
            extents: Extents::default(),
        }
    }

    /// Checks that `len` bytes can be mapped at `offset`.
    ///
    /// # Errors
    /// EINVAL: `len` is 0 or `offset` not page aligned. ERANGE: outside the region. EEXIST: a live mapping is in the way.
    ///
    /// # Source
    /// vhost-user specification, SHMEM_MAP: the range must be valid and must not overlap an existing mapping.
    pub fn check_map(&self, offset: u64, len: u64) -> Result<Place, Error> {
        let footprint = self.check_range(offset, len)?;
        let seen = self.extents.neighbours(offset);
        let overlaps = seen.before.is_some_and(|before| before.end() > offset)
            || seen
                .after
                .is_some_and(|after| after.offset < offset + footprint);
        if overlaps {
            return Err(Error::new(libc::EEXIST));
        }
        Ok(Place {
            position: seen.position,
            offset,
            len,
            footprint,
        })
    }

    /// Notes a mapping at a place that [`RegionTable::check_map`] returned for the table as it is.
    pub fn insert(&mut self, place: Place, protection: Protection, kind: MappingKind) {
        let mapping = Mapping {
            offset: place.offset,
            len: place.len,
            protection,
            kind,
        };
        self.extents.insert(place.position, mapping);
    }

    /// Finds the mapping that an unmap of `len` bytes at `offset` names: the whole of it, by its length or its footprint.
    /// With `offset_only` the length is not looked at.
    ///
    /// # Errors
    /// EINVAL: `len` is 0 or `offset` not page aligned. ERANGE: outside the region. ENOENT: no such mapping.
    ///
    /// # Source
    /// vhost-user specification, SHMEM_UNMAP: the range must be the entirety of one mapping.
    pub fn check_unmap(&self, offset: u64, len: u64, offset_only: bool) -> Result<Mapping, Error> {
        self.check_range(offset, len)?;
        self.at(offset)
            .filter(|found| offset_only || len == found.len || len == found.footprint())
            .ok_or(Error::new(libc::ENOENT))
    }

    /// Returns the mapping that begins at `offset`.
    pub fn at(&self, offset: u64) -> Option<Mapping> {
        self.extents
            .neighbours(offset)
            .before
            .filter(|mapping| mapping.offset == offset)
    }

    /// Forgets the mapping that begins at `offset`.
    pub fn remove(&mut self, offset: u64) -> Option<Mapping> {
        self.extents.remove(offset)
    }

    /// Forgets all mappings and returns what they used.
    pub(crate) fn take_all(&mut self) -> Usage {
        let all = self.iter().fold(Usage::default(), |all, mapping| Usage {
            mappings: all.mappings.saturating_add(1),
            bytes: all.bytes.saturating_add(mapping.footprint()),
        });
        self.extents.clear();
        all
    }

    /// The number of live mappings.
    pub fn mappings(&self) -> usize {
        self.extents.len()
    }

    /// All live mappings, by their offsets.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.extents.iter()
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<u64, Error> {
        if !offset.is_multiple_of(page()) {
            return Err(Error::new(libc::EINVAL));
        }
        let footprint = footprint(len)?;
        match offset.checked_add(footprint) {
            Some(end) if end <= self.len => Ok(footprint),
            _ => Err(Error::new(libc::ERANGE)),
        }
    }
}

#[cfg(test)]
mod tests;
