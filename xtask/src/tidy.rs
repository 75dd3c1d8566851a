//! The checks that no other tool does. Each returns its findings; none stops at the first.

mod arrows;
mod documents;
mod licences;
mod policies;
mod sources;

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::Result;
use anyhow::ensure;

use crate::metadata::Metadata;

/// One thing to mend: where it is and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: PathBuf,
    line: Option<usize>,
    what: String,
}

impl Finding {
    fn at(path: &Path, line: usize, what: impl Into<String>) -> Finding {
        Finding {
            path: path.to_path_buf(),
            line: Some(line),
            what: what.into(),
        }
    }

    fn of(path: impl AsRef<Path>, what: impl Into<String>) -> Finding {
        Finding {
            path: path.as_ref().to_path_buf(),
            line: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.what)
    }
}

/// Runs every check over the workspace at `root`, prints the findings and returns whether there were none.
///
/// # Errors
/// If git or cargo fails, or a tracked file cannot be read.
pub(crate) fn run(root: &Path) -> Result<bool> {
    let tree = Tree::load(root)?;
    let metadata = Metadata::load(root)?;

    let mut findings = sources::check(&tree);
    findings.extend(policies::check(&tree));
    findings.extend(documents::check(&tree));
    findings.extend(arrows::check(&tree, &metadata)?);
    findings.extend(licences::check(&tree, &metadata)?);

    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => println!("tidy: {} files, nothing found", tree.files.len()),
        found => println!("tidy: {} files, {found} found", tree.files.len()),
    }
    Ok(findings.is_empty())
}

/// The text files that git tracks, by their path from the root.
pub(crate) struct Tree {
    files: Vec<(PathBuf, String)>,
    paths: std::collections::HashSet<PathBuf>,
}

impl Tree {
    fn load(root: &Path) -> Result<Tree> {
        let output = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(root)
            .output()
            .context("git ls-files")?;
        ensure!(output.status.success(), "git ls-files failed");
        let listing = String::from_utf8(output.stdout).context("git ls-files: a path")?;
        let mut files = Vec::new();
        let mut paths = std::collections::HashSet::new();
        for name in listing.split('\0').filter(|name| !name.is_empty()) {
            let path = PathBuf::from(name);
            // A file that was deleted and not yet committed is still listed.
            let Ok(bytes) = std::fs::read(root.join(&path)) else {
                continue;
            };
            paths.insert(path.clone());
            paths.extend(path.ancestors().skip(1).map(Path::to_path_buf));
            if let Ok(text) = String::from_utf8(bytes) {
                files.push((path, text));
            }
        }
        Ok(Tree { files, paths })
    }

    /// Returns whether git knows a file or folder at `path`.
    fn has(&self, path: &Path) -> bool {
        self.paths.contains(path)
    }

    fn text(&self, path: &str) -> Result<&str> {
        self.files
            .iter()
            .find(|(file, _)| file == Path::new(path))
            .map(|(_, text)| text.as_str())
            .with_context(|| format!("{path} is missing"))
    }

    fn with_extension<'a>(
        &'a self,
        extension: &'a str,
    ) -> impl Iterator<Item = (&'a Path, &'a str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.extension().is_some_and(|found| found == extension))
            .map(|(path, text)| (path.as_path(), text.as_str()))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Tree {
        let files: Vec<(PathBuf, String)> = files
            .iter()
            .map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
            .collect();
        let paths = files
            .iter()
            .flat_map(|(path, _)| path.ancestors().map(Path::to_path_buf))
            .collect();
        Tree { files, paths }
    }
}
