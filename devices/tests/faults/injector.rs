//! Makes one chosen system call of some threads fail, by a seccomp filter that asks a supervisor about each call.
//!
//! A thread that is [`filtered`](Injector::filter_this_thread), and every thread that it starts, is asked about; the others are
//! not. The kernel then either carries the call out or answers the errno in its place, so that the call really has not happened.

// UNSAFETY: seccomp(2) and the requests of its listener take pointers, and no crate in use wraps them.
#![expect(
    unsafe_code,
    reason = "installs a seccomp filter and answers for its calls"
)]

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::poll;

/// Which call fails, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The call's number.
    pub(crate) call: i32,
    /// How many calls of that number go through before it.
    pub(crate) after: usize,
    /// What it is answered.
    pub(crate) errno: i32,
}

#[derive(Debug, Default)]
struct State {
    armed: bool,
    fault: Option<Fault>,
    /// How many calls of each number there were since it was armed.
    calls: BTreeMap<i32, usize>,
}

/// The supervisor, shared with its thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Injector {
    state: Arc<Mutex<State>>,
    supervisor: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Injector {
    /// Puts the calling thread under the filter, for good, and starts the thread that answers for it; that one ends after the
    /// last thread of the filter.
    pub(crate) fn filter_this_thread(&self, calls: &[libc::c_long]) -> io::Result<()> {
        let (listener, listeners) = std::sync::mpsc::channel();
        let state = Arc::clone(&self.state);
        // Started first, so that it is not under the filter itself.
        let supervisor = thread::Builder::new()
            .name("injector".to_owned())
            .spawn(move || {
                if let Ok(listener) = listeners.recv() {
                    supervise(&listener, &state);
                }
            })?;
        *lock(&self.supervisor) = Some(supervisor);
        let installed = install(&program(calls))?;
        // The supervisor waits for it.
        let _ = listener.send(installed);
        Ok(())
    }

    /// Waits until the last thread of the filter has ended and the supervisor has closed its listener.
    pub(crate) fn finish(&self) {
        let supervisor = lock(&self.supervisor).take();
        supervisor
            .expect("a thread was filtered")
            .join()
            .expect("the supervisor does not panic");
    }

    /// Counts calls from now on, and lets the chosen one fail.
    pub(crate) fn arm(&self, fault: Option<Fault>) {
        *self.state() = State {
            armed: true,
            fault,
            calls: BTreeMap::new(),
        };
    }

    /// Lets everything through, and returns how many calls of each number there were since it was armed.
    pub(crate) fn disarm(&self) -> BTreeMap<i32, usize> {
        mem::take(&mut *self.state()).calls
    }

    /// Keeps every call waiting for its answer until what is returned is dropped.
    pub(crate) fn hold(&self) -> impl Drop + '_ {
        self.state()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The errno of a call, or nothing if it is to be made.
    fn judge(&mut self, number: i32) -> Option<i32> {
        if !self.armed {
            return None;
        }
        let count = self.calls.entry(number).or_default();
        let place = *count;
        *count += 1;
        self.fault
            .filter(|fault| (fault.call, fault.after) == (number, place))
            .map(|fault| fault.errno)
    }
}

/// Asks about each of `calls` and allows the rest.
fn program(calls: &[libc::c_long]) -> Vec<libc::sock_filter> {
    let load = u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).expect("an opcode");
    let equal = u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).expect("an opcode");
    let answer = u16::try_from(libc::BPF_RET | libc::BPF_K).expect("an opcode");
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number is the first field of seccomp_data.
    let mut program = vec![instruction(load, 0, 0, 0)];
    for call in calls {
        let number = u32::try_from(*call).expect("a number");
        program.push(instruction(equal, 0, 1, number));
        program.push(instruction(answer, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel reads the program, which outlives the call, and changes nothing but what this thread may call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match i32::try_from(listener) {
        // SAFETY: a new descriptor that nobody else knows.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn supervise(listener: &OwnedFd, state: &Mutex<State>) {
    loop {
        let mut descriptors = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("waiting for calls: {errno}"),
        }
        let ready = descriptors[0].revents();
        if ready.contains(PollFlags::IN) {
            answer(listener, state);
        } else if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            // No thread has the filter any more.
            return;
        }
    }
}

fn answer(listener: &OwnedFd, state: &Mutex<State>) {
    // SAFETY: a plain structure of integers, for which zeros are values; the kernel wants it so.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel fills in the structure, which lives until the call returns.
    let received = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut call,
        )
    };
    if received < 0 {
        // The thread is gone, or a signal took it out of the call.
        return;
    }
    let mut response = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: 0,
        flags: 0,
    };
    let mut state = lock(state);
    match state.judge(call.data.nr) {
        Some(errno) => response.error = -errno,
        None => {
            response.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("a flag");
        }
    }
    drop(state);
    // SAFETY: the kernel reads the structure, which lives until the call returns. A caller that is gone is ENOENT.
    let _gone = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut response,
        )
    };
}
