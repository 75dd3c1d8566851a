//! Descriptors that tell whether somebody still has them.

use std::io::PipeReader;
use std::io::PipeWriter;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;
use rustix::fs::fcntl_setfl;

/// A pipe whose writing end is what a hostile peer sends.
pub(crate) struct Sentinel {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Sentinel {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        fcntl_setfl(&reader, OFlags::NONBLOCK).expect("a flag");
        Self { reader, writer }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    /// Asserts that nobody has a copy any more.
    pub(crate) fn assert_not_leaked(self) {
        let Self { mut reader, writer } = self;
        drop(writer);
        let read = reader.read(&mut [0]);
        assert!(
            matches!(read, Ok(0)),
            "a descriptor is still open: {read:?}"
        );
    }
}
