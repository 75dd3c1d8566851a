//! Asking a backend for its shared memory regions, in each of the ways that there are.

use super::Error;
use super::SHMEM;
use super::VhostUserFrontend;
use super::features::CROSVM_SHARED_MEMORY_REGIONS;
use crate::control::ConnectOptions;
use crate::control::RegionSource;
use crate::shmem_config;
use crate::shmem_config::MAX_REGIONS;
use crate::shmem_config::ShmemConfigError;
use crate::shmem_config::ShmemRegion;

const GET_SHMEM_CONFIG: u32 = 44;
const GET_SHARED_MEMORY_REGIONS: u32 = 1004;

/// Length of one entry in the answer to GET_SHARED_MEMORY_REGIONS.
const LEGACY_REGION_BYTES: usize = 16;

impl VhostUserFrontend {
    pub(super) fn regions(
        &mut self,
        options: &ConnectOptions,
        legacy: Option<u8>,
    ) -> Result<Vec<ShmemRegion>, Error> {
        let regions = self.query_regions(options, legacy)?;
        let reserved = regions
            .iter()
            .find(|region| Some(region.shmid) == options.notifier_region);
        match reserved {
            Some(region) => Err(ShmemConfigError::Reserved {
                shmid: region.shmid,
            }
            .into()),
            None => Ok(regions),
        }
    }

    fn query_regions(
        &mut self,
        options: &ConnectOptions,
        legacy: Option<u8>,
    ) -> Result<Vec<ShmemRegion>, Error> {
        let page = base::page_size() as u64;
        let limits = &options.shmem_limits;
        match (&options.regions, legacy) {
            (RegionSource::Given(regions), _) => {
                Ok(shmem_config::from_list(regions.clone(), page, limits)?)
            }
            (RegionSource::Backend, Some(CROSVM_SHARED_MEMORY_REGIONS)) => {
                Ok(shmem_config::from_list(self.legacy_list()?, page, limits)?)
            }
            // Not by the crate `vhost`, which waits for the rest of a short answer and takes the rest of a long one for the next.
            (RegionSource::Backend, legacy) if legacy.is_some() || self.has(SHMEM) => {
                let (count, sizes) = split_table(&self.raw.query(GET_SHMEM_CONFIG)?);
                Ok(shmem_config::from_table(count, &sizes, page, limits)?)
            }
            (RegionSource::Backend, _) => Ok(Vec::new()),
        }
    }

    fn legacy_list(&self) -> Result<Vec<ShmemRegion>, Error> {
        let cap = 8 + MAX_REGIONS * LEGACY_REGION_BYTES;
        let cap = u32::try_from(cap).expect("a constant");
        let answer = self.raw.query_up_to(GET_SHARED_MEMORY_REGIONS, cap)?;
        parse_legacy_list(&answer)
    }
}

/// Splits the answer to GET_SHMEM_CONFIG: a count, four bytes of padding, 256 sizes.
fn split_table(answer: &[u8; 8 + 8 * MAX_REGIONS]) -> (u32, [u64; MAX_REGIONS]) {
    let (head, table) = answer.split_at(8);
    let mut count = [0; 4];
    count.copy_from_slice(&head[..4]);
    let mut sizes = [0; MAX_REGIONS];
    for (size, bytes) in sizes.iter_mut().zip(table.as_chunks::<8>().0) {
        *size = u64::from_ne_bytes(*bytes);
    }
    (u32::from_ne_bytes(count), sizes)
}

fn parse_legacy_list(answer: &[u8]) -> Result<Vec<ShmemRegion>, Error> {
    let Some((count, list)) = answer.split_first_chunk::<8>() else {
        return Err(Error::LegacyList { count: 0, bytes: 0 });
    };
    let count = u64::from_ne_bytes(*count);
    let (entries, rest) = list.as_chunks::<LEGACY_REGION_BYTES>();
    if !rest.is_empty() || entries.len() as u64 != count {
        return Err(Error::LegacyList {
            count,
            bytes: list.len(),
        });
    }
    Ok(entries
        .iter()
        .map(|entry| {
            let (head, len) = entry.split_at(8);
            let mut bytes = [0; 8];
            bytes.copy_from_slice(len);
            ShmemRegion {
                shmid: head[0],
                len: u64::from_ne_bytes(bytes),
            }
        })
        .collect())
}
