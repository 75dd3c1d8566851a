//! The rules one by one, and the table against a naive array of pages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const REGION: u64 = 64 * PAGE;

fn map(table: &mut RegionTable, offset: u64, len: u64) -> Result<(), i32> {
    let place = table
        .check_map(offset, len)
        .map_err(|error| error.errno())?;
    table.insert(place, Protection::read(), MappingKind::File);
    Ok(())
}

fn unmap(table: &mut RegionTable, offset: u64, len: u64) -> Result<(), i32> {
    table
        .check_unmap(offset, len, false)
        .map_err(|error| error.errno())?;
    table.remove(offset).map(|_| ()).ok_or(libc::ENOENT)
}

fn table_with(mappings: &[(u64, u64)]) -> RegionTable {
    let mut table = RegionTable::new(REGION);
    for (offset, len) in mappings {
        map(&mut table, *offset, *len).expect("a free place");
    }
    table
}

#[track_caller]
fn check_map(table: &RegionTable, offset: u64, len: u64, want: Result<(), i32>) {
    let got = table
        .check_map(offset, len)
        .map(|_| ())
        .map_err(|error| error.errno());
    assert_eq!(got, want, "map {offset:#x}+{len:#x}");
}

#[track_caller]
fn check_unmap(table: &RegionTable, offset: u64, len: u64, want: Result<(), i32>) {
    let got = table
        .check_unmap(offset, len, false)
        .map(|_| ())
        .map_err(|error| error.errno());
    assert_eq!(got, want, "unmap {offset:#x}+{len:#x}");
}

#[test]
fn map_of_a_bad_range_is_refused_by_its_cause() {
    let table = RegionTable::new(REGION);
    check_map(&table, 0, 0, Err(libc::EINVAL));
    check_map(&table, 1, PAGE, Err(libc::EINVAL));
    check_map(&table, PAGE / 2, PAGE, Err(libc::EINVAL));
    check_map(&table, REGION, 1, Err(libc::ERANGE));
    check_map(&table, REGION - PAGE, PAGE + 1, Err(libc::ERANGE));
    check_map(&table, 0, REGION + 1, Err(libc::ERANGE));
    check_map(&table, 0, u64::MAX, Err(libc::ERANGE));
    check_map(&table, u64::MAX - PAGE + 1, PAGE, Err(libc::ERANGE));
    check_map(&table, REGION - PAGE, PAGE, Ok(()));
    check_map(&table, 0, REGION, Ok(()));
}

#[test]
fn map_that_meets_a_live_one_exists_already() {
    let table = table_with(&[(8 * PAGE, 4 * PAGE)]);
    for (first, pages) in [(8, 4), (9, 2), (7, 2), (11, 2), (4, 20), (8, 1), (11, 1)] {
        check_map(&table, first * PAGE, pages * PAGE, Err(libc::EEXIST));
    }
    check_map(&table, 7 * PAGE, PAGE, Ok(()));
    check_map(&table, 7 * PAGE, PAGE + 1, Err(libc::EEXIST));
    check_map(&table, 12 * PAGE, PAGE, Ok(()));
}

#[test]
fn partial_last_page_belongs_to_its_mapping() {
    let table = table_with(&[(0, 0x70800 % REGION)]);
    let footprint = footprint(0x70800 % REGION).expect("a footprint");
    check_map(&table, footprint - PAGE, PAGE, Err(libc::EEXIST));
    check_map(&table, footprint, PAGE, Ok(()));
}

#[test]
fn unmap_names_one_whole_mapping_by_length_or_footprint() {
    let table = table_with(&[(4 * PAGE, 2 * PAGE + 1), (7 * PAGE, PAGE)]);
    check_unmap(&table, 4 * PAGE, 2 * PAGE + 1, Ok(()));
    check_unmap(&table, 4 * PAGE, 3 * PAGE, Ok(()));
    for (offset, len) in [
        (4 * PAGE, PAGE),
        (4 * PAGE, 2 * PAGE),
        (4 * PAGE, 4 * PAGE),
        (5 * PAGE, 2 * PAGE),
        (0, PAGE),
        (4 * PAGE, 1),
    ] {
        check_unmap(&table, offset, len, Err(libc::ENOENT));
    }
    check_unmap(&table, 4 * PAGE, 0, Err(libc::EINVAL));
    check_unmap(&table, 4 * PAGE + 1, PAGE, Err(libc::EINVAL));
    check_unmap(&table, 63 * PAGE, 2 * PAGE, Err(libc::ERANGE));
}

#[test]
fn unmap_by_offset_only_ignores_the_length_and_nothing_else() {
    let table = table_with(&[(4 * PAGE, 2 * PAGE)]);
    let found = table.check_unmap(4 * PAGE, 1, true).expect("a mapping");
    assert_eq!((found.offset, found.len), (4 * PAGE, 2 * PAGE));
    let error = table
        .check_unmap(5 * PAGE, 1, true)
        .expect_err("inside one");
    assert_eq!(error.errno(), libc::ENOENT);
    let error = table.check_unmap(4 * PAGE, 0, true).expect_err("no length");
    assert_eq!(error.errno(), libc::EINVAL);
}

/// What a table of pages says, the simplest that there is.
struct Naive {
    pages: Vec<Option<u64>>,
}

impl Naive {
    fn map(&mut self, first: u64, bytes: u64) -> Result<(), i32> {
        let pages = bytes.div_ceil(PAGE);
        if first + pages > self.pages.len() as u64 {
            return Err(libc::ERANGE);
        }
        let range =
            usize::try_from(first).expect("small")..usize::try_from(first + pages).expect("small");
        if self.pages[range.clone()].iter().any(Option::is_some) {
            return Err(libc::EEXIST);
        }
        self.pages[range].fill(Some(first));
        Ok(())
    }

    fn unmap(&mut self, first: u64, bytes: u64) -> Result<(), i32> {
        let pages = bytes.div_ceil(PAGE);
        if first + pages > self.pages.len() as u64 {
            return Err(libc::ERANGE);
        }
        let live = self
            .pages
            .iter()
            .filter(|page| **page == Some(first))
            .count() as u64;
        if live != pages {
            return Err(libc::ENOENT);
        }
        for page in &mut self.pages {
            if *page == Some(first) {
                *page = None;
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn table_agrees_with_an_array_of_pages(
        steps in vec((any::<bool>(), 0..70u64, 1..8u64), 0..400)
    ) {
        let mut table = RegionTable::new(REGION);
        let mut naive = Naive { pages: vec![None; 64] };
        for (maps, first, pages) in steps {
            let (offset, len) = (first * PAGE, pages * PAGE);
            if maps {
                prop_assert_eq!(map(&mut table, offset, len), naive.map(first, len));
            } else {
                prop_assert_eq!(unmap(&mut table, offset, len), naive.unmap(first, len));
            }
            let covered: u64 = table.iter().map(Mapping::footprint).sum();
            let live = naive.pages.iter().flatten().count() as u64;
            prop_assert_eq!(covered, live * PAGE);
        }
    }
}
