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

/// A message's type with an index (`u8`) wherever it has a descriptor: what can be decoded without owning descriptors.
///
/// It must take exactly the bytes that the message takes.
pub trait Outline: DeserializeOwned {
    /// Calls `visit` with each index, in the order in which they are encoded.
    fn visit_descriptors(&self, visit: &mut dyn FnMut(u8));
}

/// What a packet was, as far as it got here.
#[derive(Debug)]
pub enum Outlined<T, O> {
    /// The message.
    Whole(T),
    /// A message without its descriptors, of which some did not find room in this process's table or in the message's limit.
    Bare(O),
}

/// Receives one packet of at most `N` descriptors into `buffer` and decodes it. The descriptors of one that is refused or
/// bare are left in `rejected`, which is empty at first.
pub(crate) fn recv_outlined<T: DeserializeOwned, O: Outline, const N: usize>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    rejected: &mut DescriptorVec<N>,
    wait: Wait,
) -> TubeResult<Outlined<T, O>> {
    let (packet, is_bare) = recv_bytes(socket, buffer, rejected, wait)?;
    let (outline, used) = outline::<O>(packet)?;
    if is_bare {
        return Ok(Outlined::Bare(outline));
    }
    let count = rejected.len();
    if used < count {
        let count = count - used;
        return Err(TubeError::Descriptors(DescriptorFault::Unused { count }));
    }
    if used > count {
        let fault = DescriptorFault::Missing {
            index: count,
            count,
        };
        return Err(TubeError::Descriptors(fault));
    }
    decode(packet, rejected).map(Outlined::Whole)
}

/// Decodes an outline, checks that it is all of the packet and that it numbers its descriptors from 0 without a gap or a
/// repetition, so that to decode the message can't fail, and returns how many they are.
fn outline<O: Outline>(packet: &[u8]) -> TubeResult<(O, usize)> {
    let (outline, rest) = postcard::take_from_bytes::<O>(packet).map_err(TubeError::Decode)?;
    if !rest.is_empty() {
        return Err(TubeError::TrailingBytes { count: rest.len() });
    }
    let mut count = 0;
    let mut fault = None;
    outline.visit_descriptors(&mut |index| {
        // That is how a sender numbers them, in the order of the message.
        let index = usize::from(index);
        if index < count {
            fault = fault.or(Some(DescriptorFault::Reused { index }));
        } else if index > count {
            fault = fault.or(Some(DescriptorFault::Missing { index, count }));
        }
        count += 1;
    });
    match fault {
        Some(fault) => Err(TubeError::Descriptors(fault)),
        None => Ok((outline, count)),
    }
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
    let received = recv_packet(socket, buffer, descriptors, wait)
        .map_err(|error| failure(error, wait, TubeError::Recv))?;
    if received.truncated {
        return Err(TubeError::TooLong);
    }
    match buffer.get(..received.bytes) {
        None | Some([]) => Err(TubeError::Disconnected),
        Some(packet) => Ok((packet, received.descriptors_truncated)),
    }
}

fn recv_packet<const N: usize>(
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
