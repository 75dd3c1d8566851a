//! Finds the regular files below a directory and opens them, without ever leaving it.
//!
//! Symbolic links are not followed, neither while looking nor while opening. What is not a regular
//! file with something in it is listed with the reason why it is left out.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use remain::sorted;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use thiserror::Error;

/// How many directories deep the walk goes.
const MAX_DEPTH: usize = 64;

/// A directory could not be opened.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The directory itself.
    #[error("open directory {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: base::Error,
    },
}

/// Why a path below the directory is not served.
#[sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SkipReason {
    /// An empty file can't be mapped.
    #[error("empty")]
    Empty,
    /// It does not fit into the rest of the region.
    #[error("no room for {len} bytes in the region")]
    NoRoom {
        /// The file's length.
        len: u64,
    },
    /// A pipe, a socket, a device.
    #[error("not a regular file")]
    NotRegular,
    /// It is shorter than it was when the backend started.
    #[error("shrank from {was} to {is} bytes")]
    Shrank {
        /// The length at the start.
        was: u64,
        /// The length now.
        is: u64,
    },
    /// A symbolic link.
    #[error("a symbolic link")]
    SymbolicLink,
    /// More than 64 directories deep.
    #[error("too deep")]
    TooDeep,
    /// The system refused to open it or to look at it.
    #[error("{0}")]
    Unreadable(base::Error),
}

/// A regular file that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path from the directory.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
}

/// A path that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its path from the directory.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// What is below a directory, each list sorted by path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// The files to serve.
    pub files: Vec<Found>,
    /// The rest.
    pub skipped: Vec<Skipped>,
}

/// A directory held open, below which files are found and opened.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory; this path alone may go through symbolic links.
    ///
    /// # Errors
    /// [`Error::Open`] if it does not exist, is no directory, or may not be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| Error::Open {
                path: path.to_owned(),
                source: errno.into(),
            })?;
        Ok(Self { directory })
    }

    /// Lists everything below the directory.
    pub fn walk(&self) -> Tree {
        let mut tree = Tree::default();
        match self.open_directory(Path::new(".")) {
            Ok(directory) => visit(directory, Path::new(""), 0, &mut tree),
            Err(errno) => skip(&mut tree, Path::new("."), errno.into()),
        }
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        tree.skipped.sort_by(|a, b| a.path.cmp(&b.path));
        tree
    }

    /// Opens a file that [`Root::walk`] found and checks that it is still as long as it was.
    ///
    /// # Errors
    /// The reason, in the same words as for a path that was left out.
    pub fn open_file(&self, found: &Found, writable: bool) -> Result<OwnedFd, SkipReason> {
        let access = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        // Not blocking: a pipe may have taken the file's place.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = self.open_below(&found.path, flags).map_err(reason)?;
        let stat = rustix::fs::fstat(&file).map_err(reason)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(SkipReason::NotRegular);
        }
        let is = u64::try_from(stat.st_size).unwrap_or(0);
        if is < found.len {
            return Err(SkipReason::Shrank { was: found.len, is });
        }
        Ok(file)
    }

    fn open_directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    fn open_below(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat2(
            &self.directory,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }
}

fn reason(errno: Errno) -> SkipReason {
    SkipReason::Unreadable(errno.into())
}

impl From<Errno> for SkipReason {
    fn from(errno: Errno) -> Self {
        reason(errno)
    }
}

fn skip(tree: &mut Tree, path: &Path, reason: SkipReason) {
    tree.skipped.push(Skipped {
        path: path.to_owned(),
        reason,
    });
}

fn visit(directory: OwnedFd, path: &Path, depth: usize, tree: &mut Tree) {
    let entries = match Dir::read_from(&directory) {
        Ok(entries) => entries,
        Err(errno) => return skip(tree, path, errno.into()),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(errno) => return skip(tree, path, errno.into()),
        };
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            look(&directory, name, &path.join(name), depth, tree);
        }
    }
}

fn look(directory: &OwnedFd, name: &OsStr, path: &Path, depth: usize, tree: &mut Tree) {
    let stat = match rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(errno) => return skip(tree, path, errno.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => match u64::try_from(stat.st_size) {
            Ok(0) | Err(_) => skip(tree, path, SkipReason::Empty),
            Ok(len) => tree.files.push(Found {
                path: path.to_owned(),
                len,
            }),
        },
        FileType::Directory if depth >= MAX_DEPTH => skip(tree, path, SkipReason::TooDeep),
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                Ok(below) => visit(below, path, depth + 1, tree),
                Err(errno) => skip(tree, path, errno.into()),
            }
        }
        FileType::Symlink => skip(tree, path, SkipReason::SymbolicLink),
        _ => skip(tree, path, SkipReason::NotRegular),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(path: &str, len: u64) -> Found {
        Found {
            path: path.into(),
            len,
        }
    }

    fn skipped(path: &str, reason: SkipReason) -> Skipped {
        Skipped {
            path: path.into(),
            reason,
        }
    }

    #[test]
    fn walk_finds_files_in_order_and_names_what_it_leaves_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir_all(dir.path().join("b/c")).expect("directories");
        fs::write(dir.path().join("z"), "zzz").expect("a file");
        fs::write(dir.path().join("b/c/deep"), "deep").expect("a file");
        fs::write(dir.path().join("a"), "a").expect("a file");
        fs::write(dir.path().join("empty"), "").expect("a file");
        symlink("/etc", dir.path().join("b/out")).expect("a link");
        symlink("a", dir.path().join("link")).expect("a link");
        let tree = Root::open(dir.path()).expect("the directory").walk();
        assert_eq!(
            tree,
            Tree {
                files: vec![found("a", 1), found("b/c/deep", 4), found("z", 3)],
                skipped: vec![
                    skipped("b/out", SkipReason::SymbolicLink),
                    skipped("empty", SkipReason::Empty),
                    skipped("link", SkipReason::SymbolicLink),
                ],
            }
        );
    }

    #[test]
    fn open_file_opens_what_was_found() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("a"), "hello").expect("a file");
        let root = Root::open(dir.path()).expect("the directory");
        let file = root.open_file(&found("a", 5), false).expect("the file");
        let mut text = String::new();
        fs::File::from(file)
            .read_to_string(&mut text)
            .expect("its text");
        assert_eq!(text, "hello");
    }

    #[test]
    fn open_file_that_shrank_vanished_or_became_a_link_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("short"), "ab").expect("a file");
        symlink("short", dir.path().join("link")).expect("a link");
        symlink("/", dir.path().join("out")).expect("a link");
        let root = Root::open(dir.path()).expect("the directory");
        let open = |path: &str| root.open_file(&found(path, 5), false).map(|_| ());
        assert_eq!(open("short"), Err(SkipReason::Shrank { was: 5, is: 2 }));
        assert_eq!(open("gone"), Err(Errno::NOENT.into()));
        assert_eq!(open("link"), Err(Errno::LOOP.into()));
        assert_eq!(open("out/etc/passwd"), Err(Errno::LOOP.into()));
        assert_eq!(open("../../etc/passwd"), Err(Errno::XDEV.into()));
    }

    #[test]
    fn directory_that_is_missing_is_an_error_with_its_name() {
        let error = Root::open(Path::new("/nonexistent/dir")).map(|_| ());
        assert!(
            matches!(&error, Err(Error::Open { path, source })
                if path == Path::new("/nonexistent/dir") && source.errno() == libc::ENOENT),
            "{error:?}"
        );
    }
}
