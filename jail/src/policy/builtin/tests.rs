//! The policies of `seccomp/`: in step with each other, within their limits, and every rule tried with passing and with changed arguments.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;
use crate::policy::Operator;
use crate::policy::Policy;
use crate::policy::Rule;
use crate::policy::Test;
use crate::policy::interpreter::Call;
use crate::policy::interpreter::answer;
use crate::policy::interpreter::expected;
use crate::violation::Violation;

/// The policies that are for a kind of process.
const KINDS: [&str; 4] = ["backend", "backend_blobs", "device", "device_minijail0"];

/// No more than this many calls for a device process, without a reason for each beyond.
const DEVICE_LIMIT: usize = 29;

fn policy(kind: &str, arch: Arch) -> Policy {
    Policy::built_in(kind, arch).expect("it is in order")
}

fn names(policy: &Policy) -> BTreeSet<&'static str> {
    policy
        .rules()
        .iter()
        .map(|rule| rule.syscall.name)
        .collect()
}

#[test]
fn table_holds_the_files_of_the_folder() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let mut found = BTreeSet::new();
    for arch in Arch::ALL {
        for entry in fs::read_dir(root.join(arch.name())).expect("the folder is there") {
            let name = entry.expect("the folder can be read").file_name();
            found.insert((arch, name.into_string().expect("names are UTF-8")));
        }
    }
    let known: BTreeSet<_> = BUILT_IN
        .iter()
        .map(|file| (file.arch, file.name.to_owned()))
        .collect();
    assert_eq!(known, found);
}

/// Calls that only older architectures have, and what the C library calls on the others.
const ALTERNATIVES: [(&str, &str); 3] = [
    ("open", "openat"),
    ("poll", "ppoll"),
    ("unlink", "unlinkat"),
];

#[test]
fn architectures_have_the_same_files_with_the_same_rules() {
    for kind in KINDS {
        let text = |policy: &Policy, name: &str| {
            let rule = policy.rules().iter().find(|rule| rule.syscall.name == name);
            rule.map(|rule| rule.text.clone())
        };
        let x86_64 = policy(kind, Arch::X86_64);
        for arch in [Arch::Aarch64, Arch::Riscv64] {
            let other = policy(kind, arch);
            let mut wanted = names(&x86_64);
            for (old, new) in ALTERNATIVES {
                if wanted.remove(old) {
                    wanted.insert(new);
                }
            }
            assert_eq!(names(&other), wanted, "{kind} {arch}");
            for name in names(&other).intersection(&names(&x86_64)) {
                assert_eq!(text(&other, name), text(&x86_64, name), "{kind} {arch}");
            }
        }
    }
}

#[test]
fn device_policy_has_no_more_names_than_allowed() {
    for arch in Arch::ALL {
        let count = names(&policy("device", arch)).len();
        assert!(count <= DEVICE_LIMIT, "{arch}: {count}");
    }
}

#[test]
fn readme_has_the_numbers_of_names() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp/README.md");
    let text = fs::read_to_string(path).expect("it is there");
    for kind in KINDS.into_iter().chain(["common", "memory"]) {
        let count = names(&policy(kind, Arch::X86_64)).len();
        let (start, end) = (
            format!("| `seccomp/x86_64/{kind}.policy` |"),
            format!("| {count} |"),
        );
        let right = |line: &str| line.starts_with(&start) && line.ends_with(&end);
        assert!(text.lines().any(right), "{kind}: {count}");
    }
}

#[test]
fn minijail_policy_has_all_that_the_device_policy_has() {
    for arch in Arch::ALL {
        let device = policy("device", arch);
        let minijail = policy("device_minijail0", arch);
        for rule in device.rules() {
            for arguments in passing(rule) {
                let call = call(arch, rule.syscall.number, arguments);
                assert!(answer_is_allow(&minijail, &call), "{arch} {}", rule.text);
            }
        }
    }
}

#[test]
fn calls_that_would_open_the_jail_are_in_no_policy() {
    const NEVER_IN_DEVICES: [&str; 7] = [
        "open", "openat", "openat2", "socket", "bind", "listen", "accept4",
    ];
    const NEVER: [&str; 28] = [
        "execve",
        "execveat",
        "open_by_handle_at",
        "connect",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "io_uring_setup",
        "io_uring_enter",
        "memfd_create",
        "userfaultfd",
        "kill",
        "tkill",
        "fork",
        "vfork",
        "clone3",
        "unshare",
        "setns",
        "mount",
        "pivot_root",
        "chroot",
        "bpf",
        "perf_event_open",
        "keyctl",
        "seccomp",
        "setuid",
        "memfd_secret",
    ];
    for arch in Arch::ALL {
        for kind in KINDS {
            let policy = policy(kind, arch);
            let devices = if kind.starts_with("backend") {
                &[][..]
            } else {
                &NEVER_IN_DEVICES
            };
            // Its blobs are memfds.
            let is_its_work = |name: &str| kind == "backend_blobs" && name == "memfd_create";
            let never = NEVER.iter().chain(devices);
            let never = never.filter(|name| !is_its_work(name));
            for syscall in never.filter_map(|name| arch.syscall_by_name(name)) {
                let rule = policy.rule(syscall.number);
                let passes = rule.is_some_and(|rule| !matches!(rule.test, Test::Errno { .. }));
                assert!(!passes, "{kind} {arch} {syscall}");
            }
        }
    }
}

