//! What a jailed process tells its parent: one packet a record, over the report pipe.
//!
//! Signal handlers write records, so encoding neither allocates nor formats. Until the process said [`Record::Ready`] it runs trusted code;
//! what comes later may have been written by a process that was taken over, and is only a hint about how it ended.

use std::borrow::Cow;

/// The longest record.
pub(crate) const MAX_RECORD: usize = 512;

/// The namespaces that a jailed process has of its own, by their names in `/proc/PID/ns`.
pub(crate) const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// The longest thread name, as in the kernel.
pub(crate) const THREAD_NAME: usize = 16;

/// A thread's name, filled up with zeros.
pub(crate) type ThreadName = [u8; THREAD_NAME];

/// One thing that the process tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// The outer process made the jailed one, which its parent sees as `pid`.
    Process { pid: u32 },
    /// The namespaces of the jailed process, as inode numbers in the order of [`NAMESPACES`].
    Namespaces([u64; NAMESPACES.len()]),
    /// The process is in its jail.
    Ready,
    /// The process can't get into its jail.
    Failed { text: Cow<'a, str> },
    /// A call that the policy does not allow.
    Violation(ViolationRecord),
    /// SIGABRT.
    Abort {
        cause: AbortCause,
        thread: ThreadName,
    },
    /// A panic, of whatever thread.
    Panic { text: Cow<'a, str> },
}

/// Where a call came from that the policy does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ViolationRecord {
    pub(crate) number: u32,
    pub(crate) thread_id: u32,
    pub(crate) address: u64,
    pub(crate) arguments: [u64; 6],
    pub(crate) thread: ThreadName,
}

/// What lies behind a SIGABRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AbortCause {
    /// A plain abort.
    Abort,
    /// An allocation of that many bytes had failed.
    OutOfMemory(u64),
    /// It was raised by the handler of a memory fault.
    StackOverflow,
}

const PROCESS: u8 = 1;
const READY: u8 = 2;
const FAILED: u8 = 3;
const VIOLATION: u8 = 4;
const ABORT: u8 = 5;
const PANIC: u8 = 6;
const NAMESPACE_NUMBERS: u8 = 7;

/// An encoded record.
pub(crate) struct Packet {
    bytes: [u8; MAX_RECORD],
    len: usize,
}

impl Packet {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = &mut self.bytes[self.len..];
        let len = bytes.len().min(room.len());
        room[..len].copy_from_slice(&bytes[..len]);
        self.len += len;
    }
}

impl Record<'_> {
    /// The record as bytes; a text that is too long is cut off.
    pub(crate) fn encode(&self) -> Packet {
        let mut packet = Packet {
            bytes: [0; MAX_RECORD],
            len: 0,
        };
        match self {
            Self::Process { pid } => {
                packet.push(&[PROCESS]);
                packet.push(&pid.to_le_bytes());
            }
            Self::Namespaces(numbers) => {
                packet.push(&[NAMESPACE_NUMBERS]);
                for number in numbers {
                    packet.push(&number.to_le_bytes());
                }
            }
            Self::Ready => packet.push(&[READY]),
            Self::Failed { text } => {
                packet.push(&[FAILED]);
                packet.push(text.as_bytes());
            }
            Self::Violation(violation) => {
                packet.push(&[VIOLATION]);
                packet.push(&violation.number.to_le_bytes());
                packet.push(&violation.thread_id.to_le_bytes());
                packet.push(&violation.address.to_le_bytes());
                for argument in violation.arguments {
                    packet.push(&argument.to_le_bytes());
                }
                packet.push(&violation.thread);
            }
            Self::Abort { cause, thread } => {
                let (kind, size) = match cause {
                    AbortCause::Abort => (0, 0),
                    AbortCause::OutOfMemory(size) => (1, *size),
                    AbortCause::StackOverflow => (2, 0),
                };
                packet.push(&[ABORT, kind]);
                packet.push(&u64::to_le_bytes(size));
                packet.push(thread);
            }
            Self::Panic { text } => {
                packet.push(&[PANIC]);
                packet.push(text.as_bytes());
            }
        }
        packet
    }

    /// The record in `bytes`, or `None` if it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record<'static>> {
        let (tag, mut rest) = bytes.split_first()?;
        let record = match *tag {
            PROCESS => Record::Process {
                pid: u32::from_le_bytes(take(&mut rest)?),
            },
            NAMESPACE_NUMBERS => Record::Namespaces(take_numbers(&mut rest)?),
            READY => Record::Ready,
            FAILED | PANIC => {
                let text = Cow::Owned(String::from_utf8_lossy(rest).into_owned());
                rest = &[];
                if *tag == FAILED {
                    Record::Failed { text }
                } else {
                    Record::Panic { text }
                }
            }
            VIOLATION => Record::Violation(decode_violation(&mut rest)?),
            ABORT => {
                let [kind] = take(&mut rest)?;
                let size = u64::from_le_bytes(take(&mut rest)?);
                let cause = match kind {
                    0 => AbortCause::Abort,
                    1 => AbortCause::OutOfMemory(size),
                    2 => AbortCause::StackOverflow,
                    _ => return None,
                };
                let thread = take(&mut rest)?;
                Record::Abort { cause, thread }
            }
            _ => return None,
        };
        rest.is_empty().then_some(record)
    }
}

