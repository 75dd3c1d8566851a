//! Every crate that the workspace depends on has a licence that deny.toml allows.
//!
//! `cargo deny check` reads the same file and checks advisories and sources as well; this check needs no further tool.

use std::collections::BTreeSet;

use anyhow::Context;
use anyhow::Result;

use super::Finding;
use super::Tree;
use crate::metadata::Metadata;

const POLICY: &str = "deny.toml";

pub(super) fn check(tree: &Tree, metadata: &Metadata) -> Result<Vec<Finding>> {
    let allowed = allowed(tree.text(POLICY)?).context(POLICY)?;
    Ok(metadata
        .foreign()
        .filter(|package| {
            !package
                .license
                .as_deref()
                .is_some_and(|expression| permits(expression, &allowed))
        })
        .map(|package| {
            Finding::of(
                "Cargo.lock",
                format!(
                    "{} {}: licence {} is not allowed by {POLICY}",
                    package.name,
                    package.version,
                    package.license.as_deref().unwrap_or("(none)")
                ),
            )
        })
        .collect())
}

/// Returns the strings of the list `allow = [ … ]` in the section `[licenses]`.
fn allowed(text: &str) -> Result<BTreeSet<&str>> {
    let section = text
        .split_once("[licenses]")
        .map(|(_, rest)| rest.split("\n[").next().unwrap_or(rest))
        .context("no section [licenses]")?;
    let list = section
        .split_once("allow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(list, _)| list)
        .context("no list `allow`")?;
    Ok(list.split('"').skip(1).step_by(2).collect())
}

/// Evaluates a licence expression of the kinds that crates use: `A OR B`, `A/B`, `A AND B`, one level of brackets.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ");
    split(&expression, " AND ").into_iter().all(|part| {
        let part = part.trim().trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ")
            .any(|licence| allowed.contains(licence.trim()))
    })
}

/// Splits at `separator` where no bracket is open.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (index, _) in text.match_indices(separator) {
        let before = &text[..index];
        if before.matches('(').count() == before.matches(')').count() {
            parts.push(&text[start..index]);
            start = index + separator.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_expression(expression: &str, want: bool) {
        let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Unicode-3.0"]);
        assert_eq!(permits(expression, &allowed), want, "{expression}");
    }

    #[test]
    fn expressions_are_evaluated() {
        check_expression("MIT", true);
        check_expression("GPL-3.0", false);
        check_expression("GPL-3.0 OR MIT", true);
        check_expression("Unlicense/MIT", true);
        check_expression("MIT AND GPL-3.0", false);
        check_expression("(MIT OR GPL-3.0) AND Unicode-3.0", true);
        check_expression("(GPL-2.0 OR GPL-3.0) AND Unicode-3.0", false);
    }

    #[test]
    fn allow_list_is_read_from_its_section() {
        assert_eq!(
            allowed("[a]\nallow = [\"X\"]\n[licenses]\nallow = [\n \"MIT\",\n \"ISC\",\n]\n[b]\n")
                .expect("a list"),
            BTreeSet::from(["ISC", "MIT"])
        );
    }
}
