//! Rust sources: a doc on top of every file, a length that can be read, a reason beside every `unsafe`.

use std::path::Path;

use super::Finding;
use super::Tree;

/// Lines of code that a file may have, its tests not counted.
const MAX_LINES: usize = 800;

/// Reasons that say nothing.
const EMPTY_REASONS: &[&str] = &[
    "trivially safe",
    "args are correct",
    "arguments are correct",
    "this is safe",
    "safe because we check",
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.with_extension("rs")
        .flat_map(|(path, text)| file(path, text))
        .collect()
}

fn file(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(Finding::at(
            path,
            1,
            "does not begin with `//!`: say what the file is, and what it does not do",
        ));
    }
    let code = text
        .lines()
        .take_while(|line| line.trim() != "mod tests {")
        .count();
    if code > MAX_LINES {
        findings.push(Finding::of(
            path,
            format!("{code} lines without its tests, more than {MAX_LINES}: split it"),
        ));
    }
    let allows_unsafe =
        text.contains("expect(unsafe_code") || text.contains("expect(\n    unsafe_code");
    if allows_unsafe && !text.contains("UNSAFETY:") {
        findings.push(Finding::of(
            path,
            "expects unsafe_code without a comment `UNSAFETY: why safe code can't`",
        ));
    }
    for (index, line) in text.lines().enumerate() {
        let comment = line.trim_start();
        if !comment.starts_with("//") {
            continue;
        }
        let lower = comment.to_lowercase();
        if lower.contains("safety:")
            && let Some(reason) = EMPTY_REASONS.iter().find(|reason| lower.contains(**reason))
        {
            findings.push(Finding::at(
                path,
                index + 1,
                format!("\"{reason}\" is no reason: name each duty and what discharges it"),
            ));
        }
        if lower.contains("todo") && !lower.contains('#') {
            findings.push(Finding::at(
                path,
                index + 1,
                "a TODO without the number of an issue",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        check(&Tree::of(&[("a/src/lib.rs", text)]))
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    #[test]
    fn file_with_doc_is_clean() {
        assert_eq!(found("//! A file.\n"), Vec::<String>::new());
    }

    #[test]
    fn file_without_doc_is_found() {
        assert_eq!(
            found("mod a;\n"),
            [
                "a/src/lib.rs:1: does not begin with `//!`: say what the file is, and what it does not do"
            ]
        );
    }

    #[test]
    fn long_file_is_found_and_its_tests_are_not_counted() {
        let long = format!("//! A file.\n{}", "fn a() {}\n".repeat(800));
        assert_eq!(
            found(&long),
            ["a/src/lib.rs: 801 lines without its tests, more than 800: split it"]
        );
        let tests = format!(
            "//! A file.\nmod tests {{\n{}}}\n",
            "fn a() {}\n".repeat(900)
        );
        assert_eq!(found(&tests), Vec::<String>::new());
    }

    #[test]
    fn empty_safety_reason_is_found() {
        let text = ["//! A file.", concat!("// SAF", "ETY: trivially safe.")].join("\n");
        assert_eq!(
            found(&text),
            [
                "a/src/lib.rs:2: \"trivially safe\" is no reason: name each duty and what discharges it"
            ]
        );
    }

    #[test]
    fn unsafe_file_without_unsafety_line_is_found() {
        assert_eq!(
            found(concat!("//! A file.\n#![exp", "ect(unsafe_code)]\n")),
            ["a/src/lib.rs: expects unsafe_code without a comment `UNSAFETY: why safe code can't`"]
        );
    }
}
