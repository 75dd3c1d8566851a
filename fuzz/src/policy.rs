//! Policies in minijail's language, whatever their author meant.

use std::path::Path;

use jail::Arch;
use jail::Policy;
use jail::Violation;
use jail::policy::Diagnostic;
use jail::policy::show;

/// The bytes are a policy file.
///
/// For each architecture it loads or is refused with reasons; a reason names a line of the file, and a column of that line or the
/// one behind it. What loads compiles, or is refused by the compiler with a reason; so do its rules as they are shown, read once
/// more as a file, and to the same programs.
///
/// # Panics
/// If one of these is not so.
pub fn policy(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fuzz.policy");
    std::fs::write(&path, data).expect("a file");
    for arch in [Arch::X86_64, Arch::Aarch64, Arch::Riscv64] {
        match Policy::load(&path, arch) {
            Ok(policy) => check_shown(&path, &policy),
            Err(diagnostics) => {
                assert!(!diagnostics.is_empty(), "refused without a reason");
                for diagnostic in diagnostics {
                    check_origin(&diagnostic, data);
                    assert!(!diagnostic.problem.to_string().is_empty());
                }
            }
        }
    }
}

/// Reads the rules of the policy at `path` as they are shown, and compares what they compile to.
fn check_shown(path: &Path, policy: &Policy) {
    let rules = show(path, policy.arch()).expect("it was read before");
    let shown: String = rules.iter().map(|rule| rule.rule.clone() + "\n").collect();
    let again = path.with_file_name("shown.policy");
    std::fs::write(&again, shown).expect("a file");
    let again = Policy::load(&again, policy.arch()).expect("what is shown can be read");
    let programs = |policy: &Policy| match policy.compile(Violation::Trap) {
        Ok(filters) => Ok(filters),
        Err(diagnostic) => Err(diagnostic.problem.to_string()),
    };
    assert_eq!(programs(&again), programs(policy));
}

/// Lines and columns start at 1; an error at the end of a line is behind its last byte.
fn check_origin(diagnostic: &Diagnostic, data: &[u8]) {
    let place = |number: u32| usize::try_from(number).ok()?.checked_sub(1);
    let line = place(diagnostic.origin.line);
    let line = line.and_then(|line| data.split(|byte| *byte == b'\n').nth(line));
    let column = place(diagnostic.origin.column);
    let inside = line
        .zip(column)
        .is_some_and(|(line, column)| column <= line.len());
    assert!(inside, "{diagnostic}: no such place");
}
