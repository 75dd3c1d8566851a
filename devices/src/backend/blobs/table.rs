//! The blobs that there are: memfds, and what of them is mapped where. It maps nothing itself.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use base::Error as Errno;
use base::Seals;
use rustix::fs::MemfdFlags;
use rustix::fs::ftruncate;
use rustix::fs::memfd_create;

use super::protocol::BlobId;
use super::protocol::NOT_MAPPED;
use super::protocol::Response;

/// How much a driver can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many blobs.
    pub max_blobs: u32,
    /// How many bytes all together.
    pub max_bytes: u64,
}

/// What of a blob is mapped where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Where in the region.
    pub shm_offset: u64,
    /// Where in the blob the part begins.
    pub blob_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether the driver may write.
    pub writable: bool,
}

/// One blob.
#[derive(Debug)]
pub struct Blob {
    file: Rc<OwnedFd>,
    size: u64,
    mapped: Option<Mapped>,
}

impl Blob {
    /// Its memory; shared, so that a request can go on with it while the table is not looked at.
    pub fn file(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.file)
    }

    /// What of it is mapped.
    pub fn mapped(&self) -> Option<Mapped> {
        self.mapped
    }

    /// Checks that a part lies within the blob.
    ///
    /// # Errors
    /// `ERANGE`.
    pub fn check_part(&self, offset: u64, len: u64) -> Result<(), Errno> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Errno::new(libc::ERANGE)),
        }
    }
}

/// All blobs of a device.
#[derive(Debug)]
pub struct Table {
    limits: Limits,
    blobs: BTreeMap<BlobId, Blob>,
    last: BlobId,
}

