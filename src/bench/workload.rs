//! The workload: pairs of SHMEM_MAP and SHMEM_UNMAP over one region, sent by a driver that only makes system calls.
//!
//! The same driver runs against the limits and against Portcullis, so that a difference is never the driver's.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use serde::Deserialize;
use serde::Serialize;

use super::bare;

/// Bytes of the region, and of the memfd that is mapped into it.
pub(super) const REGION_BYTES: u64 = 1 << 30;
/// Bytes of one request: the header and MMAP.
pub(super) const REQUEST_BYTES: usize = 52;
/// Bytes of one reply: the header and a u64.
pub(super) const REPLY_BYTES: usize = 20;

const SHMEM_MAP: u32 = 9;
const SHMEM_UNMAP: u32 = 10;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// The next request leaves when the reply is in.
    OneAtATime,
    /// This many maps, then their replies, then as many unmaps, then their replies.
    Pipelined(u32),
    /// As pipelined, and only the last request of each group asks for a reply.
    Unacked(u32),
}

impl Mode {
    /// Pairs that are timed together.
    pub(super) fn width(self) -> u32 {
        match self {
            Mode::OneAtATime => 1,
            Mode::Pipelined(width) | Mode::Unacked(width) => width,
        }
    }
}

/// What a driver does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Workload {
    pub(super) mode: Mode,
    /// Bytes of each mapping.
    pub(super) len: u64,
    /// Offsets rotate over this many slots of `len` bytes.
    pub(super) slots: u64,
    /// Pairs that are not counted, first.
    pub(super) warm_up: u32,
    /// Pairs that are counted.
    pub(super) pairs: u32,
    /// Mappings of one page that are made before and stay, in the region's upper part: the slots must not reach them.
    pub(super) live: u32,
}

/// What a driver measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) pairs: u32,
    /// Nanoseconds of all counted pairs.
    pub(super) total_ns: u64,
    /// Of the single pairs, one at a time; of a group divided by its size otherwise.
    pub(super) median_ns: u64,
    pub(super) p99_ns: u64,
}

impl Measured {
    /// Sums up `groups` of `size` pairs each, which took `total` together.
    pub(super) fn of(
        pairs: u32,
        total: Duration,
        mut groups: Vec<Duration>,
        size: u32,
    ) -> Measured {
        groups.sort_unstable();
        let at = |permille: usize| {
            let index = (groups.len() * permille / 1000).min(groups.len().saturating_sub(1));
            groups
                .get(index)
                .map_or(0, |took| nanoseconds(*took) / u64::from(size))
        };
        Measured {
            pairs,
            total_ns: nanoseconds(total),
            median_ns: at(500),
            p99_ns: at(990),
        }
    }
}

/// Builds one request by hand.
fn request(
    code: u32,
    need_reply: bool,
    offset: u64,
    len: u64,
    file_offset: u64,
) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    let flags = if need_reply {
        VERSION | NEED_REPLY
    } else {
        VERSION
    };
    bytes[0..4].copy_from_slice(&code.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&40u32.to_ne_bytes());
    // shmid 0 and its padding, then:
    bytes[20..28].copy_from_slice(&file_offset.to_ne_bytes());
    bytes[28..36].copy_from_slice(&offset.to_ne_bytes());
    bytes[36..44].copy_from_slice(&len.to_ne_bytes());
    let flags: u64 = if code == SHMEM_MAP { 1 } else { 0 };
    bytes[44..52].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// The backend's side: sends the workload on the request channel and measures.
pub(super) struct Driver {
    channel: OwnedFd,
    file: OwnedFd,
    /// Bytes of the region, and of the file.
    region: u64,
    /// Bytes of replies that were read and not yet looked at.
    pending: usize,
    buffer: [u8; REPLY_BYTES * 64],
}

impl Driver {
    pub(super) fn new(channel: OwnedFd, file: OwnedFd, region: u64) -> Driver {
        Driver {
            channel,
            file,
            region,
            pending: 0,
            buffer: [0; REPLY_BYTES * 64],
        }
    }

    /// Makes the mappings that stay, and runs the pairs that are not counted.
    ///
    /// # Errors
    /// If a call fails, the peer goes away, or a request is refused.
    pub(super) fn warm_up(&mut self, workload: &Workload) -> io::Result<()> {
        self.keep(0..u64::from(workload.live))?;
        self.pairs(workload, workload.warm_up, |_| ())?;
        Ok(())
    }

    /// Makes one mapping that stays.
    ///
    /// # Errors
    /// As for [`warm_up`](Self::warm_up).
    pub(super) fn area(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.map(offset, len, true)?;
        self.replies(1)
    }

    /// Makes these of the mappings that stay: of every other page, from the region's end, so that no two areas merge.
    ///
    /// # Errors
    /// As for [`warm_up`](Self::warm_up).
    pub(super) fn keep(&mut self, live: Range<u64>) -> io::Result<()> {
        for index in live {
            self.area(self.region - (index + 1) * 2 * 4096, 4096)?;
        }
        Ok(())
    }

