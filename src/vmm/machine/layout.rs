//! Where things are in the guest's physical address space: RAM from 0, shared memory regions from 4 GiB on.

use thiserror::Error as ThisError;

/// Where the first region can start.
pub(super) const FIRST_REGION: u64 = 4 << 30;
/// Regions start at multiples of this.
pub(super) const REGION_STEP: u64 = 1 << 30;
/// The end of what the guest's page tables reach.
pub(super) const ADDRESS_LIMIT: u64 = 512 << 30;

/// Why a region could not be placed.
#[remain::sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
pub enum LayoutError {
    /// The region has no bytes.
    #[error("a region of zero bytes has no place")]
    Empty,
    /// No gap is large enough.
    #[error("no room for a region of {len:#x} bytes below guest address {ADDRESS_LIMIT:#x}")]
    Full {
        /// The bytes asked for.
        len: u64,
    },
}

/// Gives regions their guest addresses: the lowest free multiple of a GiB that is large enough.
#[derive(Clone, Debug, Default)]
pub struct RegionLayout {
    /// Start and end of what is taken, in order.
    taken: Vec<(u64, u64)>,
}

impl RegionLayout {
    /// Makes an empty layout.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds a place for `len` bytes and returns its guest address.
    ///
    /// # Errors
    /// [`LayoutError::Empty`] for zero bytes, [`LayoutError::Full`] if there is no gap of that size.
    pub fn place(&mut self, len: u64) -> Result<u64, LayoutError> {
        if len == 0 {
            return Err(LayoutError::Empty);
        }
        let mut start = FIRST_REGION;
        let mut index = 0;
        for (position, &(taken_start, taken_end)) in self.taken.iter().enumerate() {
            if taken_start - start >= len {
                break;
            }
            start = taken_end.next_multiple_of(REGION_STEP);
            index = position + 1;
        }
        let end = start
            .checked_add(len)
            .filter(|&end| end <= ADDRESS_LIMIT)
            .ok_or(LayoutError::Full { len })?;
        self.taken.insert(index, (start, end));
        Ok(start)
    }

    /// Frees the place of the region at `guest_address`; tells whether there was one.
    pub fn release(&mut self, guest_address: u64) -> bool {
        let before = self.taken.len();
        self.taken.retain(|&(start, _)| start != guest_address);
        self.taken.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn regions_are_placed_from_4_gib_in_steps_of_1_gib() {
        let mut layout = RegionLayout::new();
        assert_eq!(layout.place(0x1000), Ok(4 * GIB));
        assert_eq!(layout.place(GIB + 1), Ok(5 * GIB));
        assert_eq!(layout.place(1), Ok(7 * GIB));
    }

    #[test]
    fn released_place_is_given_to_the_next_that_fits() {
        let mut layout = RegionLayout::new();
        let first = layout.place(GIB).unwrap();
        let second = layout.place(GIB).unwrap();
        assert!(layout.release(first));
        assert!(!layout.release(first));
        assert_eq!(layout.place(2 * GIB), Ok(second + GIB));
        assert_eq!(layout.place(GIB), Ok(first));
    }

    #[test]
    fn region_beyond_the_limit_is_refused_and_changes_nothing() {
        let mut layout = RegionLayout::new();
        assert_eq!(
            layout.place(u64::MAX),
            Err(LayoutError::Full { len: u64::MAX })
        );
        assert_eq!(
            layout.place(509 * GIB),
            Err(LayoutError::Full { len: 509 * GIB })
        );
        assert_eq!(layout.place(508 * GIB), Ok(4 * GIB));
        assert_eq!(layout.place(1), Err(LayoutError::Full { len: 1 }));
        assert_eq!(layout.place(0), Err(LayoutError::Empty));
    }
}
