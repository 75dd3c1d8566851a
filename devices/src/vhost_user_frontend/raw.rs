//! The requests of the main channel that the crate `vhost` has no function for, on the same socket.
//!
//! Blocking, one request at a time, and only between two calls of `vhost`'s client, so that the stream stays in step.
//! Descriptors that come with a reply are closed unless they are what was asked for.

use std::io;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use base::SafeDescriptor;
use base::scm;
use base::scm::DescriptorVec;
use remain::sorted;
use thiserror::Error;

const HEADER_BYTES: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What went wrong with a request of this module.
#[sorted]
#[derive(Debug, Error)]
pub enum RawError {
    /// The socket was closed in the middle, or before it.
    #[error("request {code}: the backend closed the main channel")]
    Closed {
        /// The request's code.
        code: u32,
    },
    /// The backend answered that it could not do it.
    #[error("request {code}: the backend answers with failure {value:#x}")]
    Nack {
        /// The request's code.
        code: u32,
        /// The value in its answer.
        value: u64,
    },
    /// The reply's header is not that of a reply to the request.
    #[error("request {code}: the reply has code {got} and flags {flags:#x}")]
    NotTheReply {
        /// The request's code.
        code: u32,
        /// The code in the reply.
        got: u32,
        /// The flags in the reply.
        flags: u32,
    },
    /// The backend answered with nothing, which means that it could not do it.
    #[error("request {code}: the backend can't answer it")]
    Refused {
        /// The request's code.
        code: u32,
    },
    /// The reply's payload has the wrong length.
    #[error("request {code}: the reply has {got} bytes, not {want}")]
    ReplySize {
        /// The request's code.
        code: u32,
        /// The length in the reply's header.
        got: u32,
        /// What it should have been.
        want: u32,
    },
    /// A system call failed.
    #[error("request {code}: the main channel failed")]
    Socket {
        /// The request's code.
        code: u32,
        /// How.
        source: io::Error,
    },
}

impl RawError {
    fn from_io(code: u32, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed { code },
            _ => Self::Socket { code, source },
        }
    }
}

/// The main channel's socket, for requests of which only the code and the bytes are known.
#[derive(Debug)]
pub(super) struct RawChannel {
    socket: UnixStream,
}

impl RawChannel {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Sends a request that has no answer of its own, and waits for the ack if `acked`.
    pub(super) fn command(
        &self,
        code: u32,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
        acked: bool,
    ) -> Result<(), RawError> {
        let flags = if acked { NEED_REPLY } else { 0 };
        self.send(code, flags, payload, descriptor)?;
        if !acked {
            return Ok(());
        }
        match u64::from_ne_bytes(self.fixed_reply(code)?) {
            0 => Ok(()),
            value => Err(RawError::Nack { code, value }),
        }
    }

    /// Sends a request without payload and returns the `N` bytes of its answer.
    pub(super) fn query<const N: usize>(&self, code: u32) -> Result<[u8; N], RawError> {
        self.send(code, 0, &[], None)?;
        self.fixed_reply(code)
    }

    /// Sends a request without payload and returns its answer of at most `cap` bytes.
    pub(super) fn query_up_to(&self, code: u32, cap: u32) -> Result<Vec<u8>, RawError> {
        self.send(code, 0, &[], None)?;
        let size = self.reply_header(code)?;
        if size > cap {
            return Err(RawError::ReplySize {
                code,
                got: size,
                want: cap,
            });
        }
        let mut payload = vec![0; usize::try_from(size).expect("a u32 fits a usize on Linux")];
        self.read(code, &mut payload)?;
        Ok(payload)
    }

    /// Sends a request whose answer has a payload of the same length, or none if the backend can't.
    pub(super) fn query_like(&self, code: u32, payload: &[u8]) -> Result<Vec<u8>, RawError> {
        self.send(code, 0, payload, None)?;
        let got = self.reply_header(code)?;
        let want = u32::try_from(payload.len()).expect("requests are small");
        if got == 0 {
            return Err(RawError::Refused { code });
        }
        if got != want {
            return Err(RawError::ReplySize { code, got, want });
        }
        let mut answer = vec![0; payload.len()];
        self.read(code, &mut answer)?;
        Ok(answer)
    }

    /// Sends a request and returns the descriptor of its answer, which may have none.
    pub(super) fn query_descriptor(
        &self,
        code: u32,
        payload: &[u8],
    ) -> Result<Option<SafeDescriptor>, RawError> {
        self.send(code, 0, payload, None)?;
        let mut header = [[0_u8; 4]; 3];
        let mut descriptors = DescriptorVec::<1>::new();
        // Descriptors come with a message's first byte.
        let start = self.read_some(code, header.as_flattened_mut(), &mut descriptors)?;
        self.read(code, &mut header.as_flattened_mut()[start..])?;
        let size = check_reply(code, header)?;
        let got = usize::try_from(size).expect("a u32 fits a usize on Linux");
        let mut value = [0; 8];
        let Some(rest) = value.get_mut(..got) else {
            return Err(RawError::ReplySize {
                code,
                got: size,
                want: 8,
            });
        };
        self.read(code, rest)?;
        Ok(descriptors.pop())
    }

