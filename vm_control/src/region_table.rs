//! The live mappings of one region, and the rules for adding and removing them.
//!
//! Pure: nothing here maps anything. The service asks whether a request is acceptable ([`RegionTable::vacancy`],
//! [`RegionTable::find`]), lets the kernel carry it out, and only then tells the table. Quotas are counted elsewhere; the
//! table says what a mapping costs.
//!
//! The rules are those of the specification of vhost-user, "VHOST_USER_BACKEND_SHMEM_MAP", and where it is silent ours: an
//! offset is a multiple of the page size, a length need not be. What bounds, overlap and quotas see is the *footprint*,
//! the length rounded up to a page. An unmap names one whole mapping, by its length or by its footprint.

use std::fmt;

use base::Protection;
use serde::Deserialize;
use serde::Serialize;

use crate::extents::Extents;
use crate::extents::Neighbours;
use crate::extents::Position;
use crate::reason::Reason;

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
    /// An allocation of a Vulkan driver that the VMM has imported.
    Vulkan,
}

impl MappingKind {
    /// A short word for people and for JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DmaBuf => "dma-buf",
            Self::External => "external",
            Self::File => "file",
            Self::Memfd => "memfd",
            Self::Vulkan => "vulkan",
        }
    }
}

impl fmt::Display for MappingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One live mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Its length in bytes, as the device named it.
    pub len: u64,
    /// What the guest may do.
    pub protection: Protection,
    /// What is mapped.
    pub kind: MappingKind,
}

impl Mapping {
    /// The bytes that it takes up: its length in whole pages.
    pub fn footprint(&self, page_size: u64) -> u64 {
        // A mapping in the table has a footprint, or it would have been refused.
        self.len
            .checked_next_multiple_of(page_size)
            .unwrap_or(u64::MAX)
    }
}

/// Which unmap requests fit a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnmapRule {
    /// Those with its offset and its length or footprint.
    #[default]
    Exact,
    /// Those with its offset, whatever their length: for backends that send none.
    OffsetOnly,
}

/// A free range, as long as the table does not change.
#[derive(Clone, Copy, Debug)]
pub struct Vacancy {
    position: Position,
    offset: u64,
    len: u64,
    footprint: u64,
    areas: u64,
}

impl Vacancy {
    /// The bytes that a mapping here takes up.
    pub fn footprint(&self) -> u64 {
        self.footprint
    }

    /// How many more areas of address space there are with it, at most.
    pub fn areas(&self) -> u64 {
        self.areas
    }
}

/// A live mapping, as long as the table does not change.
#[derive(Clone, Copy, Debug)]
pub struct Occupied {
    position: Position,
    mapping: Mapping,
    footprint: u64,
    areas: u64,
}

impl Occupied {
    /// It.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The bytes that it takes up.
    pub fn footprint(&self) -> u64 {
        self.footprint
    }

    /// How many fewer areas of address space there are without it, at most.
    pub fn areas(&self) -> u64 {
        self.areas
    }
}

/// The table of one region.
#[derive(Debug)]
pub struct RegionTable {
    len: u64,
    page_size: u64,
    extents: Extents,
    bytes: u64,
    areas: u64,
}

impl RegionTable {
    /// Makes the empty table of a region of `len` bytes, a multiple of `page_size`, which is a power of two.
    pub fn new(len: u64, page_size: u64) -> Self {
        Self {
            len,
            page_size,
            extents: Extents::default(),
            bytes: 0,
            areas: 0,
        }
    }

    /// The region's length in bytes.
    pub fn region_len(&self) -> u64 {
        self.len
    }

    /// The number of live mappings.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that all mappings together take up.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many areas of address space there are more than if it were empty, at most.
    pub fn areas(&self) -> u64 {
        self.areas
    }

