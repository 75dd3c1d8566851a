//! What a mapping lets its user do.

use rustix::mm::MprotectFlags;
use rustix::mm::ProtFlags;
use serde::Deserialize;
use serde::Serialize;

/// Read and write permission of a mapping; never execute. The default is neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Protection {
    read: bool,
    write: bool,
}

impl Protection {
    /// Reading only.
    pub const fn read() -> Self {
        Self {
            read: true,
            write: false,
        }
    }

    /// Writing only. What the hardware makes of it usually lets one read as well.
    pub const fn write() -> Self {
        Self {
            read: false,
            write: true,
        }
    }

    /// Both.
    pub const fn read_write() -> Self {
        Self {
            read: true,
            write: true,
        }
    }

    /// The same, and reading.
    #[must_use]
    pub const fn set_read(self) -> Self {
        Self { read: true, ..self }
    }

    /// The same, and writing.
    #[must_use]
    pub const fn set_write(self) -> Self {
        Self {
            write: true,
            ..self
        }
    }

    /// Whether everything that `other` permits is permitted.
    pub const fn allows(&self, other: &Self) -> bool {
        (self.read || !other.read) && (self.write || !other.write)
    }

    pub(crate) fn mprotect_flags(self) -> MprotectFlags {
        let mut flags = MprotectFlags::empty();
        flags.set(MprotectFlags::READ, self.read);
        flags.set(MprotectFlags::WRITE, self.write);
        flags
    }

    pub(crate) fn flags(self) -> ProtFlags {
        let mut flags = ProtFlags::empty();
        flags.set(ProtFlags::READ, self.read);
        flags.set(ProtFlags::WRITE, self.write);
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_is_the_subset_relation() {
        let none = Protection::default();
        let all = [
            none,
            Protection::read(),
            Protection::write(),
            Protection::read_write(),
        ];
        let allowed = all.map(|one| all.map(|other| one.allows(&other)));
        assert_eq!(
            allowed,
            [
                [true, false, false, false],
                [true, true, false, false],
                [true, false, true, false],
                [true, true, true, true],
            ]
        );
        assert_eq!(none.set_read().set_write(), Protection::read_write());
    }

    #[test]
    fn flags_are_those_of_mmap() {
        assert_eq!(Protection::default().flags(), ProtFlags::empty());
        assert_eq!(
            Protection::read_write().flags(),
            ProtFlags::READ | ProtFlags::WRITE
        );
    }
}