    fn fixed_reply<const N: usize>(&self, code: u32) -> Result<[u8; N], RawError> {
        let got = self.reply_header(code)?;
        let want = u32::try_from(N).expect("replies are small");
        if got != want {
            return Err(RawError::ReplySize { code, got, want });
        }
        let mut payload = [0; N];
        self.read(code, &mut payload)?;
        Ok(payload)
    }

    fn reply_header(&self, code: u32) -> Result<u32, RawError> {
        let mut header = [[0_u8; 4]; 3];
        self.read(code, header.as_flattened_mut())?;
        check_reply(code, header)
    }

    fn read(&self, code: u32, buffer: &mut [u8]) -> Result<(), RawError> {
        let mut done = 0;
        while done < buffer.len() {
            let mut none = DescriptorVec::<1>::new();
            done += self.read_some(code, &mut buffer[done..], &mut none)?;
        }
        Ok(())
    }

    /// The policy of a device process has recvmsg and no other way to receive.
    fn read_some(
        &self,
        code: u32,
        buffer: &mut [u8],
        descriptors: &mut DescriptorVec<1>,
    ) -> Result<usize, RawError> {
        let received = scm::recv(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(buffer)],
            descriptors,
            scm::Wait::Block,
        )
        .map_err(|error| RawError::from_io(code, error.into()))?;
        match received.bytes {
            0 => Err(RawError::Closed { code }),
            bytes => Ok(bytes),
        }
    }

    fn send(
        &self,
        code: u32,
        flags: u32,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), RawError> {
        let size = u32::try_from(payload.len()).expect("requests are small");
        let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
        for word in [code, VERSION | flags, size] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(payload);
        let mut descriptors = descriptor.as_slice();
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let sent = scm::send(
                self.socket.as_fd(),
                &[IoSlice::new(rest)],
                descriptors,
                scm::Wait::Block,
            )
            .map_err(|error| RawError::from_io(code, error.into()))?;
            rest = &rest[sent..];
            descriptors = &[];
        }
        Ok(())
    }
}

/// Returns the size of the payload that follows a reply's header.
fn check_reply(code: u32, header: [[u8; 4]; 3]) -> Result<u32, RawError> {
    let [got, flags, size] = header.map(u32::from_ne_bytes);
    if got != code || flags & !NEED_REPLY != VERSION | REPLY {
        return Err(RawError::NotTheReply { code, got, flags });
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;

    use super::*;

    fn pair() -> (RawChannel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (RawChannel::new(ours), theirs)
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn command_that_is_acked_has_the_bytes_of_the_specification() {
        let (channel, mut backend) = pair();
        let ack = [39, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        backend.write_all(&ack).unwrap();

        channel
            .command(39, &3_u64.to_ne_bytes(), None, true)
            .unwrap();

        let mut got = [0; 20];
        backend.read_exact(&mut got).unwrap();
        let want = [39, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(got, want);
    }

    #[test]
    fn query_answered_for_another_request_is_refused() {
        let (channel, mut backend) = pair();
        for word in [16_u32, 5, 8, 0, 0] {
            backend.write_all(&word.to_ne_bytes()).unwrap();
        }
        let error = channel.query::<8>(15).unwrap_err();
        assert!(matches!(
            error,
            RawError::NotTheReply {
                code: 15,
                got: 16,
                flags: 5
            }
        ));
    }

    #[test]
    fn query_answered_with_another_size_is_refused() {
        let (channel, mut backend) = pair();
        for word in [15_u32, 5, 0] {
            backend.write_all(&word.to_ne_bytes()).unwrap();
        }
        let error = channel.query::<8>(15).unwrap_err();
        assert!(matches!(
            error,
            RawError::ReplySize {
                code: 15,
                got: 0,
                want: 8
            }
        ));
    }

    #[test]
    fn query_like_answered_with_nothing_is_a_refusal() {
        let (channel, mut backend) = pair();
        for word in [24_u32, 5, 0] {
            backend.write_all(&word.to_ne_bytes()).unwrap();
        }
        let error = channel.query_like(24, &[0; 16]).unwrap_err();
        assert!(matches!(error, RawError::Refused { code: 24 }));
    }

    #[test]
    fn query_up_to_with_an_answer_over_the_cap_reads_none_of_it() {
        let (channel, mut backend) = pair();
        for word in [1004_u32, 5, u32::MAX] {
            backend.write_all(&word.to_ne_bytes()).unwrap();
        }
        let error = channel.query_up_to(1004, 64).unwrap_err();
        assert!(matches!(
            error,
            RawError::ReplySize {
                got: u32::MAX,
                want: 64,
                ..
            }
        ));
    }

    #[test]
    fn query_of_a_closed_channel_says_closed() {
        let (channel, backend) = pair();
        drop(backend);
        let error = channel.query::<8>(15).unwrap_err();
        assert!(matches!(error, RawError::Closed { code: 15 }));
    }

    #[test]
    fn command_that_is_nacked_keeps_the_value() {
        let (channel, mut backend) = pair();
        for word in [39_u32, 5, 8, 1, 0] {
            backend.write_all(&word.to_ne_bytes()).unwrap();
        }
        let error = channel.command(39, &[0; 8], None, true).unwrap_err();
        assert!(matches!(error, RawError::Nack { code: 39, value: 1 }));
    }
}
