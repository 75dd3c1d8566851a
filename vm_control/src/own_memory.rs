//! What is mapped where in this process, for backends that live in it and name memory by its address.
//!
//! Read from `/proc/self/maps` at each request: such mappings are few, and nobody else knows better.

use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;

use base::Protection;

use crate::reason::Reason;

/// One line of `/proc/self/maps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) protection: Protection,
    pub(crate) is_shared: bool,
}

/// Checks that `len` bytes at `address` are mapped, without a hole, for what `protection` says.
///
/// # Errors
/// [`Reason::ExternalRange`] if they are not.
pub(crate) fn check(address: u64, len: u64, protection: Protection) -> Result<(), Reason> {
    let refusal = Reason::ExternalRange {
        address,
        len,
        protection,
    };
    let end = address.checked_add(len).ok_or(refusal)?;
    let areas = areas().map_err(|error| Reason::Kernel {
        error: error.into(),
    })?;
    let mut covered = address;
    for area in areas {
        let area = area.map_err(|error| Reason::Kernel {
            error: error.into(),
        })?;
        if area.end <= covered {
            continue;
        }
        if area.start > covered || !area.protection.allows(&protection) {
            break;
        }
        covered = area.end;
        if covered >= end {
            return Ok(());
        }
    }
    Err(refusal)
}

/// Whether all of `len` bytes at `address` are in one area of shared memory, of which there can be a second mapping.
pub(crate) fn is_one_shared_area(address: u64, len: u64) -> Result<bool, base::Error> {
    for area in areas()? {
        let area = area?;
        if area.start <= address && address < area.end {
            return Ok(area.is_shared && area.end - address >= len);
        }
    }
    Ok(false)
}

/// The areas of this process, by their addresses.
fn areas() -> std::io::Result<impl Iterator<Item = std::io::Result<Area>>> {
    let lines = BufReader::new(File::open("/proc/self/maps")?).lines();
    Ok(lines.filter_map(|line| line.map(|line| parse(&line)).transpose()))
}

/// Reads one line; `None` if it is not as the kernel writes them.
fn parse(line: &str) -> Option<Area> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let &[read, write, _, shared] = fields.next()?.as_bytes() else {
        return None;
    };
    let mut protection = Protection::default();
    if read == b'r' {
        protection = protection.set_read();
    }
    if write == b'w' {
        protection = protection.set_write();
    }
    Some(Area {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        protection,
        is_shared: shared == b's',
    })
}

#[cfg(test)]
mod tests {
    use base::MappedRegion;
    use base::MemoryMapping;
    use base::MemoryMappingBuilder;

    use super::*;

    const PAGE: u64 = 4096;

    fn mapping(pages: usize, protection: Protection) -> (MemoryMapping, u64) {
        let builder = MemoryMappingBuilder::new(pages * 4096).protection(protection);
        let mapping = builder.build().expect("a mapping");
        let address = mapping.as_ptr().addr() as u64;
        (mapping, address)
    }

    #[test]
    fn line_of_the_kernel_is_read() {
        let line = "7f0bea800000-7f0beb800000 r--s 00001000 00:01 12   /memfd:test (deleted)";
        let area = Area {
            start: 0x7f0b_ea80_0000,
            end: 0x7f0b_eb80_0000,
            protection: Protection::read(),
            is_shared: true,
        };
        assert_eq!(parse(line), Some(area));
        let line = "7f0bea800000-7f0beb800000 -w-p 00000000 00:00 0 ";
        let area = parse(line).expect("a line");
        assert_eq!(
            (area.protection, area.is_shared),
            (Protection::write(), false)
        );
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn memory_is_found_up_to_its_last_byte() {
        let (_mapping, address) = mapping(3, Protection::read_write());
        assert_eq!(check(address, 3 * PAGE, Protection::read_write()), Ok(()));
        assert_eq!(check(address + PAGE, 2 * PAGE, Protection::read()), Ok(()));
        assert_eq!(is_one_shared_area(address, 3 * PAGE), Ok(true));
    }

    #[test]
    fn memory_without_the_permission_is_refused() {
        let (_mapping, address) = mapping(1, Protection::read());
        let reason = Reason::ExternalRange {
            address,
            len: PAGE,
            protection: Protection::read_write(),
        };
        assert_eq!(check(address, PAGE, Protection::read_write()), Err(reason));
        assert_eq!(check(address, PAGE, Protection::read()), Ok(()));
    }

    #[test]
    fn addresses_without_memory_are_refused() {
        for (address, len) in [(0, PAGE), (u64::MAX - PAGE + 1, 2 * PAGE), (1 << 62, 1)] {
            let reason = Reason::ExternalRange {
                address,
                len,
                protection: Protection::read(),
            };
            assert_eq!(check(address, len, Protection::read()), Err(reason));
        }
    }

    #[test]
    fn private_memory_is_memory_but_not_shared() {
        let bytes = vec![1u8; 4 * 4096];
        let address = (bytes.as_ptr().addr() as u64).next_multiple_of(PAGE);
        assert_eq!(check(address, PAGE, Protection::read_write()), Ok(()));
        assert_eq!(is_one_shared_area(address, PAGE), Ok(false));
    }
}
