//! Paths and tests that a document names in backticks exist, and README stays short.
//!
//! What is taken for a test is a name of three words or more in lower case: so are most of the tests, and little else.

use std::collections::HashSet;
use std::path::Path;

use super::Finding;
use super::Tree;

const README_LINES: usize = 120;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tests = tests(tree);
    for (path, text) in tree.with_extension("md") {
        if path == Path::new("CHANGELOG.md") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let missing = |name: &&str| !tests.contains(name) && !tree.has(Path::new(name));
            for name in quoted(line).filter(is_test).filter(missing) {
                findings.push(Finding::at(
                    path,
                    index + 1,
                    format!("names the test `{name}`, which does not exist"),
                ));
            }
            for name in paths(line) {
                let beside = path.parent().unwrap_or(Path::new("")).join(name);
                if !tree.has(Path::new(name)) && !tree.has(&beside) {
                    findings.push(Finding::at(
                        path,
                        index + 1,
                        format!("names `{name}`, which does not exist"),
                    ));
                }
            }
        }
        if path == Path::new("README.md") && text.lines().count() >= README_LINES {
            findings.push(Finding::of(
                path,
                format!(
                    "{} lines: keep it under {README_LINES}",
                    text.lines().count()
                ),
            ));
        }
    }
    findings
}

/// Returns the names that a test can have: those of functions and, for test programs with a `main` of their own, of strings.
fn tests(tree: &Tree) -> HashSet<&str> {
    let mut names = HashSet::new();
    for (_, text) in tree.with_extension("rs") {
        let functions = text.split("fn ").skip(1);
        names.extend(functions.filter_map(|rest| rest.split('(').next()));
        names.extend(text.split('"').filter(is_test));
    }
    names
}

/// Returns what a line has in backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_test(text: &&str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.matches('_').count() >= 2 && text.chars().all(plain)
}

/// Returns what a line has in backticks or as a link's target and looks like a path of the repository: it has a slash or
/// an ending that the project's files have, and no space, wildcard or placeholder.
fn paths(line: &str) -> Vec<&str> {
    let linked = line
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    quoted(line)
        .chain(linked)
        .filter(|text| is_path(text))
        .map(|text| text.trim_end_matches('/'))
        .collect()
}

fn is_path(text: &str) -> bool {
    let plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    let known_ending = [".rs", ".md", ".toml", ".policy", ".sh"]
        .iter()
        .any(|ending| text.ends_with(ending));
    let folder = text.ends_with('/');
    plain && !text.starts_with(['/', '-', '.']) && (known_ending || folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_words() {
        assert_eq!(
            paths(
                "see `base/src/lib.rs`, `tests/`, [x](docs/a.md), `cargo test`, `/dev/kvm`, `a::b`"
            ),
            ["base/src/lib.rs", "tests", "docs/a.md"]
        );
    }

    #[test]
    fn missing_test_is_found_with_its_line() {
        let tree = Tree::of(&[
            (
                "docs/x.md",
                "`max_map` of\n`a_b_c`, `gone_with_it`, `some_folder_here`\n",
            ),
            ("src/a.rs", "#[test]\nfn a_b_c() {}\n"),
            ("some_folder_here/b", ""),
        ]);
        assert_eq!(
            check(&tree),
            [Finding::at(
                Path::new("docs/x.md"),
                2,
                "names the test `gone_with_it`, which does not exist"
            )]
        );
    }

    #[test]
    fn missing_path_is_found_with_its_line() {
        let tree = Tree::of(&[("docs/x.md", "a\n`src/gone.rs` and `docs/x.md`\n")]);
        assert_eq!(
            check(&tree),
            [Finding::at(
                Path::new("docs/x.md"),
                2,
                "names `src/gone.rs`, which does not exist"
            )]
        );
    }
}
