//! Where the demo's files come from: the folder that was named, this repository, or the program itself.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::size::Size;

/// Files of this repository that are also in the program, for where there is no repository.
macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        [$(($path, include_bytes!(concat!("../../", $path)).as_slice())),*]
    };
}

/// The embedded files, by their paths in this repository.
const EMBEDDED: [(&str, &[u8]); 8] = embedded![
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-BSD-3-Clause",
    "src/cli/table.rs",
    "src/control/server.rs",
    "src/lib.rs",
    "src/main.rs",
];

/// How many files of a folder are looked at.
const MAX_FILES: usize = 10_000;

/// A folder whose files are shown.
#[derive(Debug)]
pub(super) struct Source {
    /// Where the files are, for the host's own sums.
    pub(super) directory: PathBuf,
    /// What to call it.
    pub(super) name: String,
    /// The folder that the backend serves: the same one, or copies of as many files as the limit allows.
    pub(super) served: PathBuf,
    /// Files that are not shown, and why.
    pub(super) left_out: Vec<(String, String)>,
}

impl Source {
    /// Takes the folder that was named, the sources of the repository that we are in, or writes out the embedded files
    /// below `scratch`; keeps to `limit` bytes together.
    pub(super) fn find(named: Option<&Path>, limit: u64, scratch: &Path) -> io::Result<Self> {
        if let Some(directory) = named {
            return Self::folder(directory, limit, scratch);
        }
        let here = std::env::current_dir()?;
        match here.ancestors().find(|folder| is_repository(folder)) {
            Some(root) => Self::folder(&root.join("src"), limit, scratch),
            None => Self::embedded(&scratch.join("files")),
        }
    }

    fn folder(directory: &Path, limit: u64, scratch: &Path) -> io::Result<Self> {
        let mut source = Self {
            directory: directory.to_owned(),
            name: directory.display().to_string(),
            served: directory.to_owned(),
            left_out: Vec::new(),
        };
        let files = files_below(directory)?;
        let total = files.iter().map(|(_, len)| len).sum::<u64>();
        if total <= limit && files.len() < MAX_FILES {
            return Ok(source);
        }
        source.served = scratch.join("files");
        let mut left = limit;
        for (path, len) in files {
            if len == 0 {
                source
                    .left_out
                    .push((path.display().to_string(), "empty".to_owned()));
                continue;
            }
            match left.checked_sub(len) {
                Some(rest) => {
                    copy(&directory.join(&path), &source.served.join(&path))?;
                    left = rest;
                }
                None => source.left_out.push((
                    path.display().to_string(),
                    format!("{}, see --limit", Size(len)),
                )),
            }
        }
        Ok(source)
    }

    fn embedded(directory: &Path) -> io::Result<Self> {
        for (path, bytes) in EMBEDDED {
            let path = directory.join(path);
            create_parent(&path)?;
            std::fs::write(path, bytes)?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            name: "this program".to_owned(),
            served: directory.to_owned(),
            left_out: Vec::new(),
        })
    }
}

/// The regular files below a folder with their lengths, in the order of their paths. Links are not followed, and what can't
/// be read is not there.
fn files_below(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    // The folder itself must be there; one below it that can't be read is left to the backend to report.
    std::fs::read_dir(directory)?;
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(directory.join(&folder)) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) if metadata.is_file() => files.push((path, metadata.len())),
                _ => {}
            }
            if files.len() >= MAX_FILES {
                folders.clear();
                break;
            }
        }
    }
    files.sort();
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    create_parent(to)?;
    std::fs::copy(from, to).map(|_| ())
}

fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// Whether a folder is the root of this repository.
fn is_repository(folder: &Path) -> bool {
    let is_ours = |manifest: String| {
        manifest
            .lines()
            .any(|line| line.trim() == "name = \"portcullis\"")
    };
    std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(is_ours)
        && folder.join("src").is_dir()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn source_without_a_name_is_this_repository() {
        // Tests run in the folder of the package.
        let source = Source::find(None, u64::MAX, Path::new("/nonexistent")).expect("found");
        assert!(source.directory.join("main.rs").is_file());
    }

    #[test]
    fn embedded_files_are_written_out_as_they_are() {
        let dir = TempDir::new().expect("a temporary folder");
        let source = Source::embedded(dir.path()).expect("written");
        let manifest = std::fs::read(source.directory.join("Cargo.toml")).expect("read");
        assert_eq!(manifest, include_bytes!("../../Cargo.toml"));
    }

    #[test]
    fn files_beyond_the_limit_are_left_out_and_named() {
        let dir = TempDir::new().expect("a temporary folder");
        let scratch = TempDir::new().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("sub")).expect("made");
        for (path, len) in [("a", 10), ("b", 100), ("sub/c", 10)] {
            std::fs::write(dir.path().join(path), vec![b'x'; len]).expect("written");
        }
        let source = Source::find(Some(dir.path()), 20, scratch.path()).expect("found");
        assert_eq!(source.left_out, [("b".into(), "100 B, see --limit".into())]);
        let served = files_below(&source.served).expect("read");
        assert_eq!(served, [("a".into(), 10), ("sub/c".into(), 10)]);
    }

    #[test]
    fn folder_of_another_project_is_not_this_repository() {
        let dir = TempDir::new().expect("a temporary folder");
        std::fs::write(dir.path().join("Cargo.toml"), "name = \"other\"").expect("written");
        assert!(!is_repository(dir.path()));
    }
}
