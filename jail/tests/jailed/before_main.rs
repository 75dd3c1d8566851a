//! A process whose filter is on before `main`, as minijail0 does it: the policies for that have the calls by which a program starts.
// UNSAFETY: a constructor of the program runs before `main`.
#![expect(unsafe_code, reason = "places a constructor")]

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use jail::Filters;
use jail::Violation;

use crate::runner::Test;
use crate::spawned::by_hand;

pub(crate) const TESTS: &[Test] = &[
    (
        "before_main::programs_start_and_end_under_their_policies",
        programs_start_and_end_under_their_policies,
    ),
    ("before_main::violation_is_reported", violation_is_reported),
    (
        "before_main::minijail0_runs_the_program",
        minijail0_runs_the_program,
    ),
];

/// The policy that is put on before `main`.
const POLICY: &str = "JAIL_TEST_POLICY_BEFORE_MAIN";

// SAFETY: the C library calls the functions in this section once, before `main`, without arguments that this one would look at.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    let Ok(policy) = env::var(POLICY) else {
        return;
    };
    let filters = Filters::for_process(&policy, None, Violation::Trap);
    for program in filters.expect("it is in order").programs() {
        seccompiler::apply_filter(program).expect("the kernel takes it");
    }
}

fn under(policy: &str, action: &str) -> Command {
    let mut command = by_hand(action, "none");
    command.env(POLICY, policy);
    command
}

fn programs_start_and_end_under_their_policies() {
    for policy in ["device_minijail0", "backend", "backend_blobs"] {
        for (action, code) in [
            ("code", 7),
            ("panic", 101),
            ("abort", 134),
            // Where the main thread's stack ends the standard library can't find out, so that its overflow would be a plain fault.
            ("worker-overflows", 134),
            ("allocate", 0),
            ("worker-ends", 0),
            ("worker-panics", 0),
        ] {
            let output = under(policy, action).output().expect("it can be executed");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(code),
                "{policy} {action}: {errors}"
            );
        }
    }
}

fn violation_is_reported() {
    let output = under("device_minijail0", "connect")
        .output()
        .expect("it can be executed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{errors}");
    assert!(
        errors.contains("the policy does not allow syscall"),
        "{errors}"
    );
}

/// With the real one, where it is installed. No registry has it, so that its absence is no failure.
fn minijail0_runs_the_program() {
    if Command::new("minijail0").arg("-h").output().is_err() {
        println!("minijail0 is not installed: not tried");
        return;
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../seccomp");
    for policy in ["device_minijail0", "backend", "backend_blobs"] {
        let by_hand = by_hand("code", "none");
        let exe = env::current_exe().expect("/proc is there");
        let status = Command::new("minijail0")
            .args(["--logging=stderr", "-T", "dynamic", "-n", "-S"])
            .arg(format!("{folder}/{}/{policy}.policy", jail::Arch::NATIVE))
            .arg("--")
            .arg(exe)
            .args(by_hand.get_args())
            .status()
            .expect("it can be executed");
        assert_eq!(status.code(), Some(7), "{policy}");
    }
}
