//! Starting jailed processes: what is passed on, what is reported, what is left.

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use jail::JailedChild;
use jail::Program;
use jail::SandboxLevel;
use jail::SpawnError;
use jail::SpawnRequest;
use jail::Spawner;
use jail::Stderr;
use jail::Violation;

use crate::child;
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "spawned::program_that_does_not_exist_is_reported",
        program_that_does_not_exist_is_reported,
    ),
    (
        "spawned::program_that_ends_at_once_is_reported",
        program_that_ends_at_once_is_reported,
    ),
    (
        "spawned::dropped_child_leaves_no_process",
        dropped_child_leaves_no_process,
    ),
    (
        "spawned::ordinary_user_can_do_the_same",
        ordinary_user_can_do_the_same,
    ),
];

static SPAWNER: LazyLock<Spawner> = LazyLock::new(|| Spawner::start().expect("a thread"));

/// Long enough for a machine under load; only a failing test waits for it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// How a test wants its jailed process.
pub(crate) struct Jailed<'a> {
    pub(crate) action: &'a str,
    pub(crate) level: SandboxLevel,
    pub(crate) violation: Violation,
    pub(crate) more: &'a [&'a str],
    pub(crate) descriptors: &'a [(&'a str, BorrowedFd<'a>)],
}

impl<'a> Jailed<'a> {
    pub(crate) fn new(action: &'a str) -> Self {
        Self {
            action,
            level: SandboxLevel::Full,
            violation: Violation::Trap,
            more: &[],
            descriptors: &[],
        }
    }

    pub(crate) fn spawn(&self) -> Result<JailedChild, SpawnError> {
        let mut arguments: Vec<OsString> = vec![child::MARK.into()];
        arguments.extend(["--action", self.action].map(OsString::from));
        arguments.extend(self.more.iter().map(OsString::from));
        SPAWNER.spawn(SpawnRequest {
            name: "test0",
            program: Program::SelfExe,
            arguments: &arguments,
            environment: &[],
            descriptors: self.descriptors,
            level: self.level,
            violation: self.violation,
            stderr: if env::var_os("JAIL_TEST_STDERR").is_some() {
                Stderr::Inherit
            } else {
                Stderr::Null
            },
        })
    }
}

/// A process that is in its jail with its filter on, and waits.
pub(crate) struct Held {
    pub(crate) child: JailedChild,
    pub(crate) socket: UnixStream,
}

pub(crate) fn hold(level: SandboxLevel, violation: Violation) -> Held {
    let (mut socket, theirs) = UnixStream::pair().expect("socketpair");
    let child = Jailed {
        level,
        violation,
        descriptors: &[("parent", theirs.as_fd())],
        ..Jailed::new("hold")
    }
    .spawn()
    .unwrap_or_else(|error| panic!("{error}"));
    drop(theirs);
    socket.set_read_timeout(Some(TIMEOUT)).expect("setsockopt");
    let mut byte = [0];
    socket
        .read_exact(&mut byte)
        .expect("the child says that it is ready");
    Held { child, socket }
}

fn program_that_does_not_exist_is_reported() {
    let error = SPAWNER
        .spawn(SpawnRequest {
            program: Program::Path("/does/not/exist".as_ref()),
            ..plain()
        })
        .expect_err("it can't be executed");
    assert_eq!(
        error.to_string(),
        "execute /does/not/exist: No such file or directory (os error 2)"
    );
}

fn program_that_ends_at_once_is_reported() {
    let error = SPAWNER
        .spawn(SpawnRequest {
            program: Program::Path("/bin/false".as_ref()),
            ..plain()
        })
        .expect_err("it is no jailed process");
    assert_eq!(
        error.to_string(),
        "device test0 ended before it was in its jail: code 1"
    );
}

fn plain() -> SpawnRequest<'static> {
    SpawnRequest {
        name: "test0",
        program: Program::SelfExe,
        arguments: &[],
        environment: &[],
        descriptors: &[],
        level: SandboxLevel::Full,
        violation: Violation::Trap,
        stderr: Stderr::Null,
    }
}

fn dropped_child_leaves_no_process() {
    let held = hold(SandboxLevel::Full, Violation::Trap);
    let path = format!("/proc/{}", held.child.pid());
    assert!(std::fs::exists(&path).expect("/proc is there"));
    drop(held);
    assert!(!std::fs::exists(&path).expect("/proc is there"));
}

/// The same tests as an ordinary user, without those that look at what only root may see of a process that is not dumpable.
fn ordinary_user_can_do_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let output = Command::new("/proc/self/exe")
        .args([
            "ends::",
            "inside::status",
            "inside::hang_up",
            "spawned::dropped",
        ])
        .uid(ORDINARY)
        .gid(ORDINARY)
        .output()
        .expect("it can be executed");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("14 passed; 0 failed"), "{text}");
}

/// A user that owns nothing in particular.
const ORDINARY: u32 = 1000;
