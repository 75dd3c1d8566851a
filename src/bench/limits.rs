//! The limits: the same messages with bare system calls between one, two or three processes.
//!
//! No wait context, no checks, no jail, no allocation per request: what remains is what the kernel asks for.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::thread;

use super::bare;
use super::bare::Range;
use super::workload;
use super::workload::REGION_BYTES;
use super::workload::REPLY_BYTES;
use super::workload::REQUEST_BYTES;

/// `limit2`, the middle: takes one request from the backend, hands it on, waits for the answer, hands that back.
///
/// # Errors
/// If a call fails; the backend's going away is the end and no error.
pub(super) fn middle(backend: &OwnedFd, vmm: &OwnedFd) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    let mut answer = [0; REPLY_BYTES];
    loop {
        let (received, descriptor) = bare::receive(backend.as_fd(), &mut request)?;
        if received == 0 {
            return Ok(());
        }
        let bytes = workload::whole(&request, received)?;
        bare::send(vmm.as_fd(), bytes, descriptor.as_ref().map(AsFd::as_fd))?;
        let received = bare::receive_bytes(vmm.as_fd(), &mut answer)?;
        bare::send(backend.as_fd(), &answer[..received], None)?;
        drop(descriptor);
    }
}

/// `limit2p`, the middle: one thread for each way, so that nothing waits for an answer.
///
/// # Errors
/// If a call fails; the backend's going away is the end and no error.
pub(super) fn forwarding_middle(backend: OwnedFd, vmm: OwnedFd) -> io::Result<()> {
    let (answers_to, answers_from) = (backend.try_clone()?, vmm.try_clone()?);
    let answers = thread::spawn(move || -> io::Result<()> {
        let mut answer = [0; REPLY_BYTES];
        loop {
            match bare::receive_bytes(answers_from.as_fd(), &mut answer) {
                Ok(received) => bare::send(answers_to.as_fd(), &answer[..received], None)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    let mut request = [0; REQUEST_BYTES];
    loop {
        let (received, descriptor) = bare::receive(backend.as_fd(), &mut request)?;
        if received == 0 {
            break;
        }
        let bytes = workload::whole(&request, received)?;
        bare::send(vmm.as_fd(), bytes, descriptor.as_ref().map(AsFd::as_fd))?;
    }
    rustix::net::shutdown(&vmm, rustix::net::Shutdown::Both)?;
    answers
        .join()
        .map_err(|_| io::Error::other("the answering thread panicked"))?
}

/// The end of every limit: maps and unmaps what the requests on `channel` say, and answers.
///
/// # Errors
/// If a call fails; the peer's going away is the end and no error.
pub(super) fn mapper(channel: &OwnedFd) -> io::Result<()> {
    let bytes = usize::try_from(REGION_BYTES).map_err(io::Error::other)?;
    let range = Range::reserve(bytes)?;
    let mut buffer = [0; REQUEST_BYTES];
    loop {
        let (received, descriptor) = bare::receive(channel.as_fd(), &mut buffer)?;
        if received == 0 {
            return Ok(());
        }
        let request = workload::whole(&buffer, received)?;
        let decoded = workload::decode(request);
        match (&descriptor, decoded.map) {
            (Some(file), true) => {
                range.map(
                    decoded.offset,
                    decoded.len,
                    file.as_fd(),
                    decoded.file_offset,
                )?;
            }
            (None, true) => return Err(io::Error::other("a map without a descriptor")),
            (_, false) => range.unmap(decoded.offset, decoded.len)?,
        }
        if decoded.need_reply {
            bare::send(channel.as_fd(), &workload::reply(request), None)?;
        }
        // Answered before it is closed.
        drop(descriptor);
    }
}
