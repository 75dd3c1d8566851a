//! Which shared memory regions a device has, as its backend tells: two wire forms, one list that can be trusted.
//!
//! The standard answer to GET_SHMEM_CONFIG is a table of 256 sizes indexed by shmid with a count beside it; crosvm's
//! old query (1004) answers with a list. Both come from an untrusted backend and end up as guest address space, so
//! every number is checked here, before the VMM hears of it: the count, each size, the sum, the page multiple.
//!
//! # Source
//! vhost-user specification, "VIRTIO Shared Memory Region configuration".

use remain::sorted;
use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

/// How many shared memory regions a device can name: the shmid is 8 bit.
pub const MAX_REGIONS: usize = 256;

/// One shared memory region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmemRegion {
    /// The region's id, unique within the device.
    pub shmid: u8,
    /// Its length in bytes, a multiple of the page size, never zero.
    pub len: u64,
}

/// What the VMM is willing to reserve for one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmemLimits {
    /// The largest region.
    pub max_region_bytes: u64,
    /// The largest sum of all regions.
    pub max_total_bytes: u64,
    /// The largest number of regions.
    pub max_regions: u16,
}

impl Default for ShmemLimits {
    fn default() -> Self {
        Self {
            max_region_bytes: 64 << 30,
            max_total_bytes: 256 << 30,
            max_regions: 16,
        }
    }
}

/// Why a list of regions was refused.
#[sorted]
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShmemConfigError {
    /// The count beside the table is not the number of sizes in it.
    #[error("the backend announces {announced} shared memory regions and gives {found} sizes")]
    Count {
        /// The count that the backend sent.
        announced: u32,
        /// The number of sizes that are not zero.
        found: u32,
    },
    /// Two entries of a list have the same id.
    #[error("shared memory region {shmid} is listed twice")]
    Duplicate {
        /// The id.
        shmid: u8,
    },
    /// A region of a list has no size.
    #[error("shared memory region {shmid} has length 0")]
    Empty {
        /// The id.
        shmid: u8,
    },
    /// A region is not a whole number of pages.
    #[error(
        "shared memory region {shmid} has length {len:#x}, not a multiple of the page size {page_size:#x}"
    )]
    PageMultiple {
        /// The id.
        shmid: u8,
        /// The length that the backend sent.
        len: u64,
        /// The page size of this machine.
        page_size: u64,
    },
    /// A region is larger than the limit for one.
    #[error("shared memory region {shmid} has {len:#x} bytes, more than the {limit:#x} allowed")]
    RegionLimit {
        /// The id.
        shmid: u8,
        /// The length that the backend sent.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// There are too many regions.
    #[error("{count} shared memory regions, more than the {limit} allowed")]
    RegionsLimit {
        /// How many regions the backend listed.
        count: u64,
        /// The limit.
        limit: u16,
    },
    /// The backend claims a region that the VMM has for another purpose.
    #[error("shared memory region {shmid} is reserved by the VMM")]
    Reserved {
        /// The id.
        shmid: u8,
    },
    /// All regions together are larger than the limit.
    #[error(
        "the shared memory regions up to {shmid} need {total:#x} bytes, more than the {limit:#x} allowed"
    )]
    TotalLimit {
        /// The region that went over it.
        shmid: u8,
        /// The sum up to and with that region, saturating.
        total: u64,
        /// The limit.
        limit: u64,
    },
}

/// Checks the standard answer: `sizes` is indexed by shmid, zero means that there is no such region.
///
/// Gaps between the ids are fine, and `announced` counts the sizes that are not zero: it is not a prefix length.
///
/// # Errors
/// Every variant of [`ShmemConfigError`] but `Duplicate` and `Empty`; nothing of the answer is used then.
pub fn from_table(
    announced: u32,
    sizes: &[u64; MAX_REGIONS],
    page_size: u64,
    limits: &ShmemLimits,
) -> Result<Vec<ShmemRegion>, ShmemConfigError> {
    let present = || (0..=u8::MAX).zip(sizes).filter(|(_, len)| **len != 0);
    let found = u32::try_from(present().count()).unwrap_or(u32::MAX);
    if found != announced {
        return Err(ShmemConfigError::Count { announced, found });
    }
    let regions: Vec<_> = present()
        .map(|(shmid, len)| ShmemRegion { shmid, len: *len })
        .collect();
    check(&regions, page_size, limits)?;
    Ok(regions)
}

/// Checks a list of regions that came as one, from crosvm's old query or from the VMM's own configuration.
///
/// Returns it in the order of the ids.
///
/// # Errors
/// Every variant of [`ShmemConfigError`] but `Count`; nothing of the list is used then.
pub fn from_list(
    mut regions: Vec<ShmemRegion>,
    page_size: u64,
    limits: &ShmemLimits,
) -> Result<Vec<ShmemRegion>, ShmemConfigError> {
    regions.sort_by_key(|region| region.shmid);
    if let Some(twice) = regions.windows(2).find(|w| w[0].shmid == w[1].shmid) {
        return Err(ShmemConfigError::Duplicate {
            shmid: twice[0].shmid,
        });
    }
    if let Some(empty) = regions.iter().find(|region| region.len == 0) {
        return Err(ShmemConfigError::Empty { shmid: empty.shmid });
    }
    check(&regions, page_size, limits)?;
    Ok(regions)
}