fn decode_violation(rest: &mut &[u8]) -> Option<ViolationRecord> {
    let number = u32::from_le_bytes(take(rest)?);
    let thread_id = u32::from_le_bytes(take(rest)?);
    let address = u64::from_le_bytes(take(rest)?);
    Some(ViolationRecord {
        number,
        thread_id,
        address,
        arguments: take_numbers(rest)?,
        thread: take(rest)?,
    })
}

fn take_numbers<const N: usize>(rest: &mut &[u8]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = u64::from_le_bytes(take(rest)?);
    }
    Some(numbers)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// The name in `thread`, without its zeros; what is not printable is replaced.
pub(crate) fn thread_name(thread: &ThreadName) -> String {
    let len = thread.iter().position(|&b| b == 0).unwrap_or(THREAD_NAME);
    printable(&String::from_utf8_lossy(&thread[..len]))
}

/// `text` without control characters, so that a hostile process can't drive the terminal that shows it.
pub(crate) fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trip(record: &Record<'_>) {
        let packet = record.encode();
        assert_eq!(Record::decode(packet.bytes()).as_ref(), Some(record));
    }

    #[test]
    fn records_are_read_back() {
        let thread = *b"worker\0\0\0\0\0\0\0\0\0\0";
        round_trip(&Record::Process { pid: 0x0102_0304 });
        round_trip(&Record::Ready);
        round_trip(&Record::Namespaces([1, 2, 3, 4, 5, 6, u64::MAX]));
        round_trip(&Record::Failed { text: "no".into() });
        round_trip(&Record::Panic { text: "".into() });
        for cause in [
            AbortCause::Abort,
            AbortCause::OutOfMemory(u64::MAX),
            AbortCause::StackOverflow,
        ] {
            round_trip(&Record::Abort { cause, thread });
        }
        round_trip(&Record::Violation(ViolationRecord {
            number: 41,
            thread_id: 2,
            address: 0x7fff_1234,
            arguments: [1, 2, 3, 4, 5, u64::MAX],
            thread,
        }));
    }

    #[test]
    fn process_record_has_these_bytes() {
        let packet = Record::Process { pid: 0x0102_0304 }.encode();
        assert_eq!(packet.bytes(), [1, 4, 3, 2, 1]);
    }

    #[test]
    fn decode_wrong_lengths_and_tags_is_none() {
        for bytes in [
            &[][..],
            &[0],
            &[7],
            &[8],
            &[1, 1, 2, 3],
            &[1, 1, 2, 3, 4, 5],
            &[2, 0],
            &[5, 3],
        ] {
            assert_eq!(Record::decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn encode_long_text_is_cut_off() {
        let text = "x".repeat(2 * MAX_RECORD);
        let packet = Record::Failed { text: text.into() }.encode();
        assert_eq!(packet.bytes().len(), MAX_RECORD);
    }

    #[test]
    fn thread_name_control_characters_are_replaced() {
        assert_eq!(thread_name(b"a\x1b[2J\0garbage\0\0\0"), "a\u{fffd}[2J");
        assert_eq!(thread_name(b"0123456789abcdef"), "0123456789abcdef");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            if let Some(record) = Record::decode(&bytes) {
                proptest::prop_assert_eq!(Record::decode(record.encode().bytes()), Some(record));
            }
        }
    }
}
