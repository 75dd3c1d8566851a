//! Hostile requests: what a backend must not get, asked for by name, with the answer that is due.
//!
//! Each is complete in itself, whatever is mapped at the time, and leaves nothing mapped.

use std::fmt;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use base::Error as Errno;
use rustix::fs::MemfdFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use thiserror::Error as ThisError;
use vmm_vhost::Outgoing;
use vmm_vhost::message::ExternalMapPayload;

use super::channel::Answer;
use super::channel::Channel;
use super::channel::Error;
use super::channel::Mapping;

/// There is no hostile request of this name.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("no hostile request is called {0:?}; there are {names}", names = Probe::names())]
pub struct UnknownProbe(pub String);

/// A hostile request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A mapping over a live one.
    Overlap,
    /// A mapping behind the region's end.
    Range,
    /// A mapping whose offset and length overflow.
    Overflow,
    /// A mapping beyond the end of its file.
    Short,
    /// A mapping of a raw pointer.
    External,
    /// A mapping into a region that is not this device's.
    OtherRegion,
    /// A mapping at half a page.
    Misaligned,
    /// A mapping of no bytes.
    ZeroLength,
    /// A mapping with reserved flags.
    BadFlags,
    /// A writable mapping of a file that was opened for reading.
    ReadOnlyFile,
    /// A mapping of a pipe.
    Pipe,
    /// An unmap of what is not mapped.
    UnmapHole,
    /// An unmap of a part of a mapping.
    UnmapPart,
}

/// Each with its name and the answer that is due.
const PROBES: [(Probe, &str, i32); 13] = [
    (Probe::Overlap, "overlap", libc::EEXIST),
    (Probe::Range, "range", libc::ERANGE),
    (Probe::Overflow, "overflow", libc::ERANGE),
    (Probe::Short, "short", libc::EOVERFLOW),
    (Probe::External, "external", libc::EPERM),
    (Probe::OtherRegion, "other-region", libc::ENXIO),
    (Probe::Misaligned, "misaligned", libc::EINVAL),
    (Probe::ZeroLength, "zero-length", libc::EINVAL),
    (Probe::BadFlags, "bad-flags", libc::EINVAL),
    (Probe::ReadOnlyFile, "read-only-file", libc::EACCES),
    (Probe::Pipe, "pipe", libc::EBADF),
    (Probe::UnmapHole, "unmap-hole", libc::ENOENT),
    (Probe::UnmapPart, "unmap-part", libc::ENOENT),
];

/// The region that a probe works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its shmid.
    pub shmid: u8,
    /// Its size in bytes.
    pub size: u64,
    /// Two free pages in it, where mappings of the probes' own go.
    pub free: u64,
    /// A shmid that is not this device's.
    pub other: u8,
}

