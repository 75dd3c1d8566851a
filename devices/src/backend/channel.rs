//! The backend's end of the request channel, for one request after the other.
//!
//! It blocks: on the frontend, which a reference backend trusts, and until somebody shuts the socket
//! down. A refusal is an [`Answer`] here, no error: backends go on after it.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::Error as Errno;
use base::SafeDescriptor;
use remain::sorted;
use thiserror::Error;
use vmm_vhost::ClientError;
use vmm_vhost::FrontendClient;
use vmm_vhost::Outgoing;
use vmm_vhost::message::MmapPayload;
use vmm_vhost::message::ProtocolFeatures;

/// A request could not be made.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The channel can't be used any more.
    #[error(transparent)]
    Channel(#[from] ClientError),
    /// This process has no memory or no descriptor for it.
    #[error("{0}")]
    System(#[from] Errno),
}

/// A mapping of a descriptor into a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The region.
    pub shmid: u8,
    /// Where in the region.
    pub shm_offset: u64,
    /// Where in the file.
    pub fd_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// 0 read only, 1 read and write; other bits are reserved.
    pub flags: u64,
}

impl Mapping {
    fn payload(&self) -> MmapPayload {
        MmapPayload {
            shmid: self.shmid,
            padding: [0; 7],
            fd_offset: self.fd_offset,
            shm_offset: self.shm_offset,
            len: self.len,
            flags: self.flags,
        }
    }
}

/// What the frontend answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It did what was asked, or does not answer.
    Granted,
    /// It refused; EIO if it does not say why.
    Refused(Errno),
}

/// The request channel with what was agreed about it.
#[derive(Debug)]
pub struct Channel {
    client: FrontendClient,
    protocol_features: ProtocolFeatures,
}

impl Channel {
    /// Takes the socket that came with `SET_BACKEND_REQ_FD`, and the bits of the protocol features.
    pub fn new(socket: SafeDescriptor, protocol_features: u64) -> Self {
        let protocol_features = ProtocolFeatures::from_bits_retain(protocol_features);
        let reply_ack = protocol_features.contains(ProtocolFeatures::REPLY_ACK);
        Self {
            client: FrontendClient::new(socket, reply_ack),
            protocol_features,
        }
    }

    /// Tells whether the frontend maps at all.
    pub fn has_shmem(&self) -> bool {
        self.protocol_features.contains(ProtocolFeatures::SHMEM)
    }

    /// Tells whether standard requests are answered.
    pub fn has_replies(&self) -> bool {
        self.protocol_features.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Duplicates the socket, to shut it down from another thread.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone_socket(&self) -> Result<SafeDescriptor, Errno> {
        Ok(self.client.as_fd().try_clone_to_owned()?.into())
    }

    /// Maps `file` and waits for the answer.
    ///
    /// # Errors
    /// [`enum@Error`] when the channel is no longer usable.
    pub fn map(&mut self, mapping: &Mapping, file: BorrowedFd<'_>) -> Result<Answer, Error> {
        self.request(&Outgoing::shmem_map(&mapping.payload(), file))
    }

    /// Unmaps what [`Channel::map`] mapped.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn unmap(&mut self, shmid: u8, shm_offset: u64, len: u64) -> Result<Answer, Error> {
        let mapping = Mapping {
            shmid,
            shm_offset,
            fd_offset: 0,
            len,
            flags: 0,
        };
        self.request(&Outgoing::shmem_unmap(&mapping.payload()))
    }

