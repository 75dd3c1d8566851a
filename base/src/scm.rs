//! Bytes with descriptors over Unix sockets: one system call each way and no heap.
//!
//! Framing, and whose the descriptors of a stream's piece are, is the business of those who call this.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::io::retry_on_intr;
use rustix::net::AddressFamily;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::ReturnFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendAncillaryMessage;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::recvmsg;
use rustix::net::sendmsg;
use rustix::net::socketpair;
use rustix::net::sockopt::Timeout;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::sockopt::set_socket_timeout;

use crate::Error;
use crate::Result;
use crate::SafeDescriptor;

/// How many descriptors Linux carries with one message at most (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// Descriptors that came with a message, at most `N`.
pub type DescriptorVec<const N: usize> = ArrayVec<SafeDescriptor, N>;

const CONTROL_BYTES: usize = cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Whether a call waits until the socket is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It waits, at most for the socket's timeout; that comes back as `EAGAIN`.
    Block,
    /// It does not; a socket that is not ready comes back as `EAGAIN`.
    Never,
}

/// What one [`recv`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many bytes of the buffers are filled. 0 means that the peer closed (or sent an empty packet).
    pub bytes: usize,
    /// A packet was longer than the buffers, and its rest is lost.
    pub truncated: bool,
    /// There were more descriptors than `N`, or than this process may have. The surplus is closed.
    pub descriptors_truncated: bool,
}

/// Receives once; descriptors are appended to `descriptors` and are close-on-exec.
///
/// On error nothing was received.
///
/// # Errors
/// The errno of `recvmsg`: `EAGAIN` where it would wait for longer than it may, `ECONNRESET` where the peer closed
/// without reading what it was sent. `EINTR` is retried.
pub fn recv<const N: usize>(
    socket: BorrowedFd<'_>,
    bufs: &mut [IoSliceMut<'_>],
    descriptors: &mut DescriptorVec<N>,
    wait: Wait,
) -> Result<Received> {
    let flags = match wait {
        Wait::Block => RecvFlags::CMSG_CLOEXEC,
        Wait::Never => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    // No more room than the vector has, give or take padding, so that the kernel doesn't even install a surplus.
    let room = cmsg_space!(ScmRights(descriptors.remaining_capacity())).min(CONTROL_BYTES);
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
    let message = retry_on_intr(|| recvmsg(socket, bufs, &mut control, flags))?;

    let mut received = Received {
        bytes: message.bytes,
        truncated: message.flags.contains(ReturnFlags::TRUNC),
        descriptors_truncated: message.flags.contains(ReturnFlags::CTRUNC),
    };
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            for descriptor in rights {
                let kept = descriptors.try_push(descriptor.into());
                received.descriptors_truncated |= kept.is_err();
            }
        }
    }
    Ok(received)
}

/// Sends once, with `descriptors` on the first byte, and returns how many bytes went out.
///
/// A stream can take fewer bytes than there are; the descriptors have gone with the first. A packet goes whole or not
/// at all.
///
/// # Errors
/// `EINVAL` for more than [`MAX_DESCRIPTORS`]; otherwise the errno of `sendmsg`: `EAGAIN` where it would wait for longer
/// than it may, `EPIPE` where the peer is gone (there is no signal). `EINTR` is retried.
pub fn send(
    socket: BorrowedFd<'_>,
    bufs: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<usize> {
    let flags = match wait {
        Wait::Block => SendFlags::NOSIGNAL,
        Wait::Never => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    };
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = descriptors.len() <= MAX_DESCRIPTORS
            && control.push(SendAncillaryMessage::ScmRights(descriptors));
        if !fits {
            return Err(Error::new(libc::EINVAL));
        }
    }
    Ok(retry_on_intr(|| {
        sendmsg(socket, bufs, &mut control, flags)
    })?)
}

/// Whether packets lie in a packet socket that nobody has received; true if that can't be found out. They stay there, with what
/// came with them.
///
/// An empty packet reads like the end, but for its sender's credentials, which the socket asks for from here on.
pub fn has_unread(socket: BorrowedFd<'_>) -> bool {
    if set_socket_passcred(socket, true).is_err() {
        return true;
    }
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    loop {
        let mut byte = [0];
        let bufs = &mut [IoSliceMut::new(&mut byte)];
        // No room for descriptors, so that none is installed, nor for credentials, so that they are cut off.
        match recvmsg(socket, bufs, &mut RecvAncillaryBuffer::default(), flags) {
            Ok(message) => return message.bytes > 0 || message.flags.contains(ReturnFlags::CTRUNC),
            Err(Errno::AGAIN) => return false,
            // That the peer closed without reading everything comes once, and ahead of what there is.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Limits how long [`recv`] waits on this socket, through whatever handle; `None` is for ever, and how a socket starts.
///
/// # Errors
/// `EINVAL` for a timeout of zero.
pub fn set_recv_timeout(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<()> {
    Ok(set_socket_timeout(socket, Timeout::Recv, timeout)?)
}

/// Makes a connected pair of Unix stream sockets, close-on-exec.
///
/// # Errors
/// `EMFILE` or `ENFILE` where there are too many descriptors.
pub fn stream_pair() -> Result<(SafeDescriptor, SafeDescriptor)> {
    Ok(pair(SocketType::STREAM)?)
}

/// Makes a connected pair of Unix sequential-packet sockets, close-on-exec.
///
/// # Errors
/// `EMFILE` or `ENFILE` where there are too many descriptors.
pub fn seqpacket_pair() -> Result<(SafeDescriptor, SafeDescriptor)> {
    Ok(pair(SocketType::SEQPACKET)?)
}

fn pair(kind: SocketType) -> std::result::Result<(SafeDescriptor, SafeDescriptor), Errno> {
    let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    Ok((one.into(), other.into()))
}

#[cfg(test)]
mod tests;
