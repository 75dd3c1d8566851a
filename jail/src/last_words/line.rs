//! The line that a signal handler writes, made without allocation.

use std::fmt;
use std::fmt::Write;

use crate::arch::Arch;
use crate::record::AbortCause;
use crate::record::ThreadName;
use crate::record::ViolationRecord;

/// One line of bounded length; what does not fit is cut off.
pub(super) struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    /// Starts a line: who speaks.
    pub(super) fn new(name: &str, thread: &ThreadName) -> Self {
        let mut line = Self {
            bytes: [0; 512],
            len: 0,
        };
        line.add(format_args!("portcullis: device {name}: thread "));
        let len = thread.iter().position(|&b| b == 0).unwrap_or(thread.len());
        match str::from_utf8(&thread[..len]) {
            Ok("") | Err(_) => line.add(format_args!("without a name")),
            Ok(name) => line.add(format_args!("{name}")),
        }
        line
    }

    /// Ends the line with a violation.
    pub(super) fn violation(&mut self, violation: &ViolationRecord, arch: Arch) {
        let number = violation.number;
        let name = arch.name_of(number).unwrap_or("unknown");
        self.add(format_args!(
            " (id {}): the policy does not allow syscall {number} ({name}), called at {:#x} with",
            violation.thread_id, violation.address
        ));
        for argument in violation.arguments {
            self.add(format_args!(" {argument:#x}"));
        }
        self.add(format_args!("\n"));
    }

    /// Ends the line with an abort.
    pub(super) fn abort(&mut self, cause: AbortCause) {
        match cause {
            AbortCause::Abort => self.add(format_args!(": aborted\n")),
            AbortCause::OutOfMemory(size) => self.add(format_args!(
                ": aborted after an allocation of {size} bytes failed\n"
            )),
            AbortCause::StackOverflow => self.add(format_args!(": stack overflow\n")),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn add(&mut self, text: fmt::Arguments<'_>) {
        // `write_str` never fails.
        let _infallible = self.write_fmt(text);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violation_line_names_everything() {
        let violation = ViolationRecord {
            number: 41,
            thread_id: 3,
            address: 0x1234,
            arguments: [1, 2, 0, 0, 0, u64::MAX],
            thread: *b"worker\0\0\0\0\0\0\0\0\0\0",
        };
        let mut line = Line::new("fs0", &violation.thread);
        line.violation(&violation, Arch::X86_64);
        assert_eq!(
            str::from_utf8(line.bytes()),
            Ok(
                "portcullis: device fs0: thread worker (id 3): the policy does not allow syscall 41 (socket), \
                 called at 0x1234 with 0x1 0x2 0x0 0x0 0x0 0xffffffffffffffff\n"
            )
        );
    }

    #[test]
    fn long_name_is_cut_off() {
        let mut line = Line::new(&"x".repeat(1000), &[0; 16]);
        line.abort(AbortCause::Abort);
        assert_eq!(line.bytes().len(), 512);
    }
}
