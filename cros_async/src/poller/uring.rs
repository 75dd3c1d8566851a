//! The io_uring flavour: one `IORING_OP_POLL_ADD` for each wait.
//!
//! Only the thread that waits, or a thread that finds nobody waiting, touches the ring. Others leave their orders in a list
//! and wake the waiting one up.

// UNSAFETY: the crate `io-uring` has no safe call to put an entry into the submission queue, since entries of other kinds
// name memory that the kernel writes to. The kinds that this file puts there name none; `push` is the only place.
#![expect(
    unsafe_code,
    reason = "the crate io-uring has no safe way to submit an entry"
)]

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::TryLockError;
use std::time::Duration;

use base::Event;
use base::RawDescriptor;
use io_uring::IoUring;
use io_uring::opcode::PollAdd;
use io_uring::opcode::PollRemove;
use io_uring::squeue::Entry;
use io_uring::types::Fd;
use io_uring::types::SubmitArgs;
use io_uring::types::Timespec;

use super::Armed;
use super::Interest;
use super::Poller;
use super::Ready;
use super::SourceId;
use crate::lock;

/// Room for entries between two calls into the kernel; when it is full they are handed over early.
const ENTRIES: u32 = 256;

/// The user data of the wake event's poll, and of completions that nobody needs. No token is as large.
const WAKE: u64 = u64::MAX;
const NOBODY: u64 = u64::MAX - 1;

/// A source and a direction, as the kernel gets to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Token(u64);

impl Token {
    fn new(source: SourceId, direction: Direction) -> Self {
        Self(source << 1 | u64::from(direction == Direction::Write))
    }

    fn ready(self) -> Ready {
        Ready {
            source: self.0 >> 1,
            interest: Interest {
                read: self.0 & 1 == 0,
                write: self.0 & 1 == 1,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Read, Self::Write];

    fn flags(self) -> u32 {
        let flags = match self {
            Self::Read => libc::POLLIN | libc::POLLRDHUP,
            Self::Write => libc::POLLOUT,
        };
        u32::from(flags.cast_unsigned())
    }
}

/// What the ring is to be told.
#[derive(Debug)]
enum Order {
    Add {
        token: Token,
        descriptor: RawDescriptor,
        flags: u32,
    },
    Remove(Token),
}

/// What is known without the ring.
#[derive(Debug, Default)]
struct Orders {
    waiting: Vec<Order>,
    /// The polls that were ordered and have not completed.
    armed: HashSet<Token>,
}

/// A ring that only polls.
pub(crate) struct Uring {
    ring: Mutex<IoUring>,
    wake: Event,
    orders: Mutex<Orders>,
}

impl Uring {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let features = ring.params();
        // Since Linux 5.5 and 5.11: no completion is lost, and a wait takes a timeout.
        if !features.is_feature_nodrop() || !features.is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let poller = Self {
            ring: Mutex::new(ring),
            wake: Event::new()?,
            orders: Mutex::default(),
        };
        poller.add_wake(&mut lock(&poller.ring))?;
        Ok(poller)
    }

    fn add_wake(&self, ring: &mut IoUring) -> io::Result<()> {
        let descriptor = Fd(self.wake.as_fd().as_raw_fd());
        let poll = PollAdd::new(descriptor, Direction::Read.flags());
        push(ring, &poll.build().user_data(WAKE))
    }

    /// Tells the ring what waits to be told; the kernel learns it with the next call.
    fn pass_orders(&self, ring: &mut IoUring) -> io::Result<()> {
        let orders = std::mem::take(&mut lock(&self.orders).waiting);
        for order in orders {
            let entry = match order {
                Order::Add {
                    token,
                    descriptor,
                    flags,
                } => PollAdd::new(Fd(descriptor), flags)
                    .build()
                    .user_data(token.0),
                Order::Remove(token) => PollRemove::new(token.0).build().user_data(NOBODY),
            };
            push(ring, &entry)?;
        }
        Ok(())
    }

    /// Takes what has completed.
    fn take(&self, ring: &mut IoUring, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut woken = false;
        let mut orders = lock(&self.orders);
        for completion in ring.completion() {
            match completion.user_data() {
                NOBODY => {}
                WAKE => woken = true,
                data => {
                    // A poll that failed is ready: the task's own call on the descriptor says what is wrong.
                    if orders.armed.remove(&Token(data)) {
                        ready.push(Token(data).ready());
                    }
                }
            }
        }
        drop(orders);
        if woken {
            self.wake.reset()?;
            self.add_wake(ring)?;
        }
        Ok(())
    }
}

impl Poller for Uring {
    fn arm(
        &self,
        source: SourceId,
        descriptor: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<Armed> {
        let wanted = [interest.read, interest.write];
        let mut orders = lock(&self.orders);
        for (direction, wanted) in Direction::BOTH.into_iter().zip(wanted) {
            let token = Token::new(source, direction);
            if wanted && orders.armed.insert(token) {
                orders.waiting.push(Order::Add {
                    token,
                    descriptor: descriptor.as_raw_fd(),
                    flags: direction.flags(),
                });
            }
        }
        Ok(Armed::Waiting)
    }

    fn forget(&self, source: SourceId, _descriptor: BorrowedFd<'_>) {
        let mut removed = false;
        let mut orders = lock(&self.orders);
        for direction in Direction::BOTH {
            let token = Token::new(source, direction);
            if orders.armed.remove(&token) {
                orders.waiting.push(Order::Remove(token));
                removed = true;
            }
        }
        drop(orders);
        if !removed {
            return;
        }
        // The kernel holds the file until it knows. Where somebody waits, the caller wakes them up.
        match self.ring.try_lock() {
            Ok(mut ring) => {
                let told = self.pass_orders(&mut ring).and_then(|()| ring.submit());
                if let Err(error) = told {
                    base::warn!("a file stays open for longer than it should: {error}");
                }
            }
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => {}
        }
    }

    fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        let mut ring = lock(&self.ring);
        self.pass_orders(&mut ring)?;
        let waited = match timeout {
            Some(Duration::ZERO) => ring.submit(),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timeout);
                ring.submitter().submit_with_args(1, &arguments)
            }
            None => ring.submit_and_wait(1),
        };
        match waited {
            Ok(_) => {}
            // The time is up; a signal; completions wait to be taken. Whoever waits looks and waits again.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) => {}
            Err(error) => return Err(error),
        }
        self.take(&mut ring, ready)
    }

    fn notify(&self) {
        self.wake
            .signal()
            .expect("an eventfd of one's own takes a signal");
    }
}

/// Puts an entry into the queue, which is handed over first if it is full. The entry is a poll or the removal of one.
fn push(ring: &mut IoUring, entry: &Entry) -> io::Result<()> {
    if ring.submission().is_full() {
        ring.submit()?;
    }
    // SAFETY: the entry must be valid for as long as its operation goes on. It was built by `PollAdd` or `PollRemove`
    // (every caller is in this file), which name a descriptor number or a poll's user data and no memory; a number that
    // is closed or names another file by now makes a wrong report or none, and a report is only ever a reason to look.
    let pushed = unsafe { ring.submission().push(entry) };
    pushed.map_err(|_| io::ErrorKind::ResourceBusy.into())
}