impl Probe {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        PROBES.iter().map(|(probe, ..)| *probe)
    }

    /// The answer that is due.
    pub fn expected(self) -> Errno {
        PROBES
            .iter()
            .find(|(probe, ..)| *probe == self)
            .map_or(Errno::new(libc::EIO), |(.., errno)| Errno::new(*errno))
    }

    fn names() -> String {
        PROBES.map(|(_, name, _)| name).join(", ")
    }

    /// Sends the request, and what it needs before and after, and returns its answer.
    ///
    /// # Errors
    /// [`Error`] when the channel is no longer usable, or this process gets no memory for it.
    pub fn run(self, channel: &mut Channel, target: &Target) -> Result<Answer, Error> {
        let page = base::page_size() as u64;
        let page_of_memory = memfd(page).map_err(Errno::from)?;
        let file = page_of_memory.as_fd();
        let valid = Mapping {
            shmid: target.shmid,
            shm_offset: target.free,
            fd_offset: 0,
            len: page,
            flags: 0,
        };
        match self {
            Self::Overlap => {
                while_mapped(channel, &valid, file, |channel| channel.map(&valid, file))
            }
            Self::UnmapPart => {
                let two = memfd(2 * page).map_err(Errno::from)?;
                let pages = Mapping {
                    len: 2 * page,
                    ..valid
                };
                while_mapped(channel, &pages, two.as_fd(), |channel| {
                    channel.unmap(valid.shmid, valid.shm_offset, page)
                })
            }
            Self::External => channel.request(&Outgoing::external_map(&ExternalMapPayload {
                shmid: valid.shmid,
                padding: [0; 7],
                shm_offset: valid.shm_offset,
                len: valid.len,
                // Any address will do: none of this process means anything to the frontend.
                ptr: 0x1000,
            })),
            Self::UnmapHole => channel.unmap(valid.shmid, valid.shm_offset, page),
            Self::ReadOnlyFile => {
                let path = "/proc/self/exe";
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, Mode::empty()).map_err(Errno::from)?;
                let writable = Mapping { flags: 1, ..valid };
                map_refused(channel, &writable, file.as_fd())
            }
            Self::Pipe => {
                let flags = rustix::pipe::PipeFlags::CLOEXEC;
                let (reader, _writer) = rustix::pipe::pipe_with(flags).map_err(Errno::from)?;
                map_refused(channel, &valid, reader.as_fd())
            }
            _ => map_refused(channel, &self.spoil(valid, target, page), file),
        }
    }

    /// A valid mapping with one thing wrong.
    fn spoil(self, valid: Mapping, target: &Target, page: u64) -> Mapping {
        let mut wrong = valid;
        match self {
            Self::Range => wrong.shm_offset = target.size,
            Self::Overflow => wrong.shm_offset = 0_u64.wrapping_sub(page),
            Self::Short => wrong.fd_offset = page,
            Self::OtherRegion => wrong.shmid = target.other,
            Self::Misaligned => wrong.shm_offset += page / 2,
            Self::ZeroLength => wrong.len = 0,
            Self::BadFlags => wrong.flags = 1 << 63,
            _ => {}
        }
        wrong
    }
}

/// Maps, and takes it back if the frontend granted what it should not have.
fn map_refused(
    channel: &mut Channel,
    mapping: &Mapping,
    file: BorrowedFd<'_>,
) -> Result<Answer, Error> {
    let answer = channel.map(mapping, file)?;
    if answer == Answer::Granted && channel.has_replies() {
        channel.unmap(mapping.shmid, mapping.shm_offset, mapping.len)?;
    }
    Ok(answer)
}

/// Asks while `mapping` is in place. If it can't be put in place, that answer is returned.
fn while_mapped(
    channel: &mut Channel,
    mapping: &Mapping,
    file: BorrowedFd<'_>,
    ask: impl FnOnce(&mut Channel) -> Result<Answer, Error>,
) -> Result<Answer, Error> {
    match channel.map(mapping, file)? {
        Answer::Granted => {
            let answer = ask(channel)?;
            channel.unmap(mapping.shmid, mapping.shm_offset, mapping.len)?;
            Ok(answer)
        }
        refused => Ok(refused),
    }
}

fn memfd(size: u64) -> rustix::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, size)?;
    Ok(file)
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PROBES
            .iter()
            .find(|(probe, ..)| probe == self)
            .map_or(Ok(()), |(_, name, _)| f.pad(name))
    }
}

impl FromStr for Probe {
    type Err = UnknownProbe;

    fn from_str(text: &str) -> Result<Self, UnknownProbe> {
        PROBES
            .iter()
            .find(|(_, name, _)| *name == text)
            .map(|(probe, ..)| *probe)
            .ok_or_else(|| UnknownProbe(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for probe in Probe::all() {
            assert_eq!(probe.to_string().parse(), Ok(probe));
        }
        assert_eq!(Probe::all().count(), PROBES.len());
    }

    #[test]
    fn unknown_name_is_refused_with_the_known_ones() {
        let error = "none".parse::<Probe>().map_err(|error| error.to_string());
        assert!(
            matches!(&error, Err(text) if text.starts_with(
                "no hostile request is called \"none\"; there are overlap, range"
            )),
            "{error:?}"
        );
    }
}
