//! No rule of `common.policy` and `memory.policy` is there in vain: log mode with an empty policy lists what the processes of these tests really call.

use std::collections::BTreeSet;

use jail::Arch;
use jail::Policy;
use jail::Violation;

use crate::runner::Test;
use crate::spawned::Jailed;
use crate::spawned::report_of;

pub(crate) const TESTS: &[Test] = &[(
    "usage::every_common_rule_is_used",
    every_common_rule_is_used,
)];

/// Rules that no test can make fire on every machine, and why.
const NOT_HERE: [&str; 2] = [
    // The vDSO reads the clock, where the machine's clock source allows it.
    "clock_gettime",
    // The kernel makes it for a process that was stopped and goes on.
    "restart_syscall",
];

/// What jailed processes do that every one of them must be able to.
const ACTIONS: [&str; 11] = [
    "end",
    "read",
    "panic",
    "abort",
    "out-of-memory",
    "overflow",
    "fault",
    "worker-ends",
    "worker-panics",
    "worker-overflows",
    "allocate",
];

fn every_common_rule_is_used() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    // One rule, since a policy without any is none; its call is made by nobody.
    let text = "# Nothing passes.\nuselib: 1\n";
    let text = match Arch::NATIVE {
        Arch::X86_64 => text,
        Arch::Aarch64 | Arch::Riscv64 => "# Nothing passes.\nnfsservctl: 1\n",
    };
    std::fs::write(folder.path().join("device.policy"), text).expect("it can be written");
    let mut used = BTreeSet::new();
    for action in ACTIONS {
        let jailed = Jailed {
            violation: Violation::Log,
            more: &["--policy-dir", folder.path().to_str().expect("it is UTF-8")],
            ..Jailed::new(action)
        };
        let mut child = jailed.spawn().unwrap_or_else(|error| panic!("{error}"));
        report_of(&mut child);
        used.extend(child.missing().iter().filter_map(|call| call.name));
    }
    let mut common = BTreeSet::new();
    for kind in ["common", "memory"] {
        let policy = Policy::built_in(kind, Arch::NATIVE).expect("it is in order");
        common.extend(policy.rules().iter().map(|rule| rule.syscall.name));
    }
    let unused: Vec<_> = common
        .difference(&used)
        .filter(|name| !NOT_HERE.contains(name))
        .collect();
    assert!(unused.is_empty(), "never called: {unused:?}");
    let mut missing: Vec<_> = used.difference(&common).copied().collect();
    // In the policies that include this one; here it is the debug assertions of this program.
    missing.retain(|name| *name != "fcntl");
    assert!(missing.is_empty(), "called without a rule: {missing:?}");
}
