//! Plain counters of one channel: no allocation, no locks, copied out whole.

use base::Error as Errno;

use crate::message::CODES;
use crate::message::RequestCode;

/// The errnos that are counted each on its own.
const ERRNOS: [i32; 17] = [
    libc::EPERM,
    libc::ENOENT,
    libc::ENXIO,
    libc::EBADF,
    libc::EAGAIN,
    libc::ENOMEM,
    libc::EACCES,
    libc::EBUSY,
    libc::EEXIST,
    libc::EINVAL,
    libc::ENOSPC,
    libc::ERANGE,
    libc::ENOSYS,
    libc::EOVERFLOW,
    libc::ENOTSUP,
    libc::EDQUOT,
    libc::ECANCELED,
];

/// What has happened on a channel so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Receives that brought bytes.
    pub reads: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Whole messages received.
    pub messages: u64,
    /// Requests that were carried out with success.
    pub succeeded: u64,
    /// Requests that were refused, here or when they were carried out.
    pub refused: u64,
    /// Sends that took bytes.
    pub writes: u64,
    /// Replies that were queued.
    pub replies: u64,
    by_code: [u64; CODES.len()],
    unknown_codes: u64,
    by_errno: [u64; ERRNOS.len()],
    other_errnos: u64,
}

impl ChannelStats {
    /// How many messages of this code came. All codes that nobody knows are counted as one.
    pub fn received(&self, code: RequestCode) -> u64 {
        code.index()
            .and_then(|index| self.by_code.get(index))
            .copied()
            .unwrap_or(self.unknown_codes)
    }

    /// How many requests were refused with this errno. All errnos that are not told apart are
    /// counted as one.
    pub fn refused_with(&self, errno: Errno) -> u64 {
        errno_index(errno)
            .and_then(|index| self.by_errno.get(index))
            .copied()
            .unwrap_or(self.other_errnos)
    }

    /// The codes that came, with how many messages; unknown codes are left out.
    pub fn by_code(&self) -> impl Iterator<Item = (RequestCode, u64)> + '_ {
        CODES
            .into_iter()
            .zip(self.by_code)
            .filter(|(_, count)| *count > 0)
    }

    /// The errnos of refusals, with how many; those that are not told apart are left out.
    pub fn by_errno(&self) -> impl Iterator<Item = (Errno, u64)> + '_ {
        ERRNOS
            .into_iter()
            .map(Errno::new)
            .zip(self.by_errno)
            .filter(|(_, count)| *count > 0)
    }

    pub(crate) fn count_received(&mut self, code: RequestCode) {
        self.messages += 1;
        let counter = code.index().and_then(|index| self.by_code.get_mut(index));
        *counter.unwrap_or(&mut self.unknown_codes) += 1;
    }

    pub(crate) fn count_refused(&mut self, errno: Errno) {
        self.refused += 1;
        let counter = errno_index(errno).and_then(|index| self.by_errno.get_mut(index));
        *counter.unwrap_or(&mut self.other_errnos) += 1;
    }
}

fn errno_index(errno: Errno) -> Option<usize> {
    ERRNOS.iter().position(|known| *known == errno.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_by_code() {
        let mut stats = ChannelStats::default();
        for code in [9, 9, 1007, 11, 4000] {
            stats.count_received(RequestCode(code));
        }
        assert_eq!(stats.messages, 5);
        assert_eq!(stats.received(RequestCode::SHMEM_MAP), 2);
        assert_eq!(stats.received(RequestCode(12)), 2);
        let by_code: Vec<_> = stats.by_code().collect();
        assert_eq!(
            by_code,
            [(RequestCode::SHMEM_MAP, 2), (RequestCode::EXTERNAL_MAP, 1)]
        );
    }

    #[test]
    fn refusals_are_counted_by_errno() {
        let mut stats = ChannelStats::default();
        for errno in [libc::EINVAL, libc::EDQUOT, libc::EINVAL, libc::EXDEV, 0] {
            stats.count_refused(Errno::new(errno));
        }
        assert_eq!(stats.refused, 5);
        assert_eq!(stats.refused_with(Errno::new(libc::EINVAL)), 2);
        assert_eq!(stats.refused_with(Errno::new(libc::EPIPE)), 2);
        let by_errno: Vec<_> = stats.by_errno().collect();
        assert_eq!(
            by_errno,
            [(Errno::new(libc::EINVAL), 2), (Errno::new(libc::EDQUOT), 1)]
        );
    }
}