fn check(
    regions: &[ShmemRegion],
    page_size: u64,
    limits: &ShmemLimits,
) -> Result<(), ShmemConfigError> {
    if regions.len() > usize::from(limits.max_regions) {
        return Err(ShmemConfigError::RegionsLimit {
            count: regions.len() as u64,
            limit: limits.max_regions,
        });
    }
    let mut total = 0_u64;
    for &ShmemRegion { shmid, len } in regions {
        if len % page_size != 0 {
            return Err(ShmemConfigError::PageMultiple {
                shmid,
                len,
                page_size,
            });
        }
        if len > limits.max_region_bytes {
            return Err(ShmemConfigError::RegionLimit {
                shmid,
                len,
                limit: limits.max_region_bytes,
            });
        }
        total = total.saturating_add(len);
        if total > limits.max_total_bytes {
            return Err(ShmemConfigError::TotalLimit {
                shmid,
                total,
                limit: limits.max_total_bytes,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn table(entries: &[(u8, u64)]) -> [u64; MAX_REGIONS] {
        let mut sizes = [0; MAX_REGIONS];
        for (shmid, len) in entries {
            sizes[usize::from(*shmid)] = *len;
        }
        sizes
    }

    fn region(shmid: u8, len: u64) -> ShmemRegion {
        ShmemRegion { shmid, len }
    }

    #[track_caller]
    fn check_table(
        announced: u32,
        entries: &[(u8, u64)],
        want: Result<Vec<ShmemRegion>, ShmemConfigError>,
    ) {
        let limits = ShmemLimits {
            max_region_bytes: 1 << 20,
            max_total_bytes: 3 << 20,
            max_regions: 4,
        };
        assert_eq!(from_table(announced, &table(entries), PAGE, &limits), want);
    }

    #[test]
    fn from_table_with_gaps_lists_the_regions_by_id() {
        check_table(
            3,
            &[(255, 4096), (0, 8192), (7, 1 << 20)],
            Ok(vec![region(0, 8192), region(7, 1 << 20), region(255, 4096)]),
        );
    }

    #[test]
    fn from_table_of_zeros_has_no_regions() {
        check_table(0, &[], Ok(vec![]));
    }

    #[test]
    fn from_table_with_a_prefix_length_for_count_is_refused() {
        check_table(
            8,
            &[(0, 4096), (7, 4096)],
            Err(ShmemConfigError::Count {
                announced: 8,
                found: 2,
            }),
        );
    }

    #[test]
    fn from_table_with_a_hostile_count_is_refused() {
        check_table(
            u32::MAX,
            &[],
            Err(ShmemConfigError::Count {
                announced: u32::MAX,
                found: 0,
            }),
        );
    }

    #[test]
    fn from_table_with_all_ids_and_the_count_that_fits_meets_the_limit() {
        let limits = ShmemLimits::default();
        assert_eq!(
            from_table(256, &[PAGE; MAX_REGIONS], PAGE, &limits),
            Err(ShmemConfigError::RegionsLimit {
                count: 256,
                limit: 16
            })
        );
    }

    #[test]
    fn from_table_with_part_of_a_page_is_refused() {
        check_table(
            1,
            &[(3, 4097)],
            Err(ShmemConfigError::PageMultiple {
                shmid: 3,
                len: 4097,
                page_size: PAGE,
            }),
        );
    }

    #[test]
    fn from_table_with_a_region_over_its_limit_is_refused() {
        check_table(
            1,
            &[(3, (1 << 20) + PAGE)],
            Err(ShmemConfigError::RegionLimit {
                shmid: 3,
                len: (1 << 20) + PAGE,
                limit: 1 << 20,
            }),
        );
    }

    #[test]
    fn from_table_with_a_sum_over_its_limit_is_refused() {
        check_table(
            4,
            &[(0, 1 << 20), (1, 1 << 20), (2, 1 << 20), (9, PAGE)],
            Err(ShmemConfigError::TotalLimit {
                shmid: 9,
                total: (3 << 20) + PAGE,
                limit: 3 << 20,
            }),
        );
    }

    #[test]
    fn from_table_whose_sum_overflows_is_refused() {
        let limits = ShmemLimits {
            max_region_bytes: u64::MAX,
            max_total_bytes: u64::MAX - PAGE,
            max_regions: 4,
        };
        let huge = !(PAGE - 1);
        assert_eq!(
            from_table(2, &table(&[(0, huge - PAGE), (1, huge)]), PAGE, &limits),
            Err(ShmemConfigError::TotalLimit {
                shmid: 1,
                total: u64::MAX,
                limit: u64::MAX - PAGE,
            })
        );
    }

    #[test]
    fn from_list_sorts_by_id() {
        let limits = ShmemLimits::default();
        assert_eq!(
            from_list(vec![region(2, PAGE), region(0, PAGE)], PAGE, &limits),
            Ok(vec![region(0, PAGE), region(2, PAGE)])
        );
    }

    #[test]
    fn from_list_with_an_id_twice_is_refused() {
        let limits = ShmemLimits::default();
        let list = vec![region(2, PAGE), region(0, PAGE), region(2, 2 * PAGE)];
        assert_eq!(
            from_list(list, PAGE, &limits),
            Err(ShmemConfigError::Duplicate { shmid: 2 })
        );
    }

    #[test]
    fn from_list_with_an_empty_region_is_refused() {
        let limits = ShmemLimits::default();
        assert_eq!(
            from_list(vec![region(5, 0)], PAGE, &limits),
            Err(ShmemConfigError::Empty { shmid: 5 })
        );
    }
}
