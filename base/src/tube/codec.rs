//! From a message to a packet and back, in a buffer of the caller and without heap of its own.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
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

/// Receives one packet into `buffer` and decodes it.
pub(crate) fn recv_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    wait: Wait,
) -> TubeResult<T> {
    let mut descriptors = DescriptorVec::<MAX_DESCRIPTORS>::new();
    let received = recv_packet(socket, buffer, &mut descriptors, wait)
        .map_err(|error| failure(error, wait, TubeError::Recv))?;
    if received.truncated {
        return Err(TubeError::TooLong);
    }
    if received.descriptors_truncated {
        return Err(TubeError::DescriptorsTruncated);
    }
    match buffer.get(..received.bytes) {
        None | Some([]) => Err(TubeError::Disconnected),
        Some(packet) => decode(packet, &mut descriptors),
    }
}

fn recv_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut DescriptorVec<MAX_DESCRIPTORS>,
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

fn decode<T: DeserializeOwned>(
    packet: &[u8],
    descriptors: &mut DescriptorVec<MAX_DESCRIPTORS>,
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