impl Table {
    /// Makes an empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            blobs: BTreeMap::new(),
            last: 0,
        }
    }

    /// Makes a blob of `len` bytes, sealed against shrinking.
    ///
    /// # Errors
    /// `EINVAL` for no bytes, `EDQUOT` past a limit, what the system says otherwise.
    pub fn allocate(&mut self, len: u64) -> Result<BlobId, Errno> {
        if len == 0 {
            return Err(Errno::new(libc::EINVAL));
        }
        let count = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        if count >= self.limits.max_blobs {
            return Err(Errno::new(libc::EDQUOT));
        }
        self.check_growth(len)?;
        let file = memfd(len)?;
        let id = self.next_id();
        let blob = Blob {
            file: Rc::new(file),
            size: len,
            mapped: None,
        };
        self.blobs.insert(id, blob);
        Ok(id)
    }

    /// Gives a blob up.
    ///
    /// # Errors
    /// `ENOENT` if there is none, `EBUSY` if it is mapped.
    pub fn free(&mut self, id: BlobId) -> Result<(), Errno> {
        if self.get(id)?.mapped.is_some() {
            return Err(Errno::new(libc::EBUSY));
        }
        self.blobs.remove(&id);
        Ok(())
    }

    /// Finds a blob.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    pub fn get(&self, id: BlobId) -> Result<&Blob, Errno> {
        self.blobs.get(&id).ok_or(Errno::new(libc::ENOENT))
    }

    /// Finds what of a blob is mapped.
    ///
    /// # Errors
    /// `ENOENT` if there is no such blob, `ENXIO` if it is not mapped.
    pub fn mapping(&self, id: BlobId) -> Result<Mapped, Errno> {
        self.get(id)?.mapped.ok_or(Errno::new(libc::ENXIO))
    }

    /// Checks that a part of a blob can be mapped, as far as the device knows.
    ///
    /// # Errors
    /// `ENOENT` if there is no such blob, `EBUSY` if it is mapped, `ERANGE` for a part outside of it.
    pub fn check_map(&self, id: BlobId, mapped: &Mapped) -> Result<(), Errno> {
        let blob = self.get(id)?;
        if blob.mapped.is_some() {
            return Err(Errno::new(libc::EBUSY));
        }
        blob.check_part(mapped.blob_offset, mapped.len)
    }

    /// Returns the memory of a blob that has this part.
    ///
    /// # Errors
    /// `ENOENT` if there is no such blob, `ERANGE` for a part outside of it.
    pub fn part(&self, id: BlobId, offset: u64, len: u64) -> Result<Rc<OwnedFd>, Errno> {
        let blob = self.get(id)?;
        blob.check_part(offset, len)?;
        Ok(blob.file())
    }

    /// Notes what of a blob is mapped.
    pub fn note(&mut self, id: BlobId, mapped: Option<Mapped>) {
        if let Some(blob) = self.blobs.get_mut(&id) {
            blob.mapped = mapped;
        }
    }

    /// Makes a blob at least `size` bytes long.
    ///
    /// # Errors
    /// `ENOENT`, `EDQUOT`, what the system says otherwise.
    pub fn grow(&mut self, id: BlobId, size: u64) -> Result<(), Errno> {
        let present = self.get(id)?.size;
        let Some(more) = size.checked_sub(present).filter(|more| *more > 0) else {
            return Ok(());
        };
        self.check_growth(more)?;
        if let Some(blob) = self.blobs.get_mut(&id) {
            ftruncate(&blob.file, size)?;
            blob.size = size;
        }
        Ok(())
    }

    /// Notes that nothing is mapped any more, and returns how many were.
    pub fn forget_mappings(&mut self) -> usize {
        self.blobs
            .values_mut()
            .filter_map(|blob| blob.mapped.take())
            .count()
    }

    /// Drops all blobs.
    pub fn clear(&mut self) {
        self.blobs.clear();
    }

    /// Describes a blob, or with 0 all of them.
    ///
    /// # Errors
    /// `ENOENT` if there is no such blob.
    pub fn describe(&self, id: BlobId) -> Result<Response, Errno> {
        let blobs = u32::try_from(self.blobs.len()).unwrap_or(u32::MAX);
        let mut response = Response {
            status: 0,
            blob: id,
            blobs,
            flags: 0,
            size: self.bytes(),
            shm_offset: NOT_MAPPED,
            mapped: self
                .blobs
                .values()
                .filter_map(|blob| blob.mapped)
                .map(|mapped| mapped.len)
                .sum(),
        };
        if id == 0 {
            return Ok(response);
        }
        let blob = self.get(id)?;
        response.size = blob.size;
        response.mapped = 0;
        if let Some(mapped) = blob.mapped {
            response.flags = u32::from(mapped.writable);
            response.shm_offset = mapped.shm_offset;
            response.mapped = mapped.len;
        }
        Ok(response)
    }

    fn bytes(&self) -> u64 {
        self.blobs.values().map(|blob| blob.size).sum()
    }

    fn check_growth(&self, more: u64) -> Result<(), Errno> {
        match self.bytes().checked_add(more) {
            Some(bytes) if bytes <= self.limits.max_bytes => Ok(()),
            _ => Err(Errno::new(libc::EDQUOT)),
        }
    }

    /// Names are not used again before they have all been used, since a driver may be late.
    fn next_id(&mut self) -> BlobId {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.blobs.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

fn memfd(len: u64) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("blob", flags)?;
    ftruncate(&file, len)?;
    base::seal(file.as_fd(), Seals::SHRINK)?;
    Ok(file)
}

