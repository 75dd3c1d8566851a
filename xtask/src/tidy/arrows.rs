//! Dependencies between the member crates go the way that ARCHITECTURE.md says, and no other.
//!
//! The list is the code block marked `arrows` there: `crate -> crate, crate`. Test and build dependencies are not arrows.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use anyhow::Context;
use anyhow::Result;

use super::Finding;
use super::Tree;
use crate::metadata::Metadata;

const DOCUMENT: &str = "ARCHITECTURE.md";

pub(super) fn check(tree: &Tree, metadata: &Metadata) -> Result<Vec<Finding>> {
    let said = parse(tree.text(DOCUMENT)?).context(DOCUMENT)?;
    let mut findings = Vec::new();
    for package in metadata.members() {
        let found: BTreeSet<&str> = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind.is_none() && dependency.path.is_some())
            .map(|dependency| dependency.name.as_str())
            .collect();
        let Some(said) = said.get(package.name.as_str()) else {
            findings.push(Finding::of(
                DOCUMENT,
                format!("the arrows do not name the crate `{}`", package.name),
            ));
            continue;
        };
        findings.extend(found.difference(said).map(|name| {
            Finding::of(
                DOCUMENT,
                format!("`{}` uses `{name}`, and no arrow says so", package.name),
            )
        }));
        findings.extend(said.difference(&found).map(|name| {
            Finding::of(
                DOCUMENT,
                format!(
                    "`{}` does not use `{name}`, and an arrow says so",
                    package.name
                ),
            )
        }));
    }
    Ok(findings)
}

fn parse(document: &str) -> Result<BTreeMap<&str, BTreeSet<&str>>> {
    let block = document
        .split_once("```arrows\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .map(|(block, _)| block)
        .context("no code block marked `arrows`")?;
    block
        .lines()
        .map(|line| {
            let (from, to) = line
                .split_once("->")
                .with_context(|| format!("`{line}` has no arrow"))?;
            let to = to
                .split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty())
                .collect();
            Ok((from.trim(), to))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_are_read_from_their_block() {
        let arrows =
            parse("text\n```arrows\na -> b, c\nb ->\n```\nmore -> text\n").expect("a list");
        assert_eq!(
            arrows,
            BTreeMap::from([("a", BTreeSet::from(["b", "c"])), ("b", BTreeSet::new())])
        );
    }

    #[test]
    fn document_without_arrows_is_an_error() {
        let error = parse("a -> b\n").expect_err("no block");
        assert_eq!(error.to_string(), "no code block marked `arrows`");
    }
}
