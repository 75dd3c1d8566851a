//! What a jailed process says before it dies: one line on standard error and one record for its parent.
//!
//! SIGSYS (a call that the policy does not allow), SIGABRT (abort, out of memory, stack overflow) and panics each have their words. The
//! signal handlers write and return or exit, and do nothing else: no allocation, no lock, no call that a policy might not have.
//!
//! After its words on SIGSYS the process makes the call once more, now without a handler, and the kernel ends it with that signal. Raising
//! the signal would not do: process 1 of a namespace ignores what it sends to itself. For the same reason SIGABRT ends in
//! [`ABORT_CODE`]: there the default action would never come.
// UNSAFETY: signal handlers are installed, get a stack, and read what the kernel hands to them.
#![expect(unsafe_code, reason = "installs signal handlers and their stacks")]

mod context;
mod line;
mod stack;

use std::borrow::Cow;
use std::cell::Cell;
use std::cell::RefCell;
use std::env;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::panic;
use std::ptr;
use std::sync::OnceLock;

use rustix::stdio::stderr;
use rustix::thread::gettid;

use crate::arch::Arch;
use crate::oom;
use crate::record::AbortCause;
use crate::record::Record;
use crate::record::THREAD_NAME;
use crate::record::ThreadName;
use crate::record::ViolationRecord;
use context::Context;
use line::Line;
use stack::SignalStack;

/// The exit code after SIGABRT, as a shell would show it.
pub const ABORT_CODE: i32 = 128 + libc::SIGABRT;

/// The exit code of a process whose main thread panicked.
pub const PANIC_CODE: i32 = 101;

/// `si_code` of a SIGSYS that a filter sent.
const SYS_SECCOMP: i32 = 1;

/// What the handlers need; set once, before they are installed.
struct Speaker {
    name: String,
    report: Option<OwnedFd>,
}

static SPEAKER: OnceLock<Speaker> = OnceLock::new();

thread_local! {
    // Neither value has a destructor or needs to be made, so that handlers may read them at any time.
    static THREAD: Cell<ThreadName> = const { Cell::new([0; THREAD_NAME]) };
    static THREAD_ID: Cell<u32> = const { Cell::new(0) };
    static STACK: RefCell<Option<SignalStack>> = const { RefCell::new(None) };
}

/// Tells the handlers the name of the calling thread, for their lines, and gives it a signal stack that is large enough for them; call it
/// when the thread starts.
///
/// Names longer than 16 bytes are cut off. Where there is no memory for a signal stack the thread keeps the one that it has, on which the
/// last words of a stack overflow may find no room.
pub fn name_thread(name: &str) {
    let mut bytes = [0; THREAD_NAME];
    let len = name.len().min(THREAD_NAME);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    THREAD.set(bytes);
    THREAD_ID.set(gettid().as_raw_nonzero().get().unsigned_abs());
    STACK.with_borrow_mut(|stack| {
        if stack.is_none() {
            *stack = SignalStack::install().ok();
        }
    });
}

/// Installs the handlers and the panic hook. Only the first call of a process has an effect; the process has one thread.
///
/// Panics get no backtrace: its files can't be opened in the jail, and the attempt would be a violation.
pub(crate) fn install(name: &str, report: Option<OwnedFd>) -> io::Result<()> {
    let speaker = Speaker {
        name: name.to_owned(),
        report,
    };
    if SPEAKER.set(speaker).is_err() {
        return Ok(());
    }
    handle(
        libc::SIGSYS,
        on_sigsys,
        libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND,
    )?;
    handle(
        libc::SIGABRT,
        on_sigabrt,
        libc::SA_SIGINFO | libc::SA_ONSTACK,
    )?;
    // Standard error may be a file, and a jailed process writes no files; then its lines are lost, and nothing else.
    ignore(libc::SIGXFSZ)?;
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: the process has one thread yet, so that nobody reads the environment at the same time.
        unsafe { env::remove_var(variable) };
    }
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        say(&Record::Panic {
            text: Cow::Owned(panic_text(info)),
        });
    }));
    Ok(())
}