    /// Runs the pairs that are counted.
    ///
    /// # Errors
    /// If a call fails, the peer goes away, or a request is refused.
    pub(super) fn run(&mut self, workload: &Workload) -> io::Result<Measured> {
        let mut groups = Vec::with_capacity(workload.pairs as usize);
        let start = Instant::now();
        let pairs = self.pairs(workload, workload.pairs, |took| groups.push(took))?;
        Ok(Measured::of(
            pairs,
            start.elapsed(),
            groups,
            workload.mode.width(),
        ))
    }

    /// Sends `pairs` pairs in the workload's mode, tells `took` the time of each pair or group, and returns how many pairs there were.
    ///
    /// # Errors
    /// As for [`warm_up`](Self::warm_up).
    pub(super) fn pairs(
        &mut self,
        workload: &Workload,
        pairs: u32,
        mut took: impl FnMut(Duration),
    ) -> io::Result<u32> {
        let width = workload.mode.width();
        let all_acked = !matches!(workload.mode, Mode::Unacked(_));
        let mut slot = 0;
        let mut done = 0;
        while done < pairs {
            let start = Instant::now();
            for index in 0..width {
                let offset = (slot + u64::from(index)) % workload.slots * workload.len;
                self.map(offset, workload.len, all_acked || index + 1 == width)?;
            }
            self.replies(if all_acked { width } else { 1 })?;
            for index in 0..width {
                let offset = (slot + u64::from(index)) % workload.slots * workload.len;
                self.unmap(offset, workload.len, all_acked || index + 1 == width)?;
            }
            self.replies(if all_acked { width } else { 1 })?;
            took(start.elapsed());
            slot += u64::from(width);
            done += width;
        }
        Ok(done)
    }

    fn map(&self, offset: u64, len: u64, need_reply: bool) -> io::Result<()> {
        let bytes = request(SHMEM_MAP, need_reply, offset, len, offset);
        bare::send(self.channel.as_fd(), &bytes, Some(self.file.as_fd()))
    }

    /// Sends bytes that are no whole request.
    ///
    /// # Errors
    /// The call's errno.
    pub(super) fn send_some(&self, bytes: &[u8]) -> io::Result<()> {
        bare::send(self.channel.as_fd(), bytes, None)
    }

    /// Sends requests whenever there is room, and reads no reply: unmaps of what is not mapped, which are in order and refused with
    /// ENOENT by the mapping service, or with a code that nobody knows.
    ///
    /// # Errors
    /// The errno of a call, but for the lack of room.
    pub(super) fn flood(&self, is_known: bool, deadline: Instant) -> io::Result<()> {
        let code = if is_known { SHMEM_UNMAP } else { u32::MAX };
        let bytes = request(code, true, 0, 4096, 0);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let wait = rustix::time::Timespec::try_from(left).map_err(io::Error::other)?;
            let room = PollFlags::OUT;
            if poll(&mut [PollFd::new(&self.channel, room)], Some(&wait))? > 0 {
                bare::send(self.channel.as_fd(), &bytes, None)?;
            }
        }
    }

    fn unmap(&self, offset: u64, len: u64, need_reply: bool) -> io::Result<()> {
        let bytes = request(SHMEM_UNMAP, need_reply, offset, len, 0);
        bare::send(self.channel.as_fd(), &bytes, None)
    }

    /// Reads `count` replies; each must say 0.
    fn replies(&mut self, count: u32) -> io::Result<()> {
        let mut missing = count as usize * REPLY_BYTES;
        while missing > 0 {
            let room = missing.min(self.buffer.len() - self.pending);
            let buffer = &mut self.buffer[self.pending..self.pending + room];
            let received = bare::receive_bytes(self.channel.as_fd(), buffer)?;
            missing -= received;
            self.pending += received;
            let whole = self.pending / REPLY_BYTES * REPLY_BYTES;
            for reply in self.buffer[..whole].chunks_exact(REPLY_BYTES) {
                if reply[12..] != [0; 8] {
                    return Err(io::Error::other(format!("refused: {reply:02x?}")));
                }
            }
            self.buffer.copy_within(whole..self.pending, 0);
            self.pending -= whole;
        }
        Ok(())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A request as the limits decode it: as much as is needed to do what it says, and no check.
pub(super) struct Decoded {
    pub(super) map: bool,
    pub(super) need_reply: bool,
    pub(super) file_offset: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Decodes one request of the driver's.
pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Decoded {
    let u32_at =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    Decoded {
        map: u32_at(0) == SHMEM_MAP,
        need_reply: u32_at(4) & NEED_REPLY != 0,
        file_offset: u64_at(20),
        offset: u64_at(28),
        len: u64_at(36),
    }
}

/// Builds the reply that says 0 to the request.
pub(super) fn reply(request: &[u8; REQUEST_BYTES]) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    bytes[0..4].copy_from_slice(&request[0..4]);
    bytes[4..8].copy_from_slice(&5u32.to_ne_bytes());
    bytes[8..12].copy_from_slice(&8u32.to_ne_bytes());
    bytes
}

/// Returns the bytes of a request out of what was received.
///
/// # Errors
/// InvalidData where it is not one whole request: the limits read one message at a time.
pub(super) fn whole(buffer: &[u8], received: usize) -> io::Result<&[u8; REQUEST_BYTES]> {
    buffer
        .get(..received)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{received} bytes")))
}
