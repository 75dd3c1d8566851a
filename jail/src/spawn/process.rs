//! One call of `posix_spawn`: no copy of the parent's memory, and nothing inherited but what is named.
// UNSAFETY: `posix_spawn` is a C interface; the standard library's `Command` can't close what it does not know of.
#![expect(unsafe_code, reason = "calls posix_spawn")]

use std::ffi::CString;
use std::io;
use std::iter;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::Pid;
use rustix::stdio::stderr;

use super::Program;
use super::SpawnRequest;
use super::Stderr;
use crate::descriptors::FIRST_NAMED;

/// Duplicates of what is passed on get numbers from here, out of the way of the numbers in the child, which end before.
const SOURCES: RawFd = 64;

/// Everything that `posix_spawn` needs, owned.
#[derive(Debug)]
pub(super) struct Command {
    program: PathBuf,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// In the child they are numbered from [`FIRST_NAMED`], in this order.
    descriptors: Vec<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Command {
    pub(super) fn new(request: &SpawnRequest<'_>, report: BorrowedFd<'_>) -> io::Result<Self> {
        let program = match request.program {
            Program::SelfExe => Path::new("/proc/self/exe"),
            Program::Path(path) => path,
        };
        let mut command = Self {
            program: program.to_owned(),
            arguments: vec![c_string(program.as_os_str().as_bytes())?],
            environment: Vec::new(),
            descriptors: Vec::new(),
            stderr: match request.stderr {
                Stderr::Inherit => Some(duplicate(stderr())?),
                Stderr::To(descriptor) => Some(duplicate(descriptor)?),
                Stderr::Forward | Stderr::Null => None,
            },
        };
        for (name, value) in request.environment {
            let pair = [name.as_bytes(), b"=", value.as_bytes()].concat();
            command.environment.push(c_string(&pair)?);
        }
        for argument in request.arguments {
            command.argument(argument.as_bytes())?;
        }
        for (option, value) in [
            ("--name", request.name),
            ("--sandbox", request.level.name()),
            ("--seccomp", request.violation.name()),
        ] {
            command.argument(option.as_bytes())?;
            command.argument(value.as_bytes())?;
        }
        command.pass("report", report)?;
        Ok(command)
    }

    /// Sends standard error to `descriptor`.
    pub(super) fn set_stderr(&mut self, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.stderr = Some(duplicate(descriptor)?);
        Ok(())
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Passes on a descriptor, and its number as `--NAME-fd N`.
    pub(super) fn pass(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let number = self.first_unnamed();
        if number >= SOURCES {
            return Err(io::Error::other("too many descriptors to pass on"));
        }
        self.descriptors.push(duplicate(descriptor)?);
        self.argument(format!("--{name}-fd").as_bytes())?;
        self.argument(number.to_string().as_bytes())
    }

    fn argument(&mut self, argument: &[u8]) -> io::Result<()> {
        self.arguments.push(c_string(argument)?);
        Ok(())
    }

    /// The number in the child after the last named one.
    fn first_unnamed(&self) -> RawFd {
        let count = RawFd::try_from(self.descriptors.len()).unwrap_or(RawFd::MAX);
        FIRST_NAMED.saturating_add(count)
    }

    /// Starts the process, with default signal handling, in a session of its own.
    pub(super) fn spawn(self) -> io::Result<Pid> {
        let mut actions = FileActions::new()?;
        actions.open_null(0)?;
        actions.open_null(1)?;
        match &self.stderr {
            Some(stderr) => actions.duplicate(stderr, 2)?,
            None => actions.open_null(2)?,
        }
        for (source, target) in self.descriptors.iter().zip(FIRST_NAMED..) {
            actions.duplicate(source, target)?;
        }
        actions.close_from(self.first_unnamed())?;
        let attributes = Attributes::new()?;
        let program = c_string(self.program.as_os_str().as_bytes())?;
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let mut pid = 0;
        // SAFETY: all pointers are to live values: NUL-terminated strings, arrays of such that end with a null pointer, and initialised
        // actions and attributes. The strings are not written to.
        let result = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        check(result)?;
        Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr().cast_mut())
        .chain(iter::once(ptr::null_mut()))
        .collect()
}

fn duplicate(descriptor: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(descriptor, SOURCES)?)
}

/// `posix_spawn` and its kin return the errno.
fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the call initialises what the pointer is to.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn open_null(&mut self, target: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised, and the call copies the path.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(
                &raw mut self.0,
                target,
                c"/dev/null".as_ptr(),
                libc::O_RDWR,
                0,
            )
        })
    }

    fn duplicate(&mut self, source: &OwnedFd, target: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised; numbers are passed.
        check(unsafe {
            libc::posix_spawn_file_actions_adddup2(&raw mut self.0, source.as_raw_fd(), target)
        })
    }

    fn close_from(&mut self, first: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised; a number is passed.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut self.0, first) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the call initialises what the pointer is to.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above, which succeeded.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        let flags = libc::c_short::try_from(flags).map_err(|_large| io::ErrorKind::InvalidData)?;
        // A session of its own: signals of the terminal are for the parent, which then ends its devices in order.
        let flags = flags | libc::POSIX_SPAWN_SETSID;
        // SAFETY: the attributes are initialised; a number is passed.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags) })?;
        let none = signal_set(false);
        // SAFETY: the attributes are initialised, and the set is live.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, &raw const none) })?;
        let all = signal_set(true);
        // SAFETY: the attributes are initialised, and the set is live.
        check(unsafe {
            libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, &raw const all)
        })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

fn signal_set(full: bool) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    let fill = if full {
        libc::sigfillset
    } else {
        libc::sigemptyset
    };
    // SAFETY: both calls initialise the set that the pointer is to, and never fail on a valid pointer.
    unsafe { fill(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    unsafe { set.assume_init() }
}
