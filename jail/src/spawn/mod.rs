//! Starts jailed processes and says how they ended.
//!
//! ```text
//! parent ──posix_spawn──> the program's outer process (trusted, not jailed) ──clone(CLONE_PARENT)──> the jailed process
//! ```
//!
//! The outer process makes the namespaces and ends; the jailed one is a direct child of the parent, so that the parent can wait for it and
//! its number can't be reused unseen. Only named descriptors are passed on. A report pipe tells the parent when the process is in its
//! jail, which step failed, and what the process said before it died.

mod child;
mod exit_report;
mod forward;
mod process;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;

use remain::sorted;
use rustix::fs::OFlags;
use rustix::fs::fcntl_setfl;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::socketpair;
use rustix::pipe::PipeFlags;
use rustix::pipe::pipe_with;

pub use child::JailedChild;
pub use exit_report::End;
pub use exit_report::ExitReport;
pub use exit_report::ViolatingCall;

use crate::log_mode::Supervisor;
use crate::sandbox::SandboxLevel;
use crate::violation::Violation;
use child::Helpers;
use forward::Forward;
use process::Command;

/// A process that could not be started.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A descriptor could not be duplicated or made.
    #[error("prepare the descriptors of device {name}: {source}")]
    Descriptors {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The process ended without saying why.
    #[error("device {name} ended before it was in its jail: {status}")]
    Died {
        /// The device.
        name: String,
        /// How the process that was started ended.
        status: String,
    },
    /// A step into the jail failed.
    #[error("device {name}: {text}")]
    Jail {
        /// The device.
        name: String,
        /// `step: errno: what to do`.
        text: String,
    },
    /// The process can't be waited for.
    #[error("wait for device {name}: {source}")]
    Pid {
        /// The device.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("execute {}: {source}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The spawner's thread is gone or could not be started.
    #[error("the thread that starts devices: {0}")]
    Thread(#[source] io::Error),
    /// The process does not get into its jail.
    #[error("device {name} did not get into its jail within {seconds} s")]
    Timeout {
        /// The device.
        name: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// What is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program<'a> {
    /// The program that is running.
    SelfExe,
    /// Another one.
    Path(&'a Path),
}

/// Where the process's standard error goes. Standard input and output are always `/dev/null`.
#[derive(Clone, Copy, Debug)]
pub enum Stderr<'a> {
    /// To where this process's goes, line by line through a thread of this process, which cleans and limits what comes.
    Forward,
    /// To where this process's goes, as it comes. Nothing arrives there if it is a file: a jailed process writes none (RLIMIT_FSIZE is 0).
    Inherit,
    /// Nowhere.
    Null,
    /// To this descriptor.
    To(BorrowedFd<'a>),
}

/// A jailed process to be.
#[derive(Clone, Copy, Debug)]
pub struct SpawnRequest<'a> {
    /// The device's name, for lines and reports.
    pub name: &'a str,
    /// What is executed.
    pub program: Program<'a>,
    /// The arguments. After them come `--name NAME --sandbox LEVEL --seccomp VIOLATION --report-fd N`, `--listener-fd N` in log mode, and
    /// `--X-fd N` for each of `descriptors` that is named X.
    pub arguments: &'a [OsString],
    /// All of the environment.
    pub environment: &'a [(OsString, OsString)],
    /// The descriptors that the process gets, each with its name.
    pub descriptors: &'a [(&'a str, BorrowedFd<'a>)],
    /// How strong its jail is.
    pub level: SandboxLevel,
    /// What a call leads to that its policy does not allow.
    pub violation: Violation,
    /// Where its standard error goes.
    pub stderr: Stderr<'a>,
}

type Job = Box<dyn FnOnce() + Send>;

/// Starts processes, from one thread that lives as long as the spawner or any of its children.
///
/// A jailed process is killed when the thread that started it ends, so that thread must not be one that comes and goes.
#[derive(Clone, Debug)]
pub struct Spawner {
    jobs: Arc<Mutex<mpsc::Sender<Job>>>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`SpawnError::Thread`] if it can't be started.
    pub fn start() -> Result<Self, SpawnError> {
        let (sender, receiver) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for job in receiver {
                    job();
                }
            })
            .map_err(SpawnError::Thread)?;
        Ok(Self {
            jobs: Arc::new(Mutex::new(sender)),
        })
    }

    /// Starts a process and waits until it is in its jail.
    ///
    /// # Errors
    /// [`SpawnError::Jail`] if the system does not allow a step, with what to do; others if it does not come that far. No process is left.
    pub fn spawn(&self, request: SpawnRequest<'_>) -> Result<JailedChild, SpawnError> {
        let descriptors = |source: io::Error| SpawnError::Descriptors {
            name: request.name.to_owned(),
            source,
        };
        let (report, theirs) = report_pipe().map_err(descriptors)?;
        let mut command = Command::new(&request, theirs.as_fd()).map_err(descriptors)?;
        drop(theirs);
        let forward = if let Stderr::Forward = request.stderr {
            let (ours, theirs) = stderr_pipe().map_err(descriptors)?;
            command.set_stderr(theirs.as_fd()).map_err(descriptors)?;
            Some(Forward::start(request.name, ours).map_err(SpawnError::Thread)?)
        } else {
            None
        };
        let supervisor = if request.violation == Violation::Log {
            let (ours, theirs) = pair().map_err(descriptors)?;
            rustix::io::ioctl_fionbio(&ours, false).map_err(|errno| descriptors(errno.into()))?;
            command
                .pass("listener", theirs.as_fd())
                .map_err(descriptors)?;
            Some(Supervisor::start(ours).map_err(SpawnError::Thread)?)
        } else {
            None
        };
        for (name, descriptor) in request.descriptors {
            command.pass(name, *descriptor).map_err(descriptors)?;
        }
        let program = command.program().to_owned();
        let outer = self.run(move || command.spawn()).and_then(|spawned| {
            spawned.map_err(|source| SpawnError::Program { program, source })
        })?;
        let helpers = Helpers {
            supervisor,
            forward,
            spawner: self.clone(),
        };
        JailedChild::wait_for_jail(request.name, outer, report, helpers)
    }

    /// Runs `job` in the spawner's thread.
    fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, SpawnError> {
        let gone = || SpawnError::Thread(io::Error::other("it is gone"));
        let (sender, receiver) = mpsc::sync_channel(1);
        self.jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Box::new(move || {
                // Nobody waits for the answer if the caller has panicked.
                let _nobody = sender.send(job());
            }))
            .map_err(|_closed| gone())?;
        receiver.recv().map_err(|_closed| gone())
    }
}

