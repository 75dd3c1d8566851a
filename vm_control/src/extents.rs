//! An ordered set of live mappings that allocates only when it outgrows what it ever held.
//!
//! Mappings are kept sorted by offset in chunks of a fixed size; a directory holds the first offset of each chunk. A chunk
//! that becomes empty goes to a free list and is used again, so mapping and unmapping in turn never reaches the allocator,
//! and a lookup among tens of thousands of mappings touches two short arrays. A `BTreeMap` would do the same work but
//! allocates and frees nodes as it splits and merges.
//!
//! Neighbours merge when both together fill half a chunk, so that memory follows the number of live mappings whatever order
//! a hostile device chooses. Nothing here knows the rules: `RegionTable` asks first and inserts afterwards.

use arrayvec::ArrayVec;

use crate::region_table::Mapping;

/// Mappings in one chunk: 1.5 KiB, so an insertion moves at most that much.
const CHUNK: usize = 64;
/// Two neighbours with no more than this many mappings together become one chunk.
const MERGE: usize = CHUNK / 2;

/// One run of neighbouring mappings, sorted by offset, never empty while it is in the directory.
type Chunk = ArrayVec<Mapping, CHUNK>;

/// A line of the directory.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The offset of the chunk's first mapping.
    first: u64,
    /// The chunk's place in the store.
    chunk: usize,
}

/// Where a mapping is, or where it would go. Valid until the set changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    entry: usize,
    index: usize,
}

/// The sorted set.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    directory: Vec<Entry>,
    store: Vec<Chunk>,
    free: Vec<usize>,
    len: usize,
}

/// The neighbourhood of an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    /// The last mapping that begins at or before the offset.
    pub(crate) before: Option<Mapping>,
    /// The first mapping that begins after the offset.
    pub(crate) after: Option<Mapping>,
    /// Where a new mapping of this offset goes.
    pub(crate) position: Position,
}

impl Extents {
    /// The number of mappings.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All mappings in the order of their offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.directory
            .iter()
            .flat_map(|entry| self.store[entry.chunk].iter())
    }

    /// Forgets every mapping and gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Looks at both sides of `offset`.
    pub(crate) fn neighbours(&self, offset: u64) -> Neighbours {
        let entry = self
            .directory
            .partition_point(|entry| entry.first <= offset)
            .saturating_sub(1);
        let Some(line) = self.directory.get(entry) else {
            return Neighbours {
                before: None,
                after: None,
                position: Position { entry, index: 0 },
            };
        };
        let chunk = &self.store[line.chunk];
        let index = chunk.partition_point(|mapping| mapping.offset <= offset);
        let next = || Some(self.store[self.directory.get(entry + 1)?.chunk][0]);
        Neighbours {
            before: index.checked_sub(1).map(|before| chunk[before]),
            after: chunk.get(index).copied().or_else(next),
            position: Position { entry, index },
        }
    }

    /// Inserts a mapping where [`Extents::neighbours`] found its place.
    pub(crate) fn insert(&mut self, position: Position, mapping: Mapping) {
        self.len += 1;
        let Position { entry, index } = position;
        let Some(line) = self.directory.get(entry).copied() else {
            let chunk = self.take_chunk();
            self.store[chunk].push(mapping);
            self.directory.push(Entry {
                first: mapping.offset,
                chunk,
            });
            return;
        };
        if !self.store[line.chunk].is_full() {
            self.store[line.chunk].insert(index, mapping);
            self.directory[entry].first = self.store[line.chunk][0].offset;
            return;
        }
        // A run that only grows at its end starts a new chunk and leaves full ones behind; anything else splits in two.
        let keep = if index == CHUNK && entry + 1 == self.directory.len() {
            CHUNK
        } else {
            CHUNK / 2
        };
        let right = self.take_chunk();
        let moved: Chunk = self.store[line.chunk].drain(keep..).collect();
        self.store[right] = moved;
        if index > keep || keep == CHUNK {
            self.store[right].insert(index - keep, mapping);
        } else {
            self.store[line.chunk].insert(index, mapping);
            self.directory[entry].first = self.store[line.chunk][0].offset;
        }
        let first = self.store[right][0].offset;
        self.directory.insert(
            entry + 1,
            Entry {
                first,
                chunk: right,
            },
        );
    }

    /// The mapping in front of the one that [`Extents::neighbours`] called `before`.
    pub(crate) fn previous(&self, position: Position) -> Option<Mapping> {
        let Position { entry, index } = position;
        let line = self.directory.get(entry)?;
        match index.checked_sub(2) {
            Some(previous) => self.store[line.chunk].get(previous).copied(),
            None => {
                let line = self.directory.get(entry.checked_sub(1)?)?;
                self.store[line.chunk].last().copied()
            }
        }
    }

    /// Removes the mapping that [`Extents::neighbours`] called `before`.
    pub(crate) fn remove(&mut self, position: Position) -> Option<Mapping> {
        let Position { entry, index } = position;
        let line = *self.directory.get(entry)?;
        let removed = self.store[line.chunk].pop_at(index.checked_sub(1)?)?;
        self.len -= 1;
        match self.store[line.chunk].first() {
            Some(first) => {
                self.directory[entry].first = first.offset;
                if !self.merge_with_next(entry) && entry > 0 {
                    self.merge_with_next(entry - 1);
                }
            }
            None => {
                self.directory.remove(entry);
                self.free.push(line.chunk);
            }
        }
        Some(removed)
    }

    /// Joins a chunk and the one behind it if both are nearly empty, and says whether it did.
    fn merge_with_next(&mut self, entry: usize) -> bool {
        let (Some(left), Some(right)) = (
            self.directory.get(entry).copied(),
            self.directory.get(entry + 1).copied(),
        ) else {
            return false;
        };
        if self.store[left.chunk].len() + self.store[right.chunk].len() > MERGE {
            return false;
        }
        let moved = std::mem::take(&mut self.store[right.chunk]);
        self.store[left.chunk].extend(moved);
        self.directory.remove(entry + 1);
        self.free.push(right.chunk);
        true
    }

    /// An empty chunk, an old one where there is one.
    fn take_chunk(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.store.push(Chunk::new());
            self.store.len() - 1
        })
    }

    /// Chunks in use and kept for later.
    #[cfg(test)]
    fn chunks(&self) -> (usize, usize) {
        (self.directory.len(), self.store.len())
    }

    /// Panics where the structure contradicts itself.
    #[cfg(test)]
    pub(crate) fn assert_consistent(&self) {
        let mut last = None;
        for entry in &self.directory {
            let chunk = &self.store[entry.chunk];
            assert_eq!(Some(entry.first), chunk.first().map(|first| first.offset));
            for mapping in chunk {
                assert!(last < Some(mapping.offset), "{last:?} before {mapping:?}");
                last = Some(mapping.offset);
            }
        }
        assert_eq!(self.len, self.iter().count());
        assert_eq!(self.store.len(), self.directory.len() + self.free.len());
        for pair in self.directory.windows(2) {
            let both = self.store[pair[0].chunk].len() + self.store[pair[1].chunk].len();
            assert!(both > 1, "two chunks for {both} mappings");
        }
    }
}

