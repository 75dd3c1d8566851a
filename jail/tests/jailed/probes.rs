//! Syscalls in throw-away jailed processes: what the kernel lets through is what the policy's source says.

use jail::Arch;
use jail::End;
use jail::Policy;
use jail::SandboxLevel;
use jail::Syscall;
use jail::policy::Action;
use jail::policy::Test as PolicyTest;

use crate::runner::Test;
use crate::spawned::Jailed;
use crate::spawned::report_of;

pub(crate) const TESTS: &[Test] = &[
    (
        "probes::device_policy_lets_only_its_calls_through",
        device_policy_lets_only_its_calls_through,
    ),
    (
        "probes::minijail_policy_lets_only_its_calls_through",
        minijail_policy_lets_only_its_calls_through,
    ),
    (
        "probes::backend_policies_let_only_their_calls_through",
        backend_policies_let_only_their_calls_through,
    ),
    (
        "probes::rules_of_the_device_policy_look_at_their_arguments",
        rules_of_the_device_policy_look_at_their_arguments,
    ),
    (
        "probes::numbers_of_other_interfaces_are_stopped",
        numbers_of_other_interfaces_are_stopped,
    ),
];

/// With these arguments no call waits, and none does anything that matters.
const NO_HARM: [u64; 6] = [u64::MAX; 6];

/// Newer kernels let these pass every filter by design: they do nothing (ENXIO or SIGILL) but in the trampoline of a user-space probe.
const NEVER_FILTERED: [&str; 2] = ["uretprobe", "uprobe"];

fn policy(kind: &str) -> Policy {
    Policy::built_in(kind, Arch::NATIVE).expect("it is in order")
}

/// Makes the call in a jailed process of its own.
fn probe(kind: &str, level: SandboxLevel, number: u32, arguments: &[u64; 6]) -> End {
    let mut text = number.to_string();
    for argument in arguments {
        text.push_str(&format!(",{argument}"));
    }
    let jailed = Jailed {
        level,
        more: &["--policy", kind, "--call", &text],
        ..Jailed::new("call")
    };
    let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
    report_of(&mut child).end
}

#[track_caller]
fn check(policy: &Policy, kind: &str, level: SandboxLevel, syscall: Syscall, arguments: &[u64; 6]) {
    let end = probe(kind, level, syscall.number, arguments);
    match (policy.decide(syscall, arguments).action, end) {
        (Action::Violation, End::Violation { call: Some(call) }) => {
            assert_eq!(call.number, syscall.number, "{syscall}");
            assert_eq!(call.syscall, Some(syscall.name), "{syscall}");
            assert_eq!(call.arguments, *arguments, "{syscall}");
        }
        (Action::Violation, end) => panic!("{syscall} with {arguments:x?} passed: {end}"),
        (action, end @ End::Violation { .. }) => {
            panic!("{syscall} with {arguments:x?} is {action:?}: {end}")
        }
        _ => {}
    }
}

/// Tries every syscall of the architecture.
fn try_all(kind: &str, level: SandboxLevel) {
    let policy = policy(kind);
    let mut passed = 0;
    let filtered = |syscall: &Syscall| !NEVER_FILTERED.contains(&syscall.name);
    for syscall in Arch::NATIVE.syscalls().into_iter().filter(filtered) {
        check(&policy, kind, level, syscall, &NO_HARM);
        passed += usize::from(policy.decide(syscall, &NO_HARM).action != Action::Violation);
    }
    // Calls whose rules look at their arguments may pass with these or not.
    let always = |rule: &&jail::policy::Rule| !matches!(rule.test, PolicyTest::Any(_));
    let always = policy.rules().iter().filter(always).count();
    assert!(
        (always..=policy.rules().len()).contains(&passed),
        "{passed}"
    );
}

fn device_policy_lets_only_its_calls_through() {
    try_all("device", SandboxLevel::Full);
}

fn minijail_policy_lets_only_its_calls_through() {
    try_all("device_minijail0", SandboxLevel::Seccomp);
}

fn backend_policies_let_only_their_calls_through() {
    try_all("backend", SandboxLevel::Seccomp);
    try_all("backend_blobs", SandboxLevel::Seccomp);
}

/// Values around which an argument's test changes its answer.
fn values(rule: &jail::policy::Rule, index: usize) -> Vec<u64> {
    let PolicyTest::Any(alternatives) = &rule.test else {
        return Vec::new();
    };
    let atoms = alternatives.iter().flatten();
    let mut values: Vec<u64> = atoms
        .filter(|atom| usize::from(atom.argument) == index)
        .flat_map(|atom| [atom.value, atom.value + 1, atom.value | 1 << 32, 0])
        .collect();
    values.sort_unstable();
    values.dedup();
    values
}

fn rules_of_the_device_policy_look_at_their_arguments() {
    let policy = policy("device");
    let mut tried = 0;
    for rule in policy.rules() {
        for index in 0..6 {
            for value in values(rule, index) {
                let mut arguments = NO_HARM;
                if rule.syscall.name == "mmap" {
                    // The two arguments that have tests, each changed while the other one passes.
                    (arguments[2], arguments[3]) = (3, 0x22);
                }
                arguments[index] = value;
                check(
                    &policy,
                    "device",
                    SandboxLevel::Seccomp,
                    rule.syscall,
                    &arguments,
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 20, "{tried}");
}

fn numbers_of_other_interfaces_are_stopped() {
    const X32: u32 = 0x4000_0000;
    for number in [X32, X32 + 1, 1000, u32::MAX >> 1] {
        let end = probe("device", SandboxLevel::Full, number, &NO_HARM);
        let End::Violation { call: Some(call) } = end else {
            panic!("{number:#x}: {end}");
        };
        assert_eq!((call.number, call.syscall), (number, None));
    }
}
