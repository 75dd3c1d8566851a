//! A jailed process, seen from its parent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::Signal;
use rustix::process::WaitId;
use rustix::process::WaitIdOptions;
use rustix::process::WaitIdStatus;
use rustix::process::WaitOptions;
use rustix::process::kill_process;
use rustix::process::pidfd_open;
use rustix::process::pidfd_send_signal;
use rustix::process::waitid;
use rustix::process::waitpid;

use super::End;
use super::ExitReport;
use super::SpawnError;
use super::Spawner;
use super::forward::Forward;
use crate::log_mode::MissingCall;
use crate::log_mode::Supervisor;
use crate::record::MAX_RECORD;
use crate::record::NAMESPACES;
use crate::record::Record;
use crate::sandbox::numbers_of_this_process;

/// How long a process may take into its jail. The code up to there is trusted; the limit only guards against a system that hangs.
const JAIL_TIMEOUT: Duration = Duration::from_secs(10);

/// The last words that are kept.
const MAX_WORDS: usize = 64;

/// A process in its jail. Dropping it kills the process and waits for it.
#[derive(Debug)]
pub struct JailedChild {
    name: String,
    pid: Pid,
    pidfd: OwnedFd,
    report: OwnedFd,
    own_namespaces: Vec<&'static str>,
    helpers: Helpers,
    /// What the process has said since it was in its jail, the last words last.
    words: VecDeque<Record<'static>>,
    ended: Option<ExitReport>,
}

/// The threads that work for one process.
#[derive(Debug)]
pub(super) struct Helpers {
    pub(super) supervisor: Option<Supervisor>,
    pub(super) forward: Option<Forward>,
    /// Keeps the thread alive whose end would kill the process.
    #[expect(dead_code, reason = "is there in order to be dropped late")]
    pub(super) spawner: Spawner,
}

impl Helpers {
    /// Waits for what they have to say of a process that has ended.
    fn finish(&mut self) {
        if let Some(supervisor) = &mut self.supervisor {
            supervisor.finish();
        }
        if let Some(forward) = &self.forward {
            forward.finish();
        }
    }
}

impl JailedChild {
    /// Waits until the process that was started as `outer` says that it is in its jail.
    pub(super) fn wait_for_jail(
        name: &str,
        outer: Pid,
        report: OwnedFd,
        mut helpers: Helpers,
    ) -> Result<Self, SpawnError> {
        let mut heard = Heard::listen(report.as_fd());
        let Outcome::Ready = heard.outcome else {
            if let Outcome::Timeout = heard.outcome {
                let _gone = kill_process(outer, Signal::KILL);
            }
            let status = reap(outer);
            heard.listen_for_pid(report.as_fd());
            kill_and_reap(heard.jailed.filter(|pid| *pid != outer));
            helpers.finish();
            return Err(heard.outcome.into_error(name, &status));
        };
        let pid = heard.jailed.unwrap_or(outer);
        if pid != outer {
            reap(outer);
        }
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            kill_and_reap(Some(pid));
            SpawnError::Pid {
                name: name.to_owned(),
                source: errno.into(),
            }
        })?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            pidfd,
            report,
            own_namespaces: heard.own_namespaces(),
            helpers,
            words: heard.words,
            ended: None,
        })
    }

    /// The process's number, as this process sees it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The namespaces that the process does not share with this one, by their names in `/proc/PID/ns`. It said so itself, before it was
    /// given anything that is not trusted; from outside, only root may look.
    pub fn own_namespaces(&self) -> &[&'static str] {
        &self.own_namespaces
    }

    /// Kills the process. It is still to be waited for.
    ///
    /// # Errors
    /// If the process was waited for already.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?)
    }

    /// Waits for the end of the process. Further calls return the same report.
    ///
    /// # Errors
    /// If the process can't be waited for, for instance since somebody else did.
    pub fn wait(&mut self) -> io::Result<ExitReport> {
        loop {
            if let Some(report) = self.poll_end(WaitIdOptions::EXITED)? {
                return Ok(report);
            }
        }
    }

    /// The report, if the process has ended.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> io::Result<Option<ExitReport>> {
        self.poll_end(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// What the policy lacks so far, in log mode.
    pub fn missing(&self) -> Vec<MissingCall> {
        self.helpers
            .supervisor
            .as_ref()
            .map(Supervisor::missing)
            .unwrap_or_default()
    }

    fn poll_end(&mut self, options: WaitIdOptions) -> io::Result<Option<ExitReport>> {
        if let Some(report) = &self.ended {
            return Ok(Some(report.clone()));
        }
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some(self.end(&status)))
    }

    fn end(&mut self, status: &WaitIdStatus) -> ExitReport {
        self.helpers.finish();
        while let Ok(Some(word)) = receive(self.report.as_fd()) {
            keep(&mut self.words, word);
        }
        let report = ExitReport {
            name: self.name.clone(),
            pid: self.pid(),
            end: End::new(status, self.words.make_contiguous()),
        };
        self.ended = Some(report.clone());
        report
    }
}

