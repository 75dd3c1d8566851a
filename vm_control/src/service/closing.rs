//! Closing what devices sent, without waiting for whoever made it.
//!
//! To close a file of a user file system waits for its server, to close an internet socket can wait for its peer (and a Unix socket
//! can hold one), a virtual machine takes its time to end, and so may a device's driver. What was mapped was looked at and is none
//! of these; what was refused can be anything.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::Closer;
use base::DescriptorKind;
use base::NoCloser;
use base::SafeDescriptor;
use base::inspect;
use base::packet::PacketTube;
use base::scm::DescriptorVec;
use base::scm::MAX_DESCRIPTORS;

use crate::MAX_BATCH;

/// Those of a packet's descriptors that may be of any kind, by their places: what was mapped was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Suspects(u32);

impl Suspects {
    pub(super) const ALL: Self = Self(u32::MAX);

    pub(super) fn insert(&mut self, place: u8) {
        self.0 |= 1 << place;
    }

    /// What no request can have is a suspect.
    fn contains(self, place: usize) -> bool {
        place >= MAX_BATCH || self.0 & (1 << place) != 0
    }
}

// One bit for each request of a batch, which has one descriptor at most.
const _: () = assert!(MAX_BATCH == 32);

/// A packet's descriptors: as many as one can have, since the kernel closes those for which there is no room, and that can take long.
pub(super) type Descriptors = DescriptorVec<MAX_DESCRIPTORS>;

/// Closes the descriptors of a packet.
///
/// # Errors
/// Some that can stall could not be handed over and stay open: the device must send no more.
pub(super) fn close_all(
    descriptors: &mut Descriptors,
    suspects: Suspects,
    closer: &mut Closer,
) -> Result<(), NoCloser> {
    let mut outcome = Ok(());
    for (place, descriptor) in descriptors.drain(..).enumerate() {
        if suspects.contains(place) {
            outcome = outcome.and(close(descriptor, closer));
        } else {
            drop(descriptor);
        }
    }
    outcome
}

fn close(descriptor: SafeDescriptor, closer: &mut Closer) -> Result<(), NoCloser> {
    if closes_at_once(descriptor.as_fd()) {
        drop(descriptor);
        Ok(())
    } else {
        closer.close(descriptor)
    }
}

/// Closes a device's tube and all that was sent through it and not received.
pub(super) fn close_tube(tube: PacketTube, closer: &mut Closer) {
    if let Err(error) = closer.close_tube(tube.into_tube()) {
        base::error!("mapping service: the tube of a device that is gone stays open: {error}");
    }
}

/// Whether to close it waits for nobody.
fn closes_at_once(descriptor: BorrowedFd<'_>) -> bool {
    let Ok(info) = inspect(descriptor) else {
        return false;
    };
    match info.kind {
        DescriptorKind::File => !info.can_stall,
        DescriptorKind::Anonymous
        | DescriptorKind::BlockDevice
        | DescriptorKind::CharDevice
        | DescriptorKind::Socket => false,
        DescriptorKind::Directory
        | DescriptorKind::DmaBuf
        | DescriptorKind::Memfd
        | DescriptorKind::Other
        | DescriptorKind::Pipe => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use base::Event;

    use super::*;

    #[test]
    fn what_a_server_or_a_driver_could_hold_up_is_not_closed_here() {
        let closes = |descriptor: &dyn AsFd| closes_at_once(descriptor.as_fd());
        let (unix, _peer) = UnixStream::pair().expect("a pair");
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        assert!(closes(&pipe));
        assert!(closes(&File::open("/").expect("a directory")));
        assert!(closes(&tempfile::tempfile().expect("a file")));
        assert!(!closes(&unix));
        assert!(!closes(&Event::new().expect("an event")));
        assert!(!closes(&File::open("/dev/null").expect("a device")));
    }
}
