//! Starting jailed processes: what is passed on, what is reported, what is left.

use std::env;
use std::ffi::OsString;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::Duration;

use jail::Arch;
use jail::End;
use jail::ExitReport;
use jail::JailedChild;
use jail::Policy;
use jail::Program;
use jail::SandboxLevel;
use jail::SpawnError;
use jail::SpawnRequest;
use jail::Spawner;
use jail::Stderr;
use jail::Violation;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::FdFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::pidfd_open;

use crate::child;
use crate::runner::Test;

/// The argument that makes the program play the parent of a jailed process.
pub(crate) const PARENT: &str = "--parent";

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
        "spawned::many_at_once_leave_no_descriptor",
        many_at_once_leave_no_descriptor,
    ),
    (
        "spawned::child_dies_with_its_parent",
        child_dies_with_its_parent,
    ),
    (
        "spawned::program_started_by_hand_passes_the_end_on",
        program_started_by_hand_passes_the_end_on,
    ),
    (
        "spawned::program_started_by_hand_closes_other_descriptors",
        program_started_by_hand_closes_other_descriptors,
    ),
    (
        "spawned::policy_of_a_folder_takes_the_place_of_the_built_in_one",
        policy_of_a_folder_takes_the_place_of_the_built_in_one,
    ),
    (
        "spawned::forwarded_lines_reach_a_file",
        forwarded_lines_reach_a_file,
    ),
    (
        "spawned::ordinary_user_can_do_the_same",
        ordinary_user_can_do_the_same,
    ),
    (
        "spawned::groups_of_root_are_dropped",
        groups_of_root_are_dropped,
    ),
    (
        "spawned::root_of_a_container_can_do_the_same",
        root_of_a_container_can_do_the_same,
    ),
    (
        "spawned::system_without_user_namespaces_is_explained",
        system_without_user_namespaces_is_explained,
    ),
];

static SPAWNER: LazyLock<Spawner> = LazyLock::new(|| Spawner::start().expect("a thread"));

/// Long enough for a machine under load; only a failing test waits for it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// The argument that makes the program play a parent that passes lines on.
pub(crate) const FORWARDER: &str = "--forwarder";

/// How a test wants its jailed process.
pub(crate) struct Jailed<'a> {
    pub(crate) action: &'a str,
    pub(crate) level: SandboxLevel,
    pub(crate) violation: Violation,
    pub(crate) more: &'a [&'a str],
    pub(crate) descriptors: &'a [(&'a str, BorrowedFd<'a>)],
    /// Nowhere, or to the terminal of who asks for it.
    pub(crate) stderr: Option<Stderr<'a>>,
}