/// A pipe whose writer never waits: lines that find no room are lost, and the process goes on.
fn stderr_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&writer, OFlags::NONBLOCK)?;
    Ok((reader, writer))
}

/// A pipe of packets. A socket would carry descriptors, too, whose closing can take for ever: with one of those a jailed process
/// that was taken over would make its parent wait.
///
/// The writer waits for room until it is in its jail: a user with many pipes gets small ones.
fn report_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT)?;
    fcntl_setfl(&reader, OFlags::NONBLOCK)?;
    Ok((reader, writer))
}

/// Two connected packet sockets that never block.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::io::read;
    use rustix::io::write;

    use super::*;

    #[test]
    fn report_pipe_keeps_records_apart_and_its_reader_does_not_wait() {
        let (reader, writer) = report_pipe().expect("a pipe");
        assert_eq!(write(&writer, b"one"), Ok(3));
        assert_eq!(write(&writer, b"another"), Ok(7));
        let mut buffer = [0; 16];
        assert_eq!(read(&reader, &mut buffer), Ok(3));
        assert_eq!(read(&reader, &mut buffer), Ok(7));
        assert_eq!(read(&reader, &mut buffer), Err(Errno::AGAIN));
        drop(writer);
        assert_eq!(read(&reader, &mut buffer), Ok(0));
    }
}
