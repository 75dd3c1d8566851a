//! All cases, in the order in which they run: those that end their channel come last, since each costs a connection.

mod descriptors;
mod dialects;
mod framing;
mod gates;
mod lifecycle;
mod mappings;
mod replies;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::fs::memfd_create;

use super::case::Case;
use super::case::Verdict;
use super::session::Reply;
use super::session::Session;
use super::wire::Mmap;

pub(super) fn all() -> Vec<Case> {
    let mut cases = replies::cases();
    cases.extend(mappings::cases());
    cases.extend(descriptors::cases());
    cases.extend(dialects::cases());
    cases.extend(framing::cases());
    cases.extend(gates::cases());
    cases.extend(lifecycle::cases());
    cases.extend(framing::closing_cases());
    cases
}

/// Makes a memfd of `len` bytes.
fn memfd(len: u64) -> io::Result<OwnedFd> {
    let file = memfd_create("conform", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, len)?;
    Ok(file)
}

/// Expects success.
fn accepted(reply: Reply) -> Verdict {
    if reply.value == 0 {
        Ok(reply.to_string())
    } else {
        Err(format!("{reply} instead of success").into())
    }
}

/// Expects a failure of whatever kind: all that the specification says.
fn refused(reply: Reply) -> Verdict {
    if reply.value == 0 {
        Err("success".into())
    } else {
        Ok(reply.to_string())
    }
}

/// Expects the failure `errno`.
fn refused_with(reply: Reply, errno: i32) -> Verdict {
    if reply.errno() == Some(errno) {
        Ok(reply.to_string())
    } else {
        let want = rustix::io::Errno::from_raw_os_error(errno);
        Err(format!("{reply} instead of {want}").into())
    }
}

/// Makes two cases of one refusal: that it is a failure, which is the specification's, and its errno, which is ours.
fn refusal(
    name: &str,
    rule: &'static str,
    errno: i32,
    ask: impl Fn(&mut Session) -> io::Result<Reply> + Clone + 'static,
) -> [Case; 2] {
    let again = ask.clone();
    [
        Case::spec(name, rule, move |session| refused(ask(session)?)),
        Case::ours(
            format!("{name}/errno"),
            "a refusal carries the errno of its cause, negated",
            move |session| refused_with(again(session)?, errno),
        ),
    ]
}

/// Maps `len` bytes of a memfd at `offset`, expecting success.
fn place(session: &mut Session, offset: u64, len: u64) -> io::Result<()> {
    let file = memfd(len)?;
    let reply = session.map(&Mmap::at(offset, len), file.as_fd())?;
    if reply.value == 0 {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "a plain map at {offset:#x}: {reply}"
        )))
    }
}

/// Makes an unlinked file of `len` bytes and returns it opened for reading and writing, for reading, and for writing.
fn files(len: u64) -> io::Result<[File; 3]> {
    let file = tempfile::tempfile()?;
    file.set_len(len)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read = File::open(&path)?;
    let write = File::options().write(true).open(&path)?;
    Ok([file, read, write])
}
