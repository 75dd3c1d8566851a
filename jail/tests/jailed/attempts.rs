//! Attempts to break out of a jail without its filter: in log mode all calls are made, so that the other walls show.
// UNSAFETY: the attempts are raw syscalls.
#![expect(
    unsafe_code,
    reason = "makes syscalls that the standard library does not have"
)]

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::ptr;
use std::sync::OnceLock;

use jail::End;
use jail::Filters;
use jail::Jail;
use jail::Limits;
use jail::Violation;

use crate::runner::Test;
use crate::spawned::Jailed;
use crate::spawned::TIMEOUT;
use crate::spawned::report_of;

pub(crate) const TESTS: &[Test] = &[
    (
        "attempts::every_wall_stands_without_the_filter",
        every_wall_stands_without_the_filter,
    ),
    (
        "attempts::every_attempt_ends_at_the_filter",
        every_attempt_ends_at_the_filter,
    ),
];

/// The name of an abstract socket of the test, which only its network namespace knows.
static ABSTRACT: OnceLock<String> = OnceLock::new();

type Attempt = (&'static str, fn() -> io::Result<()>, i32);

/// What is tried, and the errno that it gets.
const ATTEMPTS: &[Attempt] = &[
    (
        "read a file",
        || File::open("/etc/passwd").map(drop),
        libc::ENOENT,
    ),
    (
        "read /proc",
        || File::open("/proc/self/status").map(drop),
        libc::ENOENT,
    ),
    (
        "go up",
        || File::open("/../../etc/passwd").map(drop),
        libc::ENOENT,
    ),
    (
        "make a file",
        || File::create("/file").map(drop),
        libc::EROFS,
    ),
    (
        "make a folder",
        || std::fs::create_dir("/folder"),
        libc::EROFS,
    ),
    (
        "connect to the network",
        connect_to_the_network,
        libc::ENETUNREACH,
    ),
    (
        "connect to an abstract socket",
        connect_to_abstract_socket,
        libc::ECONNREFUSED,
    ),
    ("fork", || call(libc::SYS_clone, &[17]), libc::EAGAIN),
    (
        "start a thread",
        || std::thread::Builder::new().spawn(|| {}).map(drop),
        libc::EAGAIN,
    ),
    ("execute itself", execute_itself, libc::ENOENT),
    ("map executable memory", map_executable_memory, libc::EACCES),
    (
        "make memory executable",
        make_memory_executable,
        libc::EACCES,
    ),
    (
        "signal another process",
        || call(libc::SYS_kill, &[2, 9]),
        libc::ESRCH,
    ),
    (
        "signal all processes",
        || call(libc::SYS_kill, &[-1, 9]),
        libc::ESRCH,
    ),
    (
        "trace another process",
        || call(libc::SYS_ptrace, &[16, 2]),
        libc::ESRCH,
    ),
    ("mount", mount, libc::EPERM),
    (
        "become another user",
        || call(libc::SYS_setresuid, &[1, 1, 1]),
        libc::EINVAL,
    ),
    (
        "set the host name",
        || call(libc::SYS_sethostname, &[0, 0]),
        libc::EPERM,
    ),
    ("raise a limit", raise_a_limit, libc::EPERM),
    (
        "lock memory",
        || call(libc::SYS_mlockall, &[3]),
        libc::EPERM,
    ),
    ("fill a memory file", fill_a_memory_file, libc::EFBIG),
    (
        "raise a capability",
        || prctl(&[libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 21]),
        libc::EPERM,
    ),
    (
        "allow executable memory",
        || prctl(&[libc::PR_SET_MDWE, 0]),
        libc::EPERM,
    ),
    (
        "join a namespace",
        || call(libc::SYS_setns, &[1, 0]),
        libc::EINVAL,
    ),
    (
        "see kernel messages",
        || call(libc::SYS_syslog, &[3, 0, 0]),
        libc::EPERM,
    ),
    ("use up all descriptors", use_up_descriptors, libc::EMFILE),
    ("use up all memory", use_up_memory, libc::ENOMEM),
];

/// The jailed side: tries everything and writes one line for each attempt.
pub(crate) fn main(jail: Jail, filters: &Filters, mut parent: File, name: &str) -> ExitCode {
    ABSTRACT.get_or_init(|| name.to_owned());
    jail.lock_down(filters)
        .expect("the kernel takes the filters");
    for (name, attempt, _) in ATTEMPTS {
        let errno = match attempt() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        writeln!(parent, "{name}: {errno}").expect("the parent reads");
    }
    ExitCode::SUCCESS
}

fn every_wall_stands_without_the_filter() {
    let name = format!("portcullis-jail-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("it is a name");
    let _listener = UnixListener::bind_addr(&address).expect("the name is free");
    let (ours, theirs) = UnixStream::pair().expect("socketpair");
    let jailed = Jailed {
        violation: Violation::Log,
        descriptors: &[("parent", theirs.as_fd())],
        more: &["--abstract", &name],
        ..Jailed::new("try")
    };
    let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
    drop(theirs);
    ours.set_read_timeout(Some(TIMEOUT)).expect("setsockopt");
    let lines = BufReader::new(ours).lines();
    let lines: Vec<_> = lines.map(|line| line.expect("the child writes")).collect();
    let expected = ATTEMPTS
        .iter()
        .map(|(name, _, errno)| format!("{name}: {errno}"));
    let report = report_of(&mut child);
    assert_eq!(lines, expected.collect::<Vec<_>>());
    assert_eq!(report.end, End::Exited { code: 0 });
    assert!(child.missing().len() > 10, "the calls went by the filter");
}

/// The jailed side: tries one thing, and ends with code 0 only if that went well.
pub(crate) fn one(jail: Jail, filters: &Filters, name: &str) -> ExitCode {
    let attempt = ATTEMPTS.iter().find(|(known, _, _)| *known == name);
    let (_, attempt, _) = attempt.expect("the test knows its attempts");
    jail.lock_down(filters)
        .expect("the kernel takes the filters");
    match attempt() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn every_attempt_ends_at_the_filter() {
    for (name, _, _) in ATTEMPTS {
        let jailed = Jailed {
            more: &["--attempt", name],
            ..Jailed::new("try-one")
        };
        let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
        let end = report_of(&mut child).end;
        // Memory is what a process may ask for; the limit refuses it.
        let may_ask = *name == "use up all memory";
        match end {
            End::Violation { .. } if !may_ask => {}
            End::Exited { code: 1 } if may_ask => {}
            end => panic!("{name}: {end}"),
        }
    }
}

fn call(number: libc::c_long, arguments: &[i64]) -> io::Result<()> {
    let mut six = [0; 6];
    six[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = six;
    // SAFETY: the calls above take numbers and null pointers.
    result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

fn result(result: i64) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn prctl(arguments: &[i32]) -> io::Result<()> {
    let arguments: Vec<i64> = arguments.iter().copied().map(i64::from).collect();
    call(libc::SYS_prctl, &arguments)
}

fn fill_a_memory_file() -> io::Result<()> {
    let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(rustix::fs::ftruncate(file, 4096)?)
}

fn connect_to_the_network() -> io::Result<()> {
    std::net::TcpStream::connect("127.0.0.1:1").map(drop)
}

fn connect_to_abstract_socket() -> io::Result<()> {
    let name = ABSTRACT.get().map_or("", String::as_str);
    let address = SocketAddr::from_abstract_name(name)?;
    UnixStream::connect_addr(&address).map(drop)
}

fn execute_itself() -> io::Result<()> {
    let arguments = [ptr::null()];
    // SAFETY: the path is a string, and both arrays end with a null pointer.
    let value = unsafe {
        libc::execve(
            c"/proc/self/exe".as_ptr(),
            arguments.as_ptr(),
            arguments.as_ptr(),
        )
    };
    result(i64::from(value))
}

fn mount() -> io::Result<()> {
    // SAFETY: all pointers are to strings, or null.
    let value = unsafe {
        libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            c"tmpfs".as_ptr(),
            0,
            ptr::null(),
        )
    };
    result(i64::from(value))
}

fn map(size: usize, protection: i32) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping touches nothing that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address)
}

fn map_executable_memory() -> io::Result<()> {
    map(4096, libc::PROT_WRITE | libc::PROT_EXEC).map(drop)
}

fn make_memory_executable() -> io::Result<()> {
    let address = map(4096, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the page is this function's own.
    let value = unsafe { libc::mprotect(address, 4096, libc::PROT_READ | libc::PROT_EXEC) };
    result(i64::from(value))
}

fn use_up_memory() -> io::Result<()> {
    map(2 << 30, libc::PROT_READ | libc::PROT_WRITE).map(drop)
}

fn raise_a_limit() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: 1 << 20,
        rlim_max: 1 << 20,
    };
    // SAFETY: the limit is read by the call.
    let value = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    result(i64::from(value))
}

fn use_up_descriptors() -> io::Result<()> {
    let mut all = Vec::new();
    for _ in 0..Limits::default().open_files {
        all.push(rustix::io::dup(rustix::stdio::stderr())?);
    }
    Ok(())
}