fn panic_text(info: &panic::PanicHookInfo<'_>) -> String {
    let payload = info.payload_as_str().unwrap_or("no message");
    match info.location() {
        Some(location) => format!("{payload}, at {}:{}", location.file(), location.line()),
        None => payload.to_owned(),
    }
}

/// The report pipe, once [`install`] was called with one.
pub(crate) fn report() -> Option<BorrowedFd<'static>> {
    SPEAKER.get()?.report.as_ref().map(AsFd::as_fd)
}

/// From here on a record that finds no room is lost: the parent reads again when the process has ended.
///
/// A policy that is on before `main` can forbid it. A process that somebody else has jailed then waits for room in the pipe that it was
/// given, as whoever gave it may well want.
pub(crate) fn never_wait() {
    if let Some(report) = report() {
        let _forbidden = rustix::io::ioctl_fionbio(report, true);
    }
}

/// Sends a record to the parent. What can't be sent is lost.
pub(crate) fn say(record: &Record<'_>) {
    if let Some(report) = report() {
        let _lost = rustix::io::write(report, record.encode().bytes());
    }
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn handle(signal: libc::c_int, handler: Handler, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sigaction` (default action, empty mask, no flags).
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    action.sa_flags = flags;
    // SAFETY: `action` lives over the call and names a function of the three-argument kind, as SA_SIGINFO says. The handlers only do
    // what is allowed in signal handlers.
    let result = unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes numbers; no code of this program runs on the signal.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The fields that the kernel fills in for SIGSYS; `libc::siginfo_t` does not show them.
#[repr(C)]
struct SysInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    address: u64,
    syscall: u32,
    arch: u32,
}

const _: () = assert!(size_of::<SysInfo>() <= size_of::<libc::siginfo_t>());
const _: () = assert!(align_of::<SysInfo>() <= align_of::<libc::siginfo_t>());

extern "C" fn on_sigsys(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a `siginfo_t`, which is at least as large and as aligned as `SysInfo` (asserted above) and filled in
    // where `SysInfo` has fields.
    let info = unsafe { &*info.cast::<SysInfo>() };
    // SAFETY: with SA_SIGINFO the third argument is a `ucontext_t`, which nobody else refers to while the handler runs.
    let mut context = Context::new(unsafe { &mut *context.cast::<libc::ucontext_t>() });
    if info.code != SYS_SECCOMP {
        // Somebody sent the signal. The default action would be ignored if this is process 1 of a namespace.
        exit_now(128 + libc::SIGSYS);
    }
    let violation = ViolationRecord {
        number: info.syscall,
        thread_id: THREAD_ID.get(),
        address: info.address,
        arguments: context.arguments(),
        thread: THREAD.get(),
    };
    say(&Record::Violation(violation));
    let mut line = Line::new(speaker_name(), &violation.thread);
    line.violation(&violation, Arch::NATIVE);
    write_line(&line);
    // SA_RESETHAND took the handler away; made again, the call ends the process with the right signal.
    context.repeat_syscall(Arch::NATIVE.syscall_instruction_len());
}

extern "C" fn on_sigabrt(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the third argument is a `ucontext_t`, which nobody else refers to while the handler runs.
    let context = Context::new(unsafe { &mut *context.cast::<libc::ucontext_t>() });
    let cause = if context.was_on_signal_stack() {
        // Rust's handler for memory faults aborts if the fault was in a guard page, and does nothing else that could abort.
        AbortCause::StackOverflow
    } else {
        match oom::failed_allocation() {
            Some(size) => AbortCause::OutOfMemory(u64::try_from(size).unwrap_or(u64::MAX)),
            None => AbortCause::Abort,
        }
    };
    let thread = THREAD.get();
    say(&Record::Abort { cause, thread });
    let mut line = Line::new(speaker_name(), &thread);
    line.abort(cause);
    write_line(&line);
    exit_now(ABORT_CODE);
}

fn speaker_name() -> &'static str {
    SPEAKER.get().map_or("", |speaker| &speaker.name)
}

fn write_line(line: &Line) {
    let _lost = rustix::io::write(stderr(), line.bytes());
}

fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` is allowed in signal handlers and runs nothing of this program.
    unsafe { libc::_exit(code) }
}