    /// The live mappings in the order of their offsets.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.extents.iter()
    }

    /// Finds room for a mapping of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`Reason::Misaligned`], [`Reason::ZeroLength`], [`Reason::OutOfRegion`], [`Reason::Overlap`].
    pub fn vacancy(&self, offset: u64, len: u64) -> Result<Vacancy, Reason> {
        check_alignment(offset, self.page_size)?;
        if len == 0 {
            return Err(Reason::ZeroLength);
        }
        let (footprint, end) = self.range(offset, len)?;
        let Neighbours {
            before,
            after,
            position,
        } = self.extents.neighbours(offset);
        let before_end = before.map_or(0, |mapping| self.end(&mapping));
        let after_start = after.map_or(self.len, |mapping| mapping.offset);
        let in_the_way = before
            .filter(|_| before_end > offset)
            .or_else(|| after.filter(|_| after_start < end));
        if let Some(live) = in_the_way {
            return Err(Reason::Overlap {
                offset,
                len,
                live_offset: live.offset,
                live_len: live.len,
            });
        }
        Ok(Vacancy {
            position,
            offset,
            len,
            footprint,
            areas: u64::from(before_end < offset) + u64::from(end < after_start),
        })
    }

    /// Records a mapping in a vacancy that [`RegionTable::vacancy`] found and nothing has changed since.
    pub fn insert(&mut self, vacancy: Vacancy, protection: Protection, kind: MappingKind) {
        let mapping = Mapping {
            offset: vacancy.offset,
            len: vacancy.len,
            protection,
            kind,
        };
        self.extents.insert(vacancy.position, mapping);
        self.bytes += vacancy.footprint;
        self.areas += vacancy.areas;
    }

    /// Finds the mapping that an unmap of `len` bytes at `offset` names. With [`UnmapRule::OffsetOnly`] `len` may be
    /// anything.
    ///
    /// # Errors
    /// [`Reason::Misaligned`], [`Reason::ZeroLength`], [`Reason::OutOfRegion`]; [`Reason::NoMapping`] where no live
    /// mapping is exactly that.
    pub fn find(&self, offset: u64, len: u64, rule: UnmapRule) -> Result<Occupied, Reason> {
        check_alignment(offset, self.page_size)?;
        let len = match rule {
            UnmapRule::Exact => len,
            UnmapRule::OffsetOnly => 1,
        };
        if len == 0 {
            return Err(Reason::ZeroLength);
        }
        let (_, end) = self.range(offset, len)?;
        let seen = self.extents.neighbours(offset);
        let Neighbours { before, after, .. } = seen;
        let exact = before.filter(|mapping| {
            mapping.offset == offset
                && (rule == UnmapRule::OffsetOnly
                    || len == mapping.len
                    || len == mapping.footprint(self.page_size))
        });
        let Some(mapping) = exact else {
            let live = before
                .filter(|mapping| self.end(mapping) > offset)
                .or_else(|| after.filter(|mapping| mapping.offset < end));
            return Err(Reason::NoMapping {
                offset,
                len: if rule == UnmapRule::Exact { len } else { 0 },
                live: live.map(|mapping| (mapping.offset, mapping.len)),
            });
        };
        Ok(self.occupied(mapping, &seen))
    }

    /// Forgets a mapping that [`RegionTable::find`] found, if nothing has changed since.
    pub fn remove(&mut self, occupied: &Occupied) {
        let removed = self.extents.remove(occupied.position);
        debug_assert_eq!(removed, Some(occupied.mapping));
        if removed.is_some() {
            self.bytes -= occupied.footprint;
            self.areas -= occupied.areas;
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.bytes = 0;
        self.areas = 0;
    }

    /// What a live mapping takes up, given what lies around its offset.
    fn occupied(&self, mapping: Mapping, seen: &Neighbours) -> Occupied {
        let before_end = self
            .extents
            .previous(seen.position)
            .map_or(0, |previous| self.end(&previous));
        let after_start = seen.after.map_or(self.len, |after| after.offset);
        let gap_before = before_end < mapping.offset;
        let gap_after = self.end(&mapping) < after_start;
        Occupied {
            position: seen.position,
            mapping,
            footprint: mapping.footprint(self.page_size),
            areas: u64::from(gap_before) + u64::from(gap_after),
        }
    }

    /// Where a live mapping ends.
    fn end(&self, mapping: &Mapping) -> u64 {
        mapping
            .offset
            .saturating_add(mapping.footprint(self.page_size))
    }

    /// Checks that the range is within the region and returns its footprint and end.
    fn range(&self, offset: u64, len: u64) -> Result<(u64, u64), Reason> {
        let range = len
            .checked_next_multiple_of(self.page_size)
            .and_then(|footprint| Some((footprint, offset.checked_add(footprint)?)));
        match range {
            Some((footprint, end)) if end <= self.len => Ok((footprint, end)),
            _ => Err(Reason::OutOfRegion {
                offset,
                len,
                region_len: self.len,
            }),
        }
    }

    #[cfg(test)]
    fn assert_consistent(&self) {
        self.extents.assert_consistent();
        let footprints = self.iter().map(|mapping| mapping.footprint(self.page_size));
        assert_eq!(self.bytes, footprints.sum::<u64>());
        let mut areas = 0;
        let mut end = 0;
        for mapping in self.iter() {
            assert!(end <= mapping.offset, "{end:#x} reaches into {mapping:?}");
            areas += u64::from(end < mapping.offset) + 1;
            end = self.end(mapping);
        }
        areas += u64::from(end < self.len);
        assert_eq!(self.areas + 1, areas);
    }
}

/// Refuses an offset that is no multiple of the page size.
pub(crate) fn check_alignment(offset: u64, page_size: u64) -> Result<(), Reason> {
    if offset.is_multiple_of(page_size) {
        Ok(())
    } else {
        Err(Reason::Misaligned { offset, page_size })
    }
}

#[cfg(test)]
mod tests;
