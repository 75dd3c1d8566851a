//! What the devices have and what they may have: mappings and bytes a device, areas of address space for all of them.

use serde::Deserialize;
use serde::Serialize;

use crate::reason::Reason;

/// The kernel's default of `vm.max_map_count`, for where it can't be read.
const USUAL_MAX_MAP_COUNT: u64 = 65_530;

/// What a device may have mapped at a time. Past a limit a request is refused with `EDQUOT` and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Live mappings.
    pub max_mappings: u32,
    /// Mapped bytes, counted in whole pages.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// 16,384 mappings and 64 GiB: more than a DAX window or a set of GPU blobs needs.
    fn default() -> Self {
        Self {
            max_mappings: 16_384,
            max_bytes: 64 << 30,
        }
    }
}

/// What one device has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    limits: Limits,
    mappings: u32,
    bytes: u64,
    peak_mappings: u32,
}

impl Account {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            mappings: 0,
            bytes: 0,
            peak_mappings: 0,
        }
    }

    /// Refuses a mapping of `footprint` bytes that would go past a limit.
    pub(crate) fn check(&self, footprint: u64) -> Result<(), Reason> {
        if self.mappings >= self.limits.max_mappings {
            return Err(Reason::QuotaMappings {
                limit: self.limits.max_mappings,
            });
        }
        match self.bytes.checked_add(footprint) {
            Some(bytes) if bytes <= self.limits.max_bytes => Ok(()),
            _ => Err(Reason::QuotaBytes {
                len: footprint,
                used: self.bytes,
                limit: self.limits.max_bytes,
            }),
        }
    }

    /// Counts a mapping that has passed [`Account::check`].
    pub(crate) fn add(&mut self, footprint: u64) {
        self.mappings += 1;
        self.bytes += footprint;
        self.peak_mappings = self.peak_mappings.max(self.mappings);
    }

    /// Counts a mapping that is gone.
    pub(crate) fn remove(&mut self, footprint: u64) {
        self.remove_all(1, footprint);
    }

    /// Counts several mappings that are gone, of `bytes` together.
    pub(crate) fn remove_all(&mut self, mappings: usize, bytes: u64) {
        // A table never has more than the account counts.
        let mappings = u32::try_from(mappings).unwrap_or(u32::MAX);
        debug_assert!(self.mappings >= mappings && self.bytes >= bytes);
        self.mappings -= mappings;
        self.bytes -= bytes;
    }

    pub(crate) fn mappings(&self) -> u32 {
        self.mappings
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn peak_mappings(&self) -> u32 {
        self.peak_mappings
    }
}

/// The areas of address space that mappings may need unless the VMM says otherwise: fifteen sixteenths of what the system
/// grants a process. The rest is for the VMM itself.
pub(crate) fn share_of_areas() -> u64 {
    let system: u64 = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(USUAL_MAX_MAP_COUNT);
    system - system.div_ceil(16)
}

/// Areas of address space (VMAs), of which a process may have `vm.max_map_count`.
///
/// A mapping is one, and it can cut the reservation around it in two, so it costs up to two more than there were. The
/// kernel may join neighbours of one file and need fewer; what is counted is the most that it can be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AreaBudget {
    limit: u64,
    used: u64,
}

impl AreaBudget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    /// Refuses what would go past the limit.
    pub(crate) fn check(&self, areas: u64) -> Result<(), Reason> {
        if areas > self.limit.saturating_sub(self.used) {
            return Err(Reason::QuotaAreas {
                used: self.used,
                limit: self.limit,
            });
        }
        Ok(())
    }

    pub(crate) fn take(&mut self, areas: u64) {
        self.used += areas;
    }

    pub(crate) fn give_back(&mut self, areas: u64) {
        debug_assert!(self.used >= areas);
        self.used -= areas;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_at_its_limits_refuses_until_something_goes() {
        let mut account = Account::new(Limits {
            max_mappings: 2,
            max_bytes: 0x3000,
        });
        assert_eq!(account.check(0x3000), Ok(()));
        account.add(0x2000);
        let too_much = Reason::QuotaBytes {
            len: 0x2000,
            used: 0x2000,
            limit: 0x3000,
        };
        assert_eq!(account.check(0x2000), Err(too_much));
        account.add(0x1000);
        let too_many = Reason::QuotaMappings { limit: 2 };
        assert_eq!(account.check(0x1000), Err(too_many));
        account.remove(0x2000);
        assert_eq!(account.check(0x2000), Ok(()));
        assert_eq!((account.mappings(), account.bytes()), (1, 0x1000));
        assert_eq!(account.peak_mappings(), 2);
    }

    #[test]
    fn account_without_a_limit_on_bytes_refuses_what_overflows() {
        let mut account = Account::new(Limits {
            max_mappings: 9,
            max_bytes: u64::MAX,
        });
        account.add(0x1000);
        assert!(matches!(
            account.check(u64::MAX),
            Err(Reason::QuotaBytes { used: 0x1000, .. })
        ));
    }

    #[test]
    fn budget_is_refused_past_its_limit_and_comes_back() {
        let mut budget = AreaBudget::new(3);
        budget.take(2);
        assert_eq!(
            budget.check(2),
            Err(Reason::QuotaAreas { used: 2, limit: 3 })
        );
        assert_eq!(budget.check(1), Ok(()));
        budget.give_back(1);
        assert_eq!(budget.check(2), Ok(()));
    }

    #[test]
    fn budget_of_the_system_leaves_a_part_to_the_vmm() {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("it is there");
        let system: u64 = text.trim().parse().expect("a number");
        let share = share_of_areas();
        assert!(share < system && share > system / 2);
    }
}