#[test]
fn memory_never_becomes_executable_and_descriptors_are_mapped_by_the_blobs_backend_alone() {
    const PROT_EXEC: u64 = 4;
    const MAP_SHARED: u64 = 1;
    const MAP_PRIVATE: u64 = 2;
    const MAP_ANONYMOUS: u64 = 0x20;
    for arch in Arch::ALL {
        for kind in KINDS {
            let policy = policy(kind, arch);
            let passes = |name: &str, arguments: [u64; 6]| {
                let syscall = arch.syscall_by_name(name).expect("all have it");
                answer_is_allow(&policy, &call(arch, syscall.number, arguments))
            };
            let anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
            assert!(passes("mmap", [0, 4096, 3, anonymous, u64::MAX, 0]));
            for others in 0..4 {
                assert!(!passes(
                    "mmap",
                    [0, 4096, PROT_EXEC | others, anonymous, u64::MAX, 0]
                ));
                assert!(!passes("mprotect", [0, 4096, PROT_EXEC | others, 0, 0, 0]));
            }
            let maps_guest_memory = kind == "backend_blobs";
            assert_eq!(
                passes("mmap", [0, 4096, 1, MAP_SHARED, 3, 0]),
                maps_guest_memory
            );
            assert!(!passes("mmap", [0, 4096, PROT_EXEC, MAP_SHARED, 3, 0]));
            assert!(!passes("mmap", [0, 4096, 1, MAP_PRIVATE, 3, 0]));
        }
    }
}

#[test]
fn only_sigabrt_can_be_sent() {
    for arch in Arch::ALL {
        for kind in KINDS {
            let policy = policy(kind, arch);
            let tgkill = arch.syscall_by_name("tgkill").expect("all have it").number;
            for signal in 0..=64 {
                let call = call(arch, tgkill, [1, 1, signal, 0, 0, 0]);
                assert_eq!(
                    answer_is_allow(&policy, &call),
                    signal == 6,
                    "{kind} {arch} {signal}"
                );
            }
        }
    }
}

fn call(arch: Arch, number: u32, arguments: [u64; 6]) -> Call {
    Call {
        number,
        arch: arch.audit_value(),
        arguments,
    }
}

fn answer_is_allow(policy: &Policy, call: &Call) -> bool {
    let filters = policy.compile(Violation::Trap).expect("it compiles");
    answer(&filters, call) == libc::SECCOMP_RET_ALLOW
}

/// Values around which the tests of `rule` change their answers.
fn values(rule: &Rule) -> Vec<u64> {
    let mut values = vec![0, 1, u64::MAX, 1 << 32];
    if let Test::Any(alternatives) = &rule.test {
        for atom in alternatives.iter().flatten() {
            let value = atom.value;
            values.extend([
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value | 1 << 32,
                !value,
            ]);
        }
    }
    values.sort_unstable();
    values.dedup();
    values
}

/// Arguments that pass each alternative of `rule`.
fn passing(rule: &Rule) -> Vec<[u64; 6]> {
    let Test::Any(alternatives) = &rule.test else {
        return vec![[0; 6]];
    };
    alternatives
        .iter()
        .map(|conjunction| {
            let mut arguments = [0; 6];
            for atom in conjunction {
                let argument = &mut arguments[usize::from(atom.argument)];
                match atom.operator {
                    Operator::NotEqual => *argument = !atom.value,
                    Operator::Less => *argument = atom.value - 1,
                    Operator::Greater => *argument = atom.value + 1,
                    Operator::AnyBit => *argument |= atom.value,
                    _ => *argument = atom.value,
                }
            }
            assert!(
                conjunction
                    .iter()
                    .all(|a| a.holds(arguments[usize::from(a.argument)]))
            );
            arguments
        })
        .collect()
}

#[test]
fn every_rule_passes_its_arguments_and_no_others() {
    for (kind, arch) in KINDS
        .iter()
        .flat_map(|kind| Arch::ALL.map(|arch| (kind, arch)))
    {
        let policy = policy(kind, arch);
        let filters = policy.compile(Violation::Trap).expect("it compiles");
        for rule in policy.rules() {
            let mut stopped = 0;
            for arguments in passing(rule) {
                for index in 0..arguments.len() {
                    for value in values(rule) {
                        let mut changed = arguments;
                        changed[index] = value;
                        let call = call(arch, rule.syscall.number, changed);
                        let answer = answer(&filters, &call);
                        let wanted = expected(&policy, Violation::Trap, rule.syscall, &changed);
                        assert_eq!(answer, wanted, "{} with {changed:x?}", rule.origin);
                        stopped += usize::from(answer == libc::SECCOMP_RET_TRAP);
                    }
                }
                let call = call(arch, rule.syscall.number, arguments);
                assert_ne!(
                    answer(&filters, &call),
                    libc::SECCOMP_RET_TRAP,
                    "{}",
                    rule.origin
                );
            }
            let tested = matches!(rule.test, Test::Any(_));
            assert_eq!(stopped > 0, tested, "{}: {stopped}", rule.origin);
        }
    }
}

#[test]
fn every_other_syscall_is_stopped() {
    for (kind, arch) in KINDS
        .iter()
        .flat_map(|kind| Arch::ALL.map(|arch| (kind, arch)))
    {
        let policy = policy(kind, arch);
        let filters = policy.compile(Violation::Kill).expect("it compiles");
        let named: BTreeSet<_> = policy.rules().iter().map(|r| r.syscall.number).collect();
        for number in (0..1024).filter(|number| !named.contains(number)) {
            let answer = answer(&filters, &call(arch, number, [0; 6]));
            assert_eq!(
                answer,
                libc::SECCOMP_RET_KILL_PROCESS,
                "{kind} {arch} {number}"
            );
        }
    }
}

#[test]
fn files_say_what_they_are_for_in_short_lines() {
    for file in BUILT_IN {
        assert!(file.text.starts_with("# "), "{}", file.name);
        assert!(file.text.ends_with('\n'), "{}", file.name);
        for line in file.text.lines() {
            assert!(line.len() <= 200, "{}: {line}", file.name);
        }
    }
}