    /// Says that the configuration space has changed, if that may be said.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn config_changed(&mut self) -> Result<Answer, Error> {
        if !self.protocol_features.contains(ProtocolFeatures::CONFIG) {
            return Ok(Answer::Granted);
        }
        self.request(&Outgoing::config_change())
    }

    /// Sends any request and waits for its reply, if one is due.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn request(&mut self, request: &Outgoing<'_>) -> Result<Answer, Error> {
        match self.client.call(request) {
            Ok(()) => Ok(Answer::Granted),
            Err(error @ ClientError::Refused { .. }) => Ok(Answer::Refused(
                error.errno().unwrap_or(Errno::new(libc::EIO)),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::io::IoSliceMut;

    use base::scm;
    use base::scm::DescriptorVec;
    use base::scm::Wait;

    use super::*;

    const REPLY_ACK: u64 = 1 << 3;
    const CONFIG: u64 = 1 << 9;
    const SHMEM: u64 = 1 << 22;

    /// `SHMEM_MAP`, need_reply, 40 bytes: typed by hand from the specification.
    #[rustfmt::skip]
    const MAP: [u8; 52] = [
        9, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0x41, 1, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    const UNMAP: [u8; 52] = [
        10, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0x41, 1, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    const MAPPING: Mapping = Mapping {
        shmid: 1,
        shm_offset: 0x1000,
        fd_offset: 0x2000,
        len: 321,
        flags: 1,
    };

    fn pair(features: u64) -> (Channel, SafeDescriptor) {
        let (ours, theirs) = scm::stream_pair().expect("a socket pair");
        (Channel::new(ours, features), theirs)
    }

    fn reply(socket: &SafeDescriptor, code: u8, value: i64) {
        let mut bytes = [code, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0].to_vec();
        bytes.extend(value.to_le_bytes());
        let sent = scm::send(socket.as_fd(), &[IoSlice::new(&bytes)], &[], Wait::Never);
        assert_eq!(sent, Ok(20));
    }

    fn received(socket: &SafeDescriptor) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; 100];
        let mut descriptors = DescriptorVec::<4>::new();
        let received = scm::recv(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut descriptors,
            Wait::Never,
        )
        .expect("a request");
        bytes.truncate(received.bytes);
        (bytes, descriptors.len())
    }

    #[test]
    fn map_and_unmap_are_the_specified_bytes() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        reply(&frontend, 9, 0);
        let file = frontend.as_fd();
        let answer = channel.map(&MAPPING, file).expect("an answer");
        assert_eq!(answer, Answer::Granted);
        assert_eq!(received(&frontend), (MAP.to_vec(), 1));
        reply(&frontend, 10, -2);
        let answer = channel.unmap(1, 0x1000, 321).expect("an answer");
        assert_eq!(answer, Answer::Refused(Errno::new(libc::ENOENT)));
        assert_eq!(received(&frontend), (UNMAP.to_vec(), 0));
    }

    #[test]
    fn refusal_without_an_errno_is_eio() {
        for value in [1, i64::MAX, i64::MIN, -4096] {
            let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
            reply(&frontend, 10, value);
            let answer = channel.unmap(0, 0, 1).expect("an answer");
            assert_eq!(answer, Answer::Refused(Errno::new(libc::EIO)), "{value}");
        }
    }

    #[test]
    fn request_without_reply_ack_waits_for_nothing() {
        let (mut channel, frontend) = pair(SHMEM | CONFIG);
        let answer = channel.map(&MAPPING, frontend.as_fd()).expect("no answer");
        assert_eq!(answer, Answer::Granted);
        let answer = channel.config_changed().expect("no answer");
        assert_eq!(answer, Answer::Granted);
        // No need_reply: there would be no reply.
        let mut map = MAP;
        map[4] = 1;
        assert_eq!(received(&frontend), (map.to_vec(), 1));
        assert_eq!(
            received(&frontend),
            (vec![2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], 0)
        );
    }

    #[test]
    fn reply_to_something_else_ends_the_channel() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        reply(&frontend, 10, 0);
        let result = channel.map(&MAPPING, frontend.as_fd());
        assert!(
            matches!(
                &result,
                Err(Error::Channel(ClientError::UnexpectedReply { want, got }))
                    if (want.0, got.0) == (9, 10)
            ),
            "{result:?}"
        );
    }

    #[test]
    fn frontend_that_is_gone_is_closed() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        drop(frontend);
        let result = channel.unmap(0, 0, 1);
        assert!(
            matches!(result, Err(Error::Channel(ClientError::Connection(_)))),
            "{result:?}"
        );
    }
}
