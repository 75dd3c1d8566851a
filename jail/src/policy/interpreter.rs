//! A plain interpreter of the kernel's filters, for tests: what a filter answers, and what the source of the policy says.

use seccompiler::sock_filter;

use super::Action;
use super::Filters;
use super::Policy;
use crate::arch::Syscall;
use crate::violation::Violation;

/// What a filter sees of a call: `struct seccomp_data`.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) arguments: [u64; 6],
}

impl Call {
    /// The 32-bit word at `offset`.
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = [0; 64];
        bytes[0..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.arch.to_le_bytes());
        for (place, argument) in bytes[16..].chunks_exact_mut(8).zip(self.arguments) {
            place.copy_from_slice(&argument.to_le_bytes());
        }
        let offset = usize::try_from(offset).expect("offsets are small");
        assert_eq!(offset % 4, 0, "the kernel takes aligned loads only");
        let word = bytes[offset..offset + 4].try_into();
        u32::from_le_bytes(word.expect("four bytes"))
    }
}

/// Runs a program of the kernel's classic BPF, as far as seccomp takes it (`linux/filter.h`).
pub(super) fn run(program: &[sock_filter], call: &Call) -> u32 {
    let mut accumulator = 0_u32;
    let mut at = 0;
    loop {
        let instruction = &program[at];
        let k = instruction.k;
        at += 1;
        let jump = |condition: bool| {
            usize::from(if condition {
                instruction.jt
            } else {
                instruction.jf
            })
        };
        match instruction.code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).expect("jumps are short"),
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// The kernel's answer: the strictest of all filters, which is the lowest number.
pub(super) fn answer(filters: &Filters, call: &Call) -> u32 {
    let answers = filters.programs().iter().map(|program| run(program, call));
    // As signed numbers, since KILL_PROCESS has the sign bit.
    answers
        .min_by_key(|answer| answer.cast_signed())
        .expect("there is a filter")
}

pub(super) fn expected(
    policy: &Policy,
    violation: Violation,
    syscall: Syscall,
    arguments: &[u64; 6],
) -> u32 {
    match policy.decide(syscall, arguments).action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Errno { errno } => {
            let value = super::constants::errno(&errno).expect("it was read before");
            libc::SECCOMP_RET_ERRNO | u32::from(value)
        }
        Action::Violation => match violation {
            Violation::Trap => libc::SECCOMP_RET_TRAP,
            Violation::Kill => libc::SECCOMP_RET_KILL_PROCESS,
            Violation::Log => libc::SECCOMP_RET_USER_NOTIF,
        },
    }
}
