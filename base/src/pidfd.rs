//! A process by descriptor: its number can't come to mean another process.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::retry_on_intr;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use rustix::process::WaitId;
use rustix::process::WaitIdOptions;
use rustix::process::WaitIdStatus;
use rustix::process::pidfd_open;
use rustix::process::pidfd_send_signal;
use rustix::process::waitid;

use crate::AsRawDescriptor;
use crate::Error;
use crate::IntoRawDescriptor;
use crate::RawDescriptor;
use crate::ReadNotifier;
use crate::Result;
use crate::SafeDescriptor;

/// The bit of a wait status that says that a core was dumped.
const CORE_DUMPED: i32 = 0x80;

/// A handle of a process, readable once the process has ended.
#[derive(Debug)]
pub struct Pidfd {
    descriptor: SafeDescriptor,
}

impl Pidfd {
    /// Opens the process with the number `pid`, which must be a child not waited for yet, or the number may have a new
    /// owner.
    ///
    /// # Errors
    /// `ESRCH` if there is no such process, `EINVAL` if `pid` is not positive, `EMFILE` where there are too many
    /// descriptors.
    pub fn open(pid: libc::pid_t) -> Result<Self> {
        let pid = (pid > 0)
            .then(|| Pid::from_raw(pid))
            .flatten()
            .ok_or(Error::new(libc::EINVAL))?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty())?.into();
        Ok(Self { descriptor })
    }

    /// Sends the signal with the number `signal`, one of those that have a name.
    ///
    /// # Errors
    /// `ESRCH` if the process has ended and been waited for, `EPERM`, `EINVAL` for another number.
    pub fn send_signal(&self, signal: i32) -> Result<()> {
        let signal = Signal::from_named_raw(signal).ok_or(Error::new(libc::EINVAL))?;
        Ok(pidfd_send_signal(&self.descriptor, signal)?)
    }

    /// Waits for the end of the process, which must be a child, and reaps it.
    ///
    /// # Errors
    /// `ECHILD` if it is no child of this process, or reaped already.
    pub fn wait(&self) -> Result<ExitStatus> {
        let status = self.wait_with(WaitIdOptions::EXITED)?;
        status.ok_or(Error::new(libc::ECHILD))
    }

    /// Reaps the process if it has ended; `None` if it runs.
    ///
    /// # Errors
    /// As [`Pidfd::wait`].
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn wait_with(&self, options: WaitIdOptions) -> Result<Option<ExitStatus>> {
        let status = retry_on_intr(|| waitid(WaitId::PidFd(self.descriptor.as_fd()), options))?;
        Ok(status.map(exit_status))
    }
}

/// Turns what `waitid` says into what `wait` would have said.
fn exit_status(status: WaitIdStatus) -> ExitStatus {
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) if status.dumped() => signal | CORE_DUMPED,
        (None, signal) => signal.unwrap_or_default(),
    };
    ExitStatus::from_raw(raw)
}

/// Takes a pidfd that was made elsewhere, by `clone` for instance; it is not checked.
impl From<SafeDescriptor> for Pidfd {
    fn from(descriptor: SafeDescriptor) -> Self {
        Self { descriptor }
    }
}

impl From<Pidfd> for SafeDescriptor {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.descriptor
    }
}

impl AsRawDescriptor for Pidfd {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.descriptor.as_raw_descriptor()
    }
}

impl IntoRawDescriptor for Pidfd {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.descriptor.into_raw_descriptor()
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl ReadNotifier for Pidfd {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        &self.descriptor
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::process::Command;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;
    use crate::WaitContext;

    /// How long a test waits before it fails.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Starts `command`, whose standard input stays open as long as the second value.
    fn start(mut command: Command) -> (Pidfd, OwnedFd) {
        let (input, writer) = rustix::pipe::pipe().expect("a pipe is made");
        command.stdin(input).stdout(Stdio::null());
        let pid = command.spawn().expect("the program starts").id();
        let pid = libc::pid_t::try_from(pid).expect("a process number is positive");
        (Pidfd::open(pid).expect("the child exists"), writer)
    }

    #[test]
    fn exit_code_comes_back() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let (pidfd, _input) = start(command);
        let status = pidfd.wait().expect("waits");
        assert_eq!((status.code(), status.signal()), (Some(7), None));
    }

    #[test]
    fn signal_ends_the_process_and_makes_the_pidfd_readable() {
        let (pidfd, _input) = start(Command::new("cat"));
        assert_eq!(pidfd.try_wait(), Ok(None));
        let context = WaitContext::build_with(&[(&pidfd, ())]).expect("a set is made");
        pidfd.send_signal(libc::SIGKILL).expect("sends");
        assert_eq!(context.wait_timeout(PATIENCE).expect("waits").len(), 1);
        let status = pidfd.try_wait().expect("waits").expect("it has ended");
        assert_eq!(
            (status.code(), status.signal()),
            (None, Some(libc::SIGKILL))
        );
        assert_eq!(pidfd.wait(), Err(Error::new(libc::ECHILD)));
        assert_eq!(
            pidfd.send_signal(libc::SIGKILL),
            Err(Error::new(libc::ESRCH))
        );
    }

    #[test]
    fn numbers_that_are_no_process_or_signal_are_refused() {
        for pid in [0, -1, i32::MIN] {
            let opened = Pidfd::open(pid).map(|_| ());
            assert_eq!(opened, Err(Error::new(libc::EINVAL)));
        }
        let own = Pidfd::open(rustix::process::getpid().as_raw_pid()).expect("this process exists");
        assert_eq!(own.send_signal(0), Err(Error::new(libc::EINVAL)));
        assert_eq!(own.try_wait(), Err(Error::new(libc::ECHILD)));
    }
}
