//! Seccomp policies: sorted rules, and the same files for every architecture.
//!
//! What the language allows is checked by `portcullis policy check`, not here.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use super::Finding;
use super::Tree;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut names: BTreeMap<&OsStr, BTreeSet<&OsStr>> = BTreeMap::new();
    for (path, text) in tree.with_extension("policy") {
        let Some(architecture) = architecture(path) else {
            continue;
        };
        names
            .entry(architecture)
            .or_default()
            .extend(path.file_name());
        findings.extend(order(path, text));
        if !text.starts_with('#') {
            findings.push(Finding::at(
                path,
                1,
                "does not begin with a comment: say which process it is for",
            ));
        }
    }
    let all: BTreeSet<&OsStr> = names.values().flatten().copied().collect();
    for (architecture, present) in &names {
        for missing in all.difference(present) {
            findings.push(Finding::of(
                Path::new("seccomp").join(architecture),
                format!(
                    "has no {}, which another architecture has",
                    missing.display()
                ),
            ));
        }
    }
    findings
}

/// Returns `ARCH` of `seccomp/ARCH/NAME.policy`, and nothing for a policy elsewhere (a test's, say).
fn architecture(path: &Path) -> Option<&OsStr> {
    let mut parts = path.iter();
    (parts.next()? == "seccomp").then_some(())?;
    parts.next()
}

fn order(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut last = "";
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') || line.starts_with('@') {
            continue;
        }
        let Some((name, _)) = line.split_once(':') else {
            continue;
        };
        if name < last {
            findings.push(Finding::at(
                path,
                index + 1,
                format!("`{name}` stands after `{last}`: keep the rules sorted"),
            ));
        }
        last = name;
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of(files))
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    #[test]
    fn sorted_policies_of_equal_names_are_clean() {
        assert_eq!(
            found(&[
                ("seccomp/x86_64/a.policy", "# A.\nclose: 1\nread: 1\n"),
                ("seccomp/aarch64/a.policy", "# A.\nclose: 1\n"),
            ]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn policy_out_of_order_is_found() {
        assert_eq!(
            found(&[("seccomp/x86_64/a.policy", "# A.\nread: 1\nclose: 1\n")]),
            ["seccomp/x86_64/a.policy:3: `close` stands after `read`: keep the rules sorted"]
        );
    }

    #[test]
    fn policy_of_one_architecture_only_is_found() {
        assert_eq!(
            found(&[
                ("seccomp/x86_64/a.policy", "# A.\n"),
                ("seccomp/x86_64/b.policy", "# B.\n"),
                ("seccomp/aarch64/a.policy", "# A.\n"),
            ]),
            ["seccomp/aarch64: has no b.policy, which another architecture has"]
        );
    }
}