impl<'a> Jailed<'a> {
    pub(crate) fn new(action: &'a str) -> Self {
        Self {
            action,
            level: SandboxLevel::Full,
            violation: Violation::Trap,
            more: &[],
            descriptors: &[],
            stderr: None,
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
            stderr: self
                .stderr
                .unwrap_or(match env::var_os("JAIL_TEST_STDERR") {
                    Some(_) => Stderr::Inherit,
                    None => Stderr::Null,
                }),
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

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("/proc is there")
        .count()
}

fn many_at_once_leave_no_descriptor() {
    // The first one starts the thread that all use.
    drop(hold(SandboxLevel::Full, Violation::Trap));
    let before = open_descriptors();
    for violation in [Violation::Trap, Violation::Log] {
        let held: Vec<Held> = (0..8)
            .map(|_| hold(SandboxLevel::Full, violation))
            .collect();
        assert!(open_descriptors() > before);
        drop(held);
        let ends: Vec<JailedChild> = (0..4)
            .map(|_| {
                Jailed::new("abort")
                    .spawn()
                    .unwrap_or_else(|error| panic!("{error}"))
            })
            .collect();
        drop(ends);
        let broken = Jailed {
            more: &["--policy", "none"],
            ..Jailed::new("end")
        };
        let error = broken.spawn().expect_err("there is no such policy");
        assert!(matches!(error, SpawnError::Died { .. }), "{error}");
    }
    assert_eq!(open_descriptors(), before);
}

/// Plays a parent that starts a jailed process and says its number, until it is killed.
pub(crate) fn parent() -> ExitCode {
    // It would not notice by itself that its parent is gone.
    let child = Jailed::new("hold-nothing").spawn();
    let child = child.unwrap_or_else(|error| panic!("{error}"));
    println!("{}", child.pid());
    loop {
        std::thread::park();
    }
}

/// Plays a parent whose jailed process makes a call that it may not, and passes its lines on.
pub(crate) fn forwarder() -> ExitCode {
    let jailed = Jailed {
        stderr: Some(Stderr::Forward),
        ..Jailed::new("socket")
    };
    let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
    report_of(&mut child);
    ExitCode::SUCCESS
}

fn forwarded_lines_reach_a_file() {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let status = Command::new("/proc/self/exe")
        .arg(FORWARDER)
        .stderr(file.try_clone().expect("it is open"))
        .status()
        .expect("it can be executed");
    assert!(status.success());
    let mut text = String::new();
    file.rewind().expect("it is a file");
    file.read_to_string(&mut text).expect("it is text");
    let start =
        "device test0: portcullis: device test0: thread main (id 1): the policy does not allow ";
    assert!(text.starts_with(start), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

fn child_dies_with_its_parent() {
    let mut parent = Command::new("/proc/self/exe")
        .arg(PARENT)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be executed");
    let stdout = parent.stdout.take().expect("it is piped");
    let line = BufReader::new(stdout)
        .lines()
        .next()
        .expect("it says a line");
    let pid = line
        .expect("it can be read")
        .parse()
        .ok()
        .and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.expect("a number"), PidfdFlags::empty()).expect("it lives");
    assert_eq!(
        wait_for_end(&pidfd, Duration::ZERO),
        0,
        "it lives while its parent does"
    );
    parent.kill().expect("it lives");
    parent.wait().expect("it is a child");
    assert_eq!(wait_for_end(&pidfd, TIMEOUT), 1, "it dies with its parent");
}

/// The report of a process that ends in time.
#[track_caller]
pub(crate) fn report_of(child: &mut JailedChild) -> ExitReport {
    let ended = wait_for_end(child.pidfd(), TIMEOUT);
    assert_eq!(ended, 1, "the process does not end");
    child.wait().expect("it can be waited for")
}

/// 1 if the process has ended within `timeout`.
fn wait_for_end(pidfd: impl AsFd, timeout: Duration) -> usize {
    let timeout = Timespec::try_from(timeout).expect("it is short");
    let mut descriptors = [PollFd::new(&pidfd, PollFlags::IN)];
    poll(&mut descriptors, Some(&timeout)).expect("it can be waited for")
}

/// The command line of a user who starts the program without a parent that wants reports.
pub(crate) fn by_hand(action: &str, level: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .env("RUST_BACKTRACE", "full")
        .stdin(Stdio::null())
        .args([
            child::MARK,
            "--action",
            action,
            "--name",
            "test0",
            "--sandbox",
            level,
            "--seccomp",
            "trap",
        ]);
    command
}

fn program_started_by_hand_passes_the_end_on() {
    for level in ["full", "seccomp", "none"] {
        let code = |action| by_hand(action, level).output().expect("it can be executed");
        assert_eq!(code("code").status.code(), Some(7), "{level}");
        assert_eq!(code("abort").status.code(), Some(134), "{level}");
        assert_eq!(code("panic").status.code(), Some(101), "{level}");
    }
    let output = by_hand("socket", "full")
        .output()
        .expect("it can be executed");
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS));
    let line = String::from_utf8_lossy(&output.stderr);
    let start = "portcullis: device test0: thread main (id 1): the policy does not allow syscall ";
    assert!(line.starts_with(start), "{line}");
    assert!(line.contains("(socketpair), called at 0x"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let output = by_hand("socket", "seccomp")
        .output()
        .expect("it can be executed");
    assert_eq!(output.status.signal(), Some(libc::SIGSYS));
}

fn program_started_by_hand_closes_other_descriptors() {
    let (mut ours, theirs) = UnixStream::pair().expect("socketpair");
    ours.set_read_timeout(Some(TIMEOUT)).expect("setsockopt");
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).expect("it is open");
    let mut child = by_hand("hold-nothing", "full")
        .spawn()
        .expect("it can be executed");
    drop(theirs);
    // It comes to its end only if the process has closed the other one.
    let mut byte = [0];
    let count = ours.read(&mut byte);
    child.kill().expect("it waits");
    child.wait().expect("it is a child");
    assert_eq!(count.expect("the other end is closed in time"), 0);
}

fn policy_of_a_folder_takes_the_place_of_the_built_in_one() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let path = folder.path().join("device.policy");
    let more = ["--policy-dir", folder.path().to_str().expect("it is UTF-8")];
    let jailed = Jailed {
        more: &more,
        ..Jailed::new("socket")
    };
    let text = Policy::built_in("device", Arch::NATIVE).expect("it is in order");
    let mut text: Vec<_> = text.rules().iter().map(|rule| rule.text.clone()).collect();
    text.push("socketpair: return EPERM".to_owned());
    std::fs::write(&path, text.join("\n")).expect("it can be written");
    let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
    let report = report_of(&mut child);
    assert_eq!(
        report.end,
        End::Exited { code: 51 },
        "the call came back with an error"
    );

    std::fs::write(&path, "socketpair: maybe\n").expect("it can be written");
    let error = jailed.spawn().expect_err("the policy has an error");
    assert!(matches!(error, SpawnError::Died { .. }), "{error}");
}

/// The same tests as an ordinary user, without those that look at what only root may see of a process that is not dumpable.
fn ordinary_user_can_do_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["inside::status", "inside::hang_up", "inside::own"])
        .args(FOR_ALL_USERS);
    all_pass(command.uid(ORDINARY).gid(ORDINARY));
}

