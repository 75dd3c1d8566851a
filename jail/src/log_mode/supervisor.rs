//! The parent's side: a thread that answers for the calls of one jailed process and notes them.
// UNSAFETY: the requests of a seccomp listener are ioctls, which no crate in use wraps.
#![expect(unsafe_code, reason = "makes the ioctls of a seccomp listener")]

use std::collections::BTreeMap;
use std::io;
use std::io::IoSliceMut;
use std::mem;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use rustix::net::recvmsg;
use serde::Serialize;

use crate::arch::Arch;

/// A call that the policy lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingCall {
    /// Its number.
    pub number: u32,
    /// Its name, `None` if the table has none.
    pub name: Option<&'static str>,
    /// How often it was made.
    pub count: u64,
    /// The arguments of the first time.
    pub arguments: [u64; 6],
}

type Missing = Arc<Mutex<BTreeMap<u32, MissingCall>>>;

/// Answers for one jailed process until it ends.
#[derive(Debug)]
pub(crate) struct Supervisor {
    missing: Missing,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Waits on `socket` for the listener, in a thread of its own, and then for calls.
    pub(crate) fn start(socket: OwnedFd) -> io::Result<Self> {
        let missing = Missing::default();
        let notes = Arc::clone(&missing);
        let thread = thread::Builder::new()
            .name("seccomp log".to_owned())
            .spawn(move || {
                // The thread ends when the process is gone or when its socket is closed. Errors end it as well; the process then waits
                // forever in its next missing call, which its parent's deadlines notice.
                if let Ok(Some(listener)) = receive(socket.as_fd()) {
                    drop(socket);
                    let _end = supervise(listener.as_fd(), &notes);
                }
            })?;
        Ok(Self {
            missing,
            thread: Some(thread),
        })
    }

    /// What the policy lacks so far.
    pub(crate) fn missing(&self) -> Vec<MissingCall> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.values().cloned().collect()
    }

    /// Waits for the last notes. The process must have ended.
    pub(crate) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has said its own words; the notes before it are still there.
            let _panicked = thread.join();
        }
    }
}

/// The listener, or `None` if the process ended without sending one.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let first = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(first)
}

fn supervise(
    listener: BorrowedFd<'_>,
    notes: &Mutex<BTreeMap<u32, MissingCall>>,
) -> io::Result<()> {
    loop {
        let mut descriptors = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        match poll(&mut descriptors, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        if !descriptors[0].revents().contains(PollFlags::IN) {
            // No process has the filter any more.
            return Ok(());
        }
        match next_call(listener) {
            Ok(call) => {
                note(notes, &call.data);
                let_through(listener, call.id)?;
            }
            // The caller died, or a signal took it out of the call.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn note(notes: &Mutex<BTreeMap<u32, MissingCall>>, data: &libc::seccomp_data) {
    let number = data.nr.cast_unsigned();
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    notes
        .entry(number)
        .or_insert_with(|| MissingCall {
            number,
            name: Arch::NATIVE.name_of(number),
            count: 0,
            arguments: data.args,
        })
        .count += 1;
}

fn next_call(listener: BorrowedFd<'_>) -> io::Result<libc::seccomp_notif> {
    // SAFETY: all-zero bytes are a valid `seccomp_notif`, which holds numbers only; the kernel asks for zeros.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the request fills in a `seccomp_notif`, which `call` is.
    let result = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut call,
        )
    };
    if result == 0 {
        Ok(call)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn let_through(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let response = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: CONTINUE,
    };
    // SAFETY: the request reads a `seccomp_notif_resp`, which `response` is.
    let result = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw const response,
        )
    };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(()),
        // The caller died, or a signal took it out of the call.
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        error => Err(error),
    }
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
