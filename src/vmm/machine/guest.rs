//! The guest as its callers see it: a thread that carries out orders, each within a deadline.

// UNSAFETY: the vCPU's thread is kicked out of KVM by a signal of its own.
#![expect(
    unsafe_code,
    reason = "sigaction and pthread_kill have no safe form here"
)]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Once;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use super::Error;
use super::kvm::Vcpu;
use super::machine::Shared;
use super::vcpu::Answer;
use super::vcpu::Cancelled;
use super::vcpu::Command;
use super::vcpu::Order;
use super::vcpu::VcpuThread;

/// How long a kicked thread has before it is kicked again: the signal may come just before it enters KVM.
const KICK_INTERVAL: Duration = Duration::from_millis(10);
/// How long a kicked thread has to answer at all. It can be held in the kernel by a page that never comes, of a file
/// system that a backend serves.
const KICK_LIMIT: Duration = Duration::from_secs(2);

/// The vCPU's thread and the way to it.
pub(super) struct Guest {
    /// The sender and the number of the last order. None when it is over.
    sender: Mutex<(Option<Sender<Command>>, u64)>,
    cancelled: Arc<Cancelled>,
    /// Disconnected when the thread has ended.
    ended: Mutex<Receiver<()>>,
    thread: Option<JoinHandle<()>>,
    deadline: Mutex<Duration>,
}

impl Guest {
    /// Starts the vCPU's thread.
    pub(super) fn start(
        vcpu: Vcpu,
        shared: Arc<Shared>,
        deadline: Duration,
    ) -> Result<Self, Error> {
        install_kick_handler();
        let (sender, commands) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let cancelled = Arc::new(Cancelled::new(0));
        let vcpu = VcpuThread::new(vcpu, shared, commands, Arc::clone(&cancelled));
        let thread = std::thread::Builder::new()
            .name("vcpu0".into())
            .spawn(move || {
                vcpu.run();
                drop(end);
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            sender: Mutex::new((Some(sender), 0)),
            cancelled,
            ended: Mutex::new(ended),
            thread: Some(thread),
            deadline: Mutex::new(deadline),
        })
    }

    /// Gives orders that are yet to come another deadline.
    pub(super) fn set_deadline(&self, deadline: Duration) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// Has an order carried out.
    pub(super) fn order(&self, order: Order) -> Result<Answer, Error> {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let (reply, answer) = mpsc::sync_channel(1);
        let id = self.send(order, deadline, reply)?;
        match answer.recv_timeout(deadline) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::VcpuGone),
            Err(RecvTimeoutError::Timeout) => (),
        }
        self.cancelled.fetch_max(id, Ordering::AcqRel);
        // The answer is dropped unsent if the order was still waiting for its turn.
        match self.kick_until_answered(&answer) {
            Some(outcome) => outcome,
            None => Err(Error::Deadline { deadline }),
        }
    }

    fn send(
        &self,
        order: Order,
        deadline: Duration,
        reply: mpsc::SyncSender<Result<Answer, Error>>,
    ) -> Result<u64, Error> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let (channel, id) = &mut *sender;
        *id += 1;
        let command = Command {
            id: *id,
            order,
            deadline,
            reply,
        };
        channel
            .as_ref()
            .and_then(|channel| channel.send(command).ok())
            .ok_or(Error::VcpuGone)?;
        Ok(*id)
    }

    /// Kicks the thread until the channel has a value or is closed, or time is up. None: there is no value.
    fn kick_until_answered<T>(&self, answer: &Receiver<T>) -> Option<T> {
        let end = Instant::now() + KICK_LIMIT;
        while Instant::now() < end {
            self.kick();
            match answer.recv_timeout(KICK_INTERVAL) {
                Ok(value) => return Some(value),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
        None
    }

    /// Gets the thread out of KVM_RUN, if it is there.
    fn kick(&self) {
        let Some(thread) = &self.thread else { return };
        // SAFETY: the handle has not been joined, so the thread's id is its own, whether it still runs or not. The
        // signal has a handler, which `start` installed.
        let errno = unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        debug_assert!(
            errno == 0 || errno == libc::ESRCH,
            "{}",
            io::Error::from_raw_os_error(errno)
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let sender = self
            .sender
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        sender.0 = None;
        self.cancelled.store(u64::MAX, Ordering::Release);
        let (_, unused) = mpsc::channel();
        let ended = std::mem::replace(&mut self.ended, Mutex::new(unused));
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.kick_until_answered(&ended);
        let disconnected = matches!(ended.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        match self.thread.take() {
            Some(thread) if disconnected => drop(thread.join()),
            // It is held in the kernel. It keeps what it needs and ends when it is let go.
            _ => tracing::error!("the vCPU's thread does not end; it is left behind"),
        }
    }
}

/// The signal that means nothing but "come out of the kernel".
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 4
}

/// Gives the kick signal a handler that does nothing, once for the process.
fn install_kick_handler() {
    extern "C" fn nothing(_signal: libc::c_int) {}

    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all fields of a sigaction may be zero: no flags (in particular no SA_RESTART), an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the action is complete, and its handler does nothing, which is safe in any thread at any point.
        let outcome =
            unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
        assert_eq!(outcome, 0, "a real-time signal can be handled");
    });
}
