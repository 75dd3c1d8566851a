//! How a jailed process ends is reported as what it is.

use std::os::fd::AsFd;

use jail::End;
use jail::SandboxLevel;
use jail::Stderr;
use jail::Violation;

use crate::runner::Test;
use crate::spawned::Jailed;
use crate::spawned::report_of;

pub(crate) const TESTS: &[Test] = &[
    ("ends::code_is_reported", code_is_reported),
    (
        "ends::panic_is_reported_with_its_message",
        panic_is_reported_with_its_message,
    ),
    (
        "ends::standard_error_that_is_a_file_ends_nothing",
        standard_error_that_is_a_file_ends_nothing,
    ),
    ("ends::abort_is_reported", abort_is_reported),
    ("ends::out_of_memory_is_reported", out_of_memory_is_reported),
    (
        "ends::stack_overflow_is_reported",
        stack_overflow_is_reported,
    ),
    ("ends::fault_is_a_signal", fault_is_a_signal),
    (
        "ends::thread_end_is_no_violation",
        thread_end_is_no_violation,
    ),
    ("ends::allocator_is_no_violation", allocator_is_no_violation),
    (
        "ends::violation_names_syscall_and_thread",
        violation_names_syscall_and_thread,
    ),
    (
        "ends::violation_in_kill_mode_has_no_call",
        violation_in_kill_mode_has_no_call,
    ),
    (
        "ends::log_mode_lists_what_the_policy_lacks",
        log_mode_lists_what_the_policy_lacks,
    ),
];

/// The two levels that have a filter.
const LEVELS: [SandboxLevel; 2] = [SandboxLevel::Full, SandboxLevel::Seccomp];

#[track_caller]
fn end_of(action: &str, level: SandboxLevel) -> End {
    let jailed = Jailed {
        level,
        ..Jailed::new(action)
    };
    let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
    report_of(&mut child).end
}

fn code_is_reported() {
    for level in [
        SandboxLevel::Full,
        SandboxLevel::Seccomp,
        SandboxLevel::None,
    ] {
        assert_eq!(end_of("end", level), End::Exited { code: 0 });
        assert_eq!(end_of("code", level), End::Exited { code: 7 });
    }
}

fn panic_is_reported_with_its_message() {
    for level in LEVELS {
        let end = end_of("panic", level);
        let End::Panicked { message } = &end else {
            panic!("{end:?}");
        };
        assert!(message.starts_with("on purpose, at "), "{message}");
        let end = end_of("panic-before", level);
        assert!(matches!(end, End::Panicked { .. }), "{end:?}");
        // The thread's panic is the thread's; the process goes on.
        assert_eq!(end_of("worker-panics", level), End::Exited { code: 0 });
    }
}

fn standard_error_that_is_a_file_ends_nothing() {
    let file = tempfile::tempfile().expect("a temporary file");
    for level in LEVELS {
        let jailed = Jailed {
            level,
            stderr: Some(Stderr::To(file.as_fd())),
            ..Jailed::new("panic")
        };
        let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
        let end = report_of(&mut child).end;
        assert!(matches!(end, End::Panicked { .. }), "{end:?}");
    }
    let len = file.metadata().expect("it is open").len();
    assert_eq!(len, 0, "a jailed process writes no files");
}

fn abort_is_reported() {
    for level in LEVELS {
        for (action, thread) in [("abort", "main"), ("worker-aborts", "worker")] {
            let thread = thread.to_owned();
            let panic = None;
            assert_eq!(end_of(action, level), End::Aborted { thread, panic });
        }
    }
}

fn out_of_memory_is_reported() {
    for level in LEVELS {
        let end = end_of("out-of-memory", level);
        let End::OutOfMemory { thread, bytes } = &end else {
            panic!("{end:?}");
        };
        assert_eq!((thread.as_str(), *bytes), ("main", 16 << 20));
    }
}

fn stack_overflow_is_reported() {
    for level in LEVELS {
        for (action, thread) in [("overflow", "main"), ("worker-overflows", "worker")] {
            let thread = thread.to_owned();
            assert_eq!(end_of(action, level), End::StackOverflow { thread });
        }
    }
}

fn fault_is_a_signal() {
    for level in LEVELS {
        let end = End::Signaled {
            signal: 11,
            signal_name: "SIGSEGV",
        };
        assert_eq!(end_of("fault", level), end);
    }
}

fn thread_end_is_no_violation() {
    for level in LEVELS {
        assert_eq!(end_of("worker-ends", level), End::Exited { code: 0 });
    }
}

fn allocator_is_no_violation() {
    for level in LEVELS {
        assert_eq!(end_of("allocate", level), End::Exited { code: 0 });
    }
}

#[track_caller]
fn check_violation(action: &str, level: SandboxLevel, names: &[&str], in_thread: &str) {
    let end = end_of(action, level);
    let End::Violation { call: Some(call) } = &end else {
        panic!("{action}: {end:?}");
    };
    let name = call.syscall.expect("the table has a name");
    assert!(names.contains(&name), "{action}: {name}");
    assert_eq!(call.thread, in_thread, "{action}");
    assert_ne!(call.address, 0, "{action}");
}

fn violation_names_syscall_and_thread() {
    for level in LEVELS {
        check_violation("socket", level, &["socketpair"], "main");
        check_violation("open", level, &["openat"], "main");
        check_violation("connect", level, &["socket"], "main");
        check_violation("listen", level, &["socket"], "main");
        check_violation("thread", level, &["mprotect", "clone", "clone3"], "main");
        // The C library blocks all signals around a fork, so that the handler has no word.
        assert_eq!(end_of("fork", level), End::Violation { call: None });
        check_violation("worker-socket", level, &["socketpair"], "worker");
    }
}

fn violation_in_kill_mode_has_no_call() {
    for level in LEVELS {
        let jailed = Jailed {
            level,
            violation: Violation::Kill,
            ..Jailed::new("socket")
        };
        let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
        let report = report_of(&mut child);
        assert_eq!(report.end, End::Violation { call: None });
    }
}

fn log_mode_lists_what_the_policy_lacks() {
    for level in LEVELS {
        let jailed = Jailed {
            level,
            violation: Violation::Log,
            ..Jailed::new("worker-socket")
        };
        let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
        let report = report_of(&mut child);
        assert_eq!(report.end, End::Exited { code: 0 });
        let missing = child.missing();
        let names: Vec<_> = missing.iter().map(|call| (call.name, call.count)).collect();
        assert_eq!(names, [(Some("socketpair"), 1)]);
    }
}