fn groups_of_root_are_dropped() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut command = Command::new("setpriv");
    let exe = env::current_exe().expect("/proc is there");
    command.args(["--groups", "4,20", "--"]).arg(exe);
    all_pass(command.arg("inside::status"));
}

/// Tests that need no privilege.
const FOR_ALL_USERS: [&str; 5] = [
    "attempts::",
    "ends::",
    "spawned::dropped",
    "spawned::many",
    "spawned::program",
];

#[track_caller]
fn all_pass(command: &mut Command) {
    let output = command.output().expect("it can be executed");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(
        text.contains(" 0 failed") && !text.contains("\n0 passed"),
        "{text}"
    );
}

/// Runs this program in a user namespace in which an ordinary user is root and nobody else exists, as in a container of that user.
fn in_container(script: &str, arguments: &[&str]) -> Command {
    // By number, since that user may have no way to the file by its name.
    let exe = std::fs::File::open("/proc/self/exe").expect("/proc is there");
    rustix::io::fcntl_setfd(&exe, FdFlags::empty()).expect("it is open");
    let path = format!("/proc/self/fd/{}", exe.into_raw_fd());
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "sh", "-c", script, "sh", &path])
        .args(arguments);
    if rustix::process::geteuid().is_root() {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    command
}

fn root_of_a_container_can_do_the_same() {
    all_pass(&mut in_container(r#"exec "$@""#, &FOR_ALL_USERS));
}

fn system_without_user_namespaces_is_explained() {
    let script = r#"echo 0 > /proc/sys/user/max_user_namespaces && exec "$@""#;
    let mut arguments = vec![child::MARK, "--action", "end", "--name", "test0"];
    arguments.extend(["--seccomp", "trap", "--sandbox"]);
    let output = |level| {
        let arguments = [&arguments[..], &[level]].concat();
        in_container(script, &arguments)
            .output()
            .expect("it can be executed")
    };
    let full = output("full");
    let line = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(99), "{line}");
    let start = "unshare(CLONE_NEWUSER): No space left on device (os error 28): user namespaces are needed: \
                 raise user.max_user_namespaces";
    assert!(line.starts_with(start), "{line}");
    assert!(
        line.ends_with("choose a weaker jail with --sandbox seccomp\n"),
        "{line}"
    );
    // The parent gets the same words.
    let spawned = in_container(script, &["spawned::program_that", "ends::code"]);
    let text = { spawned }.output().expect("it can be executed");
    let text = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(
        text.contains("device test0: unshare(CLONE_NEWUSER): No space left"),
        "{text}"
    );
    let seccomp = output("seccomp");
    assert_eq!(
        seccomp.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&seccomp.stderr)
    );
}

/// A user that owns nothing in particular.
const ORDINARY: u32 = 1000;