impl AsFd for JailedChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd()
    }
}

impl Drop for JailedChild {
    fn drop(&mut self) {
        if self.ended.is_none() && self.kill().is_ok() {
            // A process that was killed ends soon, so this does not wait for anything that the process does.
            let _reaped = self.wait();
        }
    }
}

/// What a process said on its way into the jail.
struct Heard {
    jailed: Option<Pid>,
    outcome: Outcome,
    namespaces: Option<[u64; NAMESPACES.len()]>,
    /// What came later, while the outer process had not said its part yet.
    words: VecDeque<Record<'static>>,
}

enum Outcome {
    Ready,
    Failed(String),
    /// Nobody is left who could say anything.
    Silence,
    Timeout,
}

impl Outcome {
    fn into_error(self, name: &str, status: &str) -> SpawnError {
        let name = name.to_owned();
        match self {
            Self::Failed(text) => SpawnError::Jail { name, text },
            Self::Timeout => SpawnError::Timeout {
                name,
                seconds: JAIL_TIMEOUT.as_secs(),
            },
            Self::Silence | Self::Ready => SpawnError::Died {
                name,
                status: status.to_owned(),
            },
        }
    }
}

impl Heard {
    /// Listens until the process is in its jail and its number is known, or until nobody is left.
    fn listen(report: BorrowedFd<'_>) -> Self {
        let deadline = Instant::now() + JAIL_TIMEOUT;
        let mut heard = Self {
            jailed: None,
            outcome: Outcome::Silence,
            namespaces: None,
            words: VecDeque::new(),
        };
        let mut ready = false;
        loop {
            // The outer and the jailed process both write, in no particular order.
            match receive(report) {
                Ok(Some(Record::Process { pid })) => heard.jailed = to_pid(pid),
                Ok(Some(Record::Namespaces(numbers))) => heard.namespaces = Some(numbers),
                Ok(Some(Record::Ready)) => ready = true,
                Ok(Some(Record::Failed { text })) => {
                    heard.outcome = Outcome::Failed(text.into_owned());
                }
                Ok(Some(word)) => keep(&mut heard.words, word),
                Err(Errno::AGAIN) if wait_readable(report, deadline) => {}
                Err(Errno::AGAIN) => {
                    if let Outcome::Silence = heard.outcome {
                        heard.outcome = Outcome::Timeout;
                    }
                    return heard;
                }
                Ok(None) | Err(_) => return heard,
            }
            if ready && heard.jailed.is_some() {
                heard.outcome = Outcome::Ready;
                return heard;
            }
        }
    }

    /// The namespaces that differ from this process's.
    fn own_namespaces(&self) -> Vec<&'static str> {
        let Some(theirs) = self.namespaces else {
            return Vec::new();
        };
        let numbers = theirs.into_iter().zip(numbers_of_this_process());
        NAMESPACES
            .into_iter()
            .zip(numbers)
            .filter(|(_, (theirs, ours))| *theirs != 0 && *ours != 0 && theirs != ours)
            .map(|(name, _)| name)
            .collect()
    }

    /// The last thing that the outer process may have said before it ended.
    fn listen_for_pid(&mut self, report: BorrowedFd<'_>) {
        while let Ok(Some(word)) = receive(report) {
            if let Record::Process { pid } = word {
                self.jailed = to_pid(pid);
            }
        }
    }
}

fn to_pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// Keeps the last words only.
fn keep(words: &mut VecDeque<Record<'static>>, word: Record<'static>) {
    if words.len() == MAX_WORDS {
        words.pop_front();
    }
    words.push_back(word);
}

/// The next record; `None` at the end of all records.
fn receive(report: BorrowedFd<'_>) -> Result<Option<Record<'static>>, Errno> {
    loop {
        let mut buffer = [0; MAX_RECORD];
        match rustix::io::read(report, &mut buffer) {
            Ok(0) => return Ok(None),
            Ok(len) => {
                if let Some(record) = Record::decode(&buffer[..len]) {
                    return Ok(Some(record));
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// False once `deadline` has passed.
fn wait_readable(report: BorrowedFd<'_>, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    let timeout = Timespec::try_from(left).ok();
    let mut descriptors = [PollFd::from_borrowed_fd(report, PollFlags::IN)];
    // An interrupted or failed wait leads to another read, which says what is the matter.
    let _ready = poll(&mut descriptors, timeout.as_ref());
    true
}

fn kill_and_reap(pid: Option<Pid>) {
    if let Some(pid) = pid {
        let _gone = kill_process(pid, Signal::KILL);
        reap(pid);
    }
}

/// Waits for a child and says how it ended.
fn reap(pid: Pid) -> String {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("code {code}"),
                    (None, Some(signal)) => format!("signal {signal}"),
                    (None, None) => format!("{status:?}"),
                };
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return errno.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_may_be_shared_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<JailedChild>();
        check::<Spawner>();
    }
}
