//! The architectures that policies can be written for, and their syscall tables.
//!
//! The tables come from the crate `syscalls`; nothing here depends on the architecture of the machine that runs the compiler.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;
use syscalls::aarch64;
use syscalls::riscv64;
use syscalls::x86_64;

/// What the C headers of all 64-bit architectures call this syscall; the table of aarch64 has another name.
const NEWFSTATAT: &str = "newfstatat";

/// Syscalls of 32-bit architectures, which the table of aarch64 has as well.
const TIME64: RangeInclusive<usize> = 403..=423;

/// An architecture that a policy is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// AMD64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 64-bit RISC-V.
    Riscv64,
}

impl Arch {
    /// All architectures, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::X86_64, Self::Aarch64, Self::Riscv64];

    /// The architecture that this program runs on.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The architecture that this program runs on.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;
    /// The architecture that this program runs on.
    #[cfg(target_arch = "riscv64")]
    pub const NATIVE: Self = Self::Riscv64;

    /// The name as in `seccomp/<name>/`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Riscv64 => "riscv64",
        }
    }

    /// The value of `seccomp_data.arch` (`AUDIT_ARCH_*` of `linux/audit.h`).
    pub const fn audit_value(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Length in bytes of the instruction that enters the kernel (`syscall`, `svc`, `ecall`).
    pub const fn syscall_instruction_len(self) -> u64 {
        match self {
            Self::X86_64 => 2,
            Self::Aarch64 | Self::Riscv64 => 4,
        }
    }

    /// The syscall of that name, or `None` if this architecture has none.
    pub fn syscall_by_name(self, name: &str) -> Option<Syscall> {
        let id = match self {
            Self::X86_64 => name.parse::<x86_64::Sysno>().ok()?.id(),
            Self::Aarch64 if name == NEWFSTATAT => aarch64::Sysno::fstatat.id(),
            Self::Aarch64 => name.parse::<aarch64::Sysno>().ok()?.id(),
            Self::Riscv64 => name.parse::<riscv64::Sysno>().ok()?.id(),
        };
        let syscall = self.syscall(u32::try_from(id).ok()?)?;
        (syscall.name == name).then_some(syscall)
    }

    /// The syscall of that number, or `None` if this architecture has none.
    pub fn syscall(self, number: u32) -> Option<Syscall> {
        self.name_of(number).map(|name| Syscall { number, name })
    }

    /// The name of syscall `number`. Neither allocates nor locks, so that a signal handler may call it.
    pub fn name_of(self, number: u32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::X86_64 => x86_64::Sysno::new(number).map(|s| s.name()),
            Self::Aarch64 if TIME64.contains(&number) => None,
            Self::Aarch64 => aarch64::Sysno::new(number).map(|s| match s {
                aarch64::Sysno::fstatat => NEWFSTATAT,
                other => other.name(),
            }),
            Self::Riscv64 => riscv64::Sysno::new(number).map(|s| s.name()),
        }
    }

    /// All syscalls of the architecture that the table knows, by number.
    pub fn syscalls(self) -> Vec<Syscall> {
        (0..=self.last_number())
            .filter_map(|number| self.syscall(number))
            .collect()
    }

    /// The highest number in the table.
    pub fn last_number(self) -> u32 {
        let last = match self {
            Self::X86_64 => x86_64::Sysno::last().id(),
            Self::Aarch64 => aarch64::Sysno::last().id(),
            Self::Riscv64 => riscv64::Sysno::last().id(),
        };
        u32::try_from(last).expect("syscall numbers are small and positive")
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no architecture.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture: use x86_64, aarch64 or riscv64")]
pub struct UnknownArch;

impl FromStr for Arch {
    type Err = UnknownArch;

    fn from_str(text: &str) -> Result<Self, UnknownArch> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.name() == text)
            .ok_or(UnknownArch)
    }
}

/// One syscall of one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Syscall {
    /// The number in `seccomp_data.nr`.
    pub number: u32,
    /// The kernel's name for it.
    pub name: &'static str,
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syscall_by_name_gives_each_architecture_its_own_number() {
        let number = |arch: Arch| arch.syscall_by_name("recvmsg").map(|s| s.number);
        assert_eq!(number(Arch::X86_64), Some(47));
        assert_eq!(number(Arch::Aarch64), Some(212));
        assert_eq!(number(Arch::Riscv64), Some(212));
    }

    #[test]
    fn syscall_by_name_missing_on_one_architecture_is_none() {
        assert!(Arch::X86_64.syscall_by_name("epoll_wait").is_some());
        assert_eq!(Arch::Aarch64.syscall_by_name("epoll_wait"), None);
        assert_eq!(Arch::Riscv64.syscall_by_name("epoll_wait"), None);
        assert_eq!(Arch::X86_64.syscall_by_name("no_such_call"), None);
    }

    #[test]
    fn names_are_those_of_the_c_headers() {
        let numbers = [262, 79, 79];
        for (arch, number) in Arch::ALL.into_iter().zip(numbers) {
            let syscall = arch.syscall_by_name("newfstatat");
            assert_eq!(syscall.map(|s| s.number), Some(number));
            assert_eq!(arch.syscall_by_name("fstatat"), None);
            assert_eq!(arch.syscall_by_name("clock_gettime64"), None);
            assert_eq!(arch.name_of(403), None);
        }
    }

    #[test]
    fn syscalls_are_in_order_and_end_with_the_last_number() {
        for arch in Arch::ALL {
            let all = arch.syscalls();
            assert!(all.len() > 300, "{arch}: {}", all.len());
            assert!(all.is_sorted());
            assert_eq!(all.last().map(|s| s.number), Some(arch.last_number()));
        }
    }

    #[test]
    fn from_str_other_text_is_refused() {
        assert_eq!("riscv64".parse(), Ok(Arch::Riscv64));
        assert_eq!("amd64".parse::<Arch>(), Err(UnknownArch));
    }
}