/// Writes all of `bytes` to a file.
///
/// # Errors
/// What the system says.
pub fn write_all(file: BorrowedFd<'_>, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = bytes.get(done..).unwrap_or_default();
        done += rustix::io::pwrite(file, rest, offset + done as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        max_blobs: 2,
        max_bytes: 0x3000,
    };
    const MAPPED: Mapped = Mapped {
        shm_offset: 0x5000,
        blob_offset: 0,
        len: 0x1000,
        writable: true,
    };

    fn errno(number: i32) -> Errno {
        Errno::new(number)
    }

    #[test]
    fn blob_is_a_zeroed_memfd_that_can_not_shrink() {
        let mut table = Table::new(LIMITS);
        let id = table.allocate(0x1234).expect("a blob");
        let file = table.get(id).expect("it is there").file();
        let info = base::inspect(file.as_fd()).expect("it is open");
        assert_eq!(info.kind, base::DescriptorKind::Memfd);
        assert_eq!(info.size, Some(0x1234));
        assert_eq!(base::seals(file.as_fd()), Ok(Seals::SHRINK));
        let shrunk = ftruncate(&*file, 0x1000);
        assert_eq!(shrunk, Err(rustix::io::Errno::PERM));
        ftruncate(&*file, 0x2000).expect("it can grow");
    }

    #[test]
    fn limits_refuse_one_blob_or_byte_too_many() {
        let mut table = Table::new(LIMITS);
        assert_eq!(table.allocate(0), Err(errno(libc::EINVAL)));
        assert_eq!(table.allocate(0x3001), Err(errno(libc::EDQUOT)));
        assert_eq!(table.allocate(0x2000), Ok(1));
        assert_eq!(table.allocate(u64::MAX), Err(errno(libc::EDQUOT)));
        assert_eq!(table.allocate(1), Ok(2));
        assert_eq!(table.allocate(1), Err(errno(libc::EDQUOT)));
        assert_eq!(table.grow(2, 0x1001), Err(errno(libc::EDQUOT)));
        assert_eq!(table.grow(2, 0x1000), Ok(()));
        assert_eq!(table.grow(2, 1), Ok(()));
        assert_eq!(table.describe(2).expect("it is there").size, 0x1000);
        assert_eq!(table.free(1), Ok(()));
        assert_eq!(table.allocate(1), Ok(3));
    }

    #[test]
    fn mapped_blob_is_not_freed() {
        let mut table = Table::new(LIMITS);
        let id = table.allocate(0x1000).expect("a blob");
        assert_eq!(table.mapping(id), Err(errno(libc::ENXIO)));
        table.note(id, Some(MAPPED));
        assert_eq!(table.mapping(id), Ok(MAPPED));
        assert_eq!(table.free(id), Err(errno(libc::EBUSY)));
        assert_eq!(table.check_map(id, &MAPPED), Err(errno(libc::EBUSY)));
        assert_eq!(table.forget_mappings(), 1);
        assert_eq!(table.free(id), Ok(()));
        assert_eq!(table.free(id), Err(errno(libc::ENOENT)));
    }

    #[test]
    fn description_is_of_one_or_of_all() {
        let mut table = Table::new(LIMITS);
        let (one, other) = (table.allocate(0x1000), table.allocate(0x2000));
        let (one, other) = (one.expect("a blob"), other.expect("a blob"));
        table.note(one, Some(MAPPED));
        let all = table.describe(0).expect("all");
        assert_eq!((all.blobs, all.size, all.mapped), (2, 0x3000, 0x1000));
        assert_eq!((all.shm_offset, all.flags), (NOT_MAPPED, 0));
        let mapped = table.describe(one).expect("one");
        assert_eq!((mapped.size, mapped.mapped), (0x1000, 0x1000));
        assert_eq!((mapped.shm_offset, mapped.flags), (0x5000, 1));
        let unmapped = table.describe(other).expect("one");
        assert_eq!((unmapped.size, unmapped.mapped), (0x2000, 0));
        assert_eq!((unmapped.shm_offset, unmapped.flags), (NOT_MAPPED, 0));
        assert_eq!(table.describe(9), Err(errno(libc::ENOENT)));
    }

    #[test]
    fn part_outside_of_a_blob_is_refused() {
        let mut table = Table::new(LIMITS);
        let id = table.allocate(0x1000).expect("a blob");
        let blob = table.get(id).expect("it is there");
        assert_eq!(blob.check_part(0, 0x1000), Ok(()));
        assert_eq!(blob.check_part(1, 0x1000), Err(errno(libc::ERANGE)));
        assert_eq!(blob.check_part(u64::MAX, 1), Err(errno(libc::ERANGE)));
    }
}
