//! Closing what devices sent, without waiting for whoever made it.
//!
//! To close a file of a user file system waits for its server, to close an internet socket can wait for its peer (and a Unix socket
//! can hold one), a virtual machine takes its time to end, and so may a device's driver. What was mapped was looked at and is none
//! of these; what was refused can be anything.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::Closer;
use base::CloserStuck;
use base::DescriptorKind;
use base::Outlined;
use base::SafeDescriptor;
use base::Tube;
use base::TubeError;
use base::TubeResult;
use base::inspect;
use base::packet::PacketTube;
use base::scm::DescriptorVec;
use base::scm::Wait;

use crate::MAX_BATCH;
use crate::RequestBatch;
use crate::VmMemoryRequest;
use crate::VmMemorySource;

/// How many packets are taken out of a tube that is closed; more are closed with it, elsewhere.
const PACKETS_TO_EMPTY: u32 = 16;

/// The requests of a batch that were refused, by their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused(u32);

impl Refused {
    const ALL: Self = Self(u32::MAX);

    pub(super) fn insert(&mut self, place: usize) {
        self.0 |= 1 << place;
    }

    fn contains(self, place: usize) -> bool {
        self.0 & (1 << place) != 0
    }
}

// One bit for each request of a batch.
const _: () = assert!(MAX_BATCH == 32);

/// Closes the descriptors of a batch.
///
/// # Errors
/// Some that can stall could not be handed over: the device must send no more.
pub(super) fn close_batch(
    batch: RequestBatch,
    refused: Refused,
    closer: &mut Closer,
) -> Result<(), CloserStuck> {
    let mut outcome = Ok(());
    for (place, request) in batch.requests.into_iter().enumerate() {
        let VmMemoryRequest::RegisterMemory { source, .. } = request else {
            continue;
        };
        let (descriptor, is_known) = match source {
            VmMemorySource::Descriptor { descriptor, .. } => (descriptor, !refused.contains(place)),
            VmMemorySource::Vulkan { descriptor, .. } => (descriptor, false),
            VmMemorySource::ExternalMapping { .. } => continue,
        };
        if is_known {
            drop(descriptor);
        } else {
            outcome = outcome.and(close(descriptor, closer));
        }
    }
    outcome
}

/// Receives a device's next batch, if there is one, as far as it got here. Descriptors that are not a whole batch's are closed
/// without waiting, too.
pub(super) fn receive(
    tube: &mut PacketTube,
    wait: Wait,
    closer: &mut Closer,
) -> TubeResult<Outlined<RequestBatch, RequestBatch<u8>>> {
    let mut rejected = DescriptorVec::<MAX_BATCH>::new();
    let received = tube.recv_outlined(wait, &mut rejected);
    for descriptor in rejected {
        // What can't be handed over stays open. The next refused one meets the same closer, and ends the device.
        let _ = close(descriptor, closer);
    }
    received
}

fn close(descriptor: SafeDescriptor, closer: &mut Closer) -> Result<(), CloserStuck> {
    if closes_at_once(descriptor.as_fd()) {
        drop(descriptor);
        Ok(())
    } else {
        closer.close(descriptor)
    }
}

/// Closes a device's tube and all that was sent through it and not received.
pub(super) fn close_tube(mut tube: PacketTube, closer: &mut Closer) {
    for _ in 0..PACKETS_TO_EMPTY {
        match receive(&mut tube, Wait::Never, closer) {
            // Nothing is in it: the usual end.
            Err(TubeError::Disconnected | TubeError::WouldBlock) => return,
            // What can't be handed over stays open, which is reported below or has been.
            Ok(Outlined::Whole(batch)) => drop(close_batch(batch, Refused::ALL, closer)),
            Ok(Outlined::Bare(_)) | Err(_) => {}
        }
    }
    hand_over(tube.into_tube(), closer);
}

fn hand_over(tube: Tube, closer: &mut Closer) {
    let tube: SafeDescriptor = tube.into_descriptor();
    if closer.close(tube).is_err() {
        base::error!("mapping service: the tube of a device that is gone does not close");
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
