//! Includes, names of syscalls, and where rules come from.

use std::io::Write;

use tempfile::TempDir;

use super::*;
use crate::policy::Test;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, text) in files {
        let mut file = fs::File::create(folder.path().join(name)).expect("a new file");
        file.write_all(text.as_bytes()).expect("it can be written");
    }
    folder
}

fn load(files: &[(&str, &str)], arch: Arch) -> Result<Policy, Vec<String>> {
    let folder = folder(files);
    let path = folder.path().join("main.policy");
    Policy::load(&path, arch).map_err(|diagnostics| {
        let prefix = format!("{}/", folder.path().display());
        diagnostics
            .iter()
            .map(|diagnostic| diagnostic.to_string().replace(&prefix, ""))
            .collect()
    })
}

#[track_caller]
fn refused(files: &[(&str, &str)], expected: &[&str]) {
    let diagnostics = load(files, Arch::X86_64).expect_err("it has errors");
    assert_eq!(diagnostics.len(), expected.len(), "{diagnostics:#?}");
    for (found, expected) in diagnostics.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

#[test]
fn rules_of_an_include_stand_in_its_place() {
    let files = [
        ("main.policy", "read: 1\n@include ./a.policy\nwrite: 1\n"),
        ("a.policy", "# first\nclose: return EPERM\n"),
    ];
    let policy = load(&files, Arch::Aarch64).expect("it is in order");
    let names: Vec<_> = policy.rules().iter().map(|r| r.syscall.name).collect();
    assert_eq!(names, ["read", "close", "write"]);
    let rule = &policy.rules()[1];
    assert!(rule.origin.file.ends_with("/a.policy"));
    assert_eq!(
        (rule.origin.line, rule.text.as_str()),
        (2, "close: return EPERM")
    );
    assert_eq!(rule.syscall.number, 57);
    assert!(matches!(rule.test, Test::Errno { value: 1, .. }));
}

#[test]
fn numbers_are_those_of_the_architecture() {
    let files = [("main.policy", "read: 1\n")];
    let number = |arch| {
        load(&files, arch).expect("it is in order").rules()[0]
            .syscall
            .number
    };
    assert_eq!(number(Arch::X86_64), 0);
    assert_eq!(number(Arch::Aarch64), 63);
    assert_eq!(number(Arch::Riscv64), 63);
}

#[test]
fn syscall_of_another_architecture_is_refused() {
    let files = [("main.policy", "epoll_wait: 1\n")];
    load(&files, Arch::X86_64).expect("x86_64 has it");
    let diagnostics = load(&files, Arch::Riscv64).expect_err("riscv64 has it not");
    assert_eq!(
        diagnostics,
        ["main.policy:1:1: `epoll_wait`: riscv64 has no such syscall"]
    );
}

#[test]
fn second_rule_is_refused_over_all_files() {
    refused(
        &[("main.policy", "read: 1\nread: 1\n")],
        &["main.policy:2:1: `read`: second rule for this syscall, the first is at"],
    );
    refused(
        &[
            ("main.policy", "read: 1\n@include ./a.policy\n"),
            ("a.policy", "\nread: return EPERM\n"),
        ],
        &["a.policy:2:1: `read`: second rule for this syscall, the first is at main.policy:1:1"],
    );
}

#[test]
fn include_of_itself_is_refused() {
    refused(
        &[("main.policy", "@include ./main.policy\n")],
        &["main.policy:1:10: `./main.policy` is included by itself"],
    );
    refused(
        &[
            ("main.policy", "@include ./a.policy\n"),
            ("a.policy", "@include ./main.policy\n"),
        ],
        &["a.policy:1:10: `./main.policy` is included by itself"],
    );
}

#[test]
fn include_below_an_include_is_refused() {
    refused(
        &[
            ("main.policy", "@include ./a.policy\n"),
            ("a.policy", "@include ./b.policy\n"),
            ("b.policy", "read: 1\n"),
        ],
        &["a.policy:1:10: `./b.policy`: an included file can't include another one"],
    );
}

#[test]
fn second_include_of_a_file_is_refused() {
    refused(
        &[
            ("main.policy", "@include ./a.policy\n@include ./a.policy\n"),
            ("a.policy", "read: 1\n"),
        ],
        &["main.policy:2:10: `./a.policy` is included twice"],
    );
}

#[test]
fn file_that_is_not_there_is_reported_where_it_is_named() {
    refused(
        &[("main.policy", "read: 1\n@include ./a.policy\n")],
        &["main.policy:2:10: can't read `a.policy`: No such file or directory"],
    );
    refused(&[], &["main.policy:1:1: can't read `main.policy`"]);
}

#[test]
fn all_errors_of_all_files_are_in_order() {
    refused(
        &[
            (
                "main.policy",
                "bad\n@include ./a.policy\nnope: 1\nread: 2\n",
            ),
            ("a.policy", "read: 1\nworse\n"),
        ],
        &[
            "main.policy:1:4: `bad`",
            "a.policy:2:6: `worse`",
            "main.policy:3:1: `nope`: x86_64 has no such syscall",
            "main.policy:4:7: `2`: expected",
        ],
    );
}

#[test]
fn policy_in_the_current_folder_is_found() {
    // The path has no folder: the file is looked up relative to the current one, which holds no such file.
    let diagnostics = Policy::load(Path::new("none.policy"), Arch::X86_64).expect_err("not there");
    assert!(
        diagnostics[0]
            .to_string()
            .starts_with("none.policy:1:1: can't read `none.policy`")
    );
}

#[test]
fn built_in_policies_are_in_order_for_their_architectures() {
    for file in crate::policy::BUILT_IN {
        let name = file.name.trim_end_matches(".policy");
        let policy = Policy::built_in(name, file.arch).expect("it is in order");
        assert!(!policy.rules().is_empty());
        policy.compile(crate::Violation::Trap).expect("it compiles");
    }
    let diagnostics = Policy::built_in("none", Arch::X86_64).expect_err("there is none");
    assert!(matches!(diagnostics[0].problem, Problem::Read { .. }));
}