#[cfg(test)]
mod tests {
    use base::Protection;

    use super::*;
    use crate::region_table::MappingKind;

    fn mapping(offset: u64) -> Mapping {
        Mapping {
            offset,
            len: 1,
            protection: Protection::read(),
            kind: MappingKind::External,
        }
    }

    fn insert(extents: &mut Extents, offset: u64) {
        let position = extents.neighbours(offset).position;
        extents.insert(position, mapping(offset));
        extents.assert_consistent();
    }

    fn remove(extents: &mut Extents, offset: u64) -> Option<Mapping> {
        extents.remove(extents.neighbours(offset).position)
    }

    fn offsets(extents: &Extents) -> Vec<u64> {
        extents.iter().map(|mapping| mapping.offset).collect()
    }

    #[test]
    fn extents_scattered_insertions_come_out_sorted() {
        let mut extents = Extents::default();
        // 7 is coprime to 1000, so this visits each number once, out of order.
        for step in 0..1000 {
            insert(&mut extents, step * 7 % 1000);
        }
        assert_eq!(offsets(&extents), (0..1000).collect::<Vec<_>>());
        assert_eq!(extents.len(), 1000);
    }

    #[test]
    fn extents_ascending_insertions_fill_their_chunks() {
        let mut extents = Extents::default();
        for offset in 0..640 {
            insert(&mut extents, offset);
        }
        assert_eq!(extents.chunks(), (10, 10));
    }

    #[test]
    fn extents_descending_insertions_come_out_sorted() {
        let mut extents = Extents::default();
        for offset in (0..300).rev() {
            insert(&mut extents, offset);
        }
        assert_eq!(offsets(&extents), (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn extents_removal_takes_what_lies_before_the_position() {
        let mut extents = Extents::default();
        assert_eq!(extents.remove(extents.neighbours(5).position), None);
        for offset in 0..130 {
            insert(&mut extents, offset * 2);
        }
        for (offset, previous) in [(0, None), (2, None), (128, Some(126)), (258, Some(256))] {
            let position = extents.neighbours(offset + 1).position;
            assert_eq!(extents.previous(position), previous.map(mapping));
            assert_eq!(extents.remove(position), Some(mapping(offset)));
            extents.assert_consistent();
        }
        assert_eq!(extents.len(), 126);
    }

    #[test]
    fn extents_all_but_one_of_each_chunk_removed_merge_into_few_chunks() {
        let mut extents = Extents::default();
        for offset in 0..6400 {
            insert(&mut extents, offset);
        }
        for offset in 0..6400 {
            if offset % 64 != 0 {
                assert_eq!(remove(&mut extents, offset), Some(mapping(offset)));
                extents.assert_consistent();
            }
        }
        assert_eq!(extents.len(), 100);
        let (used, _) = extents.chunks();
        assert!(used <= 100 * 4 / CHUNK + 1, "{used} chunks for 100");
    }

    #[test]
    fn extents_filled_again_after_emptying_reuse_their_chunks() {
        let mut extents = Extents::default();
        for round in 0..4 {
            for offset in 0..1000 {
                insert(&mut extents, offset * (round + 1));
            }
            for offset in 0..1000 {
                let offset = offset * (round + 1);
                assert_eq!(remove(&mut extents, offset), Some(mapping(offset)));
            }
            assert_eq!(extents.len(), 0);
            assert_eq!(extents.chunks(), (0, 16));
        }
    }

    #[test]
    fn neighbours_at_a_chunk_boundary_are_in_the_next_chunk() {
        let mut extents = Extents::default();
        for offset in 0..128 {
            insert(&mut extents, offset * 2);
        }
        let seen = extents.neighbours(127);
        assert_eq!(seen.before, Some(mapping(126)));
        assert_eq!(seen.after, Some(mapping(128)));
        let seen = extents.neighbours(126);
        assert_eq!(seen.before, Some(mapping(126)));
        assert_eq!(seen.after, Some(mapping(128)));
    }
}
