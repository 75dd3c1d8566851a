//! From a message to a packet and back, in a buffer of the caller and without heap of its own.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TubeError;
use super::TubeResult;
use crate::DescriptorFault;
use crate::Error;
use crate::descriptor::borrow_raw;
use crate::scm;
use crate::scm::DescriptorVec;
use crate::scm::MAX_DESCRIPTORS;
use crate::scm::Received;
use crate::scm::Wait;
use crate::transfer::DecodeScope;
use crate::transfer::EncodeScope;
use crate::transfer::OutgoingDescriptors;

/// What a message that encodes to nothing travels as.
const NOTHING: [u8; 1] = [0];

/// Encodes `message` into `buffer` and sends it as one packet.
pub(crate) fn send_message<T: Serialize + ?Sized>(
    socket: BorrowedFd<'_>,
    message: &T,
    buffer: &mut [u8],
    wait: Wait,
) -> TubeResult<()> {
    let scope = EncodeScope::begin().map_err(TubeError::Descriptors)?;
    let encoded = postcard::to_slice(message, buffer);
    let sent = scope.finish(|descriptors| {
        let packet = match encoded {
            Ok([]) => &NOTHING,
            Ok(packet) => &*packet,
            Err(postcard::Error::SerializeBufferFull) => return Err(TubeError::TooLong),
            Err(error) => return Err(TubeError::Encode(error)),
        };
        send_packet(socket, packet, descriptors, wait)
            .map_err(|error| failure(error, wait, TubeError::Send))
    });
    sent.map_err(TubeError::Descriptors)?
}

fn send_packet(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    descriptors: &OutgoingDescriptors,
    wait: Wait,
) -> crate::Result<()> {
    let mut borrowed = ArrayVec::<BorrowedFd<'_>, MAX_DESCRIPTORS>::new();
    for raw in descriptors {
        borrowed.push(borrow_raw(*raw)?);
    }
    scm::send(socket, &[IoSlice::new(packet)], &borrowed, wait)?;
    Ok(())
}

/// A packet that was received and is decoded piece by piece, where it lies.
///
/// For what decodes to a lot and is used at once. A descriptor in it is a `u8`, its place among those that came along.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    rest: &'a [u8],
    is_bare: bool,
}

impl<'a> Packet<'a> {
    /// Decodes the next value.
    ///
    /// # Errors
    /// [`TubeError::Decode`] where the bytes that are left are none; the packet is as it was.
    pub fn take<T: Deserialize<'a>>(&mut self) -> TubeResult<T> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(TubeError::Decode)?;
        self.rest = rest;
        Ok(value)
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// [`TubeError::TrailingBytes`] where some are left.
    pub fn finish(self) -> TubeResult<()> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(TubeError::TrailingBytes { count }),
        }
    }

    /// Decodes all of it as one value.
    ///
    /// # Errors
    /// As [`Packet::take`] and [`Packet::finish`]; [`TubeError::DescriptorsTruncated`] if it [is bare](Self::is_bare).
    pub fn into_message<T: Deserialize<'a>>(mut self) -> TubeResult<T> {
        if self.is_bare {
            return Err(TubeError::DescriptorsTruncated);
        }
        let message = self.take()?;
        self.finish()?;
        Ok(message)
    }

    /// Whether some of its descriptors found no room, in this process's table or in the list that was given for them.
    pub fn is_bare(&self) -> bool {
        self.is_bare
    }
}

/// Receives one packet of at most `N` descriptors into `buffer`.
pub(crate) fn recv_packet<'a, const N: usize>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    descriptors: &mut DescriptorVec<N>,
    wait: Wait,
) -> TubeResult<Packet<'a>> {
    let (rest, is_bare) = recv_bytes(socket, buffer, descriptors, wait)?;
    Ok(Packet { rest, is_bare })
}

/// Receives one packet into `buffer` and decodes it.
pub(crate) fn recv_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: Wait,
) -> TubeResult<T> {
    let mut descriptors = DescriptorVec::<MAX_DESCRIPTORS>::new();
    let (packet, is_bare) = recv_bytes(socket, buffer, &mut descriptors, wait)?;
    if is_bare {
        return Err(TubeError::DescriptorsTruncated);
    }
    decode(packet, &mut descriptors)
}

/// Receives one packet into `buffer` and returns its bytes, and whether descriptors were cut off.
fn recv_bytes<'a, const N: usize>(
    socket: BorrowedFd<'_>,
    buffer: &'a mut [u8],
    descriptors: &mut DescriptorVec<N>,
    wait: Wait,
) -> TubeResult<(&'a [u8], bool)> {
    let received = recv_once(socket, buffer, descriptors, wait)
        .map_err(|error| failure(error, wait, TubeError::Recv))?;
    if received.truncated {
        return Err(TubeError::TooLong);
    }
    match buffer.get(..received.bytes) {
        None | Some([]) => Err(TubeError::Disconnected),
        Some(packet) => Ok((packet, received.descriptors_truncated)),
    }
}

fn recv_once<const N: usize>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut DescriptorVec<N>,
    wait: Wait,
) -> crate::Result<Received> {
    let mut bufs = [IoSliceMut::new(buffer)];
    match scm::recv(socket, &mut bufs, descriptors, wait) {
        // The peer closed without reading everything. Linux says so once, and ahead of what the peer had sent.
        Err(error) if error.errno() == libc::ECONNRESET => {
            scm::recv(socket, &mut bufs, descriptors, wait)
        }
        outcome => outcome,
    }
}

fn decode<T: DeserializeOwned, const N: usize>(
    packet: &[u8],
    descriptors: &mut DescriptorVec<N>,
) -> TubeResult<T> {
    let scope = DecodeScope::begin(descriptors).map_err(TubeError::Descriptors)?;
    let decoded = postcard::take_from_bytes::<T>(packet);
    // A fault is the better explanation of a message that doesn't decode, but descriptors are left over whenever
    // decoding ends early.
    match (decoded, scope.fault()) {
        (Err(error), None | Some(DescriptorFault::Unused { .. })) => Err(TubeError::Decode(error)),
        (_, Some(fault)) => Err(TubeError::Descriptors(fault)),
        (Ok((message, rest)), None) => {
            let is_nothing = packet == NOTHING && rest == NOTHING;
            if rest.is_empty() || is_nothing {
                Ok(message)
            } else {
                Err(TubeError::TrailingBytes { count: rest.len() })
            }
        }
    }
}

/// Sorts out what an errno of the socket means to a tube.
fn failure(error: Error, wait: Wait, other: fn(Error) -> TubeError) -> TubeError {
    match (error.errno(), wait) {
        (libc::EAGAIN, Wait::Never) => TubeError::WouldBlock,
        (libc::EAGAIN, Wait::Block) => TubeError::TimedOut,
        (libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN, _) => TubeError::Disconnected,
        _ => other(error),
    }
}
