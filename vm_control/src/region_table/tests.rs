//! Each rule by example, and all of them against an array of pages.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 0x1000;
const KIND: MappingKind = MappingKind::Memfd;

/// A region of 16 pages with mappings of these offsets and lengths.
fn table(mappings: &[(u64, u64)]) -> RegionTable {
    let mut table = RegionTable::new(16 * PAGE, PAGE);
    for (offset, len) in mappings {
        let vacancy = table.vacancy(*offset, *len).expect("there is room");
        table.insert(vacancy, Protection::read(), KIND);
        table.assert_consistent();
    }
    table
}

#[track_caller]
fn check_map(live: &[(u64, u64)], offset: u64, len: u64, expected: Result<(u64, u64), Reason>) {
    let vacancy = table(live).vacancy(offset, len);
    assert_eq!(
        vacancy.map(|vacancy| (vacancy.footprint(), vacancy.areas())),
        expected
    );
}

#[track_caller]
fn check_unmap(live: (u64, u64), offset: u64, len: u64, expected: Result<(), Reason>) {
    let mut table = table(&[live]);
    let found = table.find(offset, len, UnmapRule::Exact);
    assert_eq!(found.map(|_| ()), expected);
    if let Ok(occupied) = found {
        table.remove(&occupied);
        table.assert_consistent();
        assert!(table.is_empty());
    }
}

#[test]
fn map_of_an_exact_fit_is_accepted() {
    check_map(&[], 0, 16 * PAGE, Ok((16 * PAGE, 0)));
    check_map(&[], 15 * PAGE, PAGE, Ok((PAGE, 1)));
    check_map(&[(0, PAGE), (2 * PAGE, PAGE)], PAGE, PAGE, Ok((PAGE, 0)));
    check_map(&[(0, PAGE)], 2 * PAGE, PAGE, Ok((PAGE, 2)));
}

#[test]
fn map_of_a_partial_page_takes_up_all_of_it() {
    check_map(&[], 0, 1, Ok((PAGE, 1)));
    check_map(&[], 0, 0x7081, Ok((0x8000, 1)));
    let overlap = Reason::Overlap {
        offset: PAGE,
        len: PAGE,
        live_offset: 0,
        live_len: PAGE + 1,
    };
    check_map(&[(0, PAGE + 1)], PAGE, PAGE, Err(overlap));
}

#[test]
fn map_of_an_offset_within_a_page_is_misaligned() {
    let misaligned = Reason::Misaligned {
        offset: 1,
        page_size: PAGE,
    };
    check_map(&[], 1, PAGE, Err(misaligned));
}

#[test]
fn map_of_no_bytes_is_refused() {
    check_map(&[], 0, 0, Err(Reason::ZeroLength));
}

#[test]
fn map_beyond_the_region_is_out_of_it() {
    for (offset, len) in [
        (16 * PAGE, PAGE),
        (15 * PAGE, PAGE + 1),
        (0, 16 * PAGE + 1),
        (PAGE, u64::MAX),
        (PAGE, u64::MAX - PAGE + 1),
        (u64::MAX - PAGE + 1, PAGE),
        (u64::MAX - PAGE + 1, 2 * PAGE),
    ] {
        let out = Reason::OutOfRegion {
            offset,
            len,
            region_len: 16 * PAGE,
        };
        check_map(&[], offset, len, Err(out));
    }
}

#[test]
fn map_over_a_live_mapping_overlaps_in_every_shape() {
    let live = (4 * PAGE, 4 * PAGE);
    for (first, pages) in [
        (4, 4),
        (4, 1),
        (5, 2),
        (7, 1),
        (3, 2),
        (7, 2),
        (2, 8),
        (0, 16),
    ] {
        let overlap = Reason::Overlap {
            offset: first * PAGE,
            len: pages * PAGE,
            live_offset: 4 * PAGE,
            live_len: 4 * PAGE,
        };
        check_map(&[live], first * PAGE, pages * PAGE, Err(overlap));
    }
    check_map(&[live], 0, 4 * PAGE, Ok((4 * PAGE, 0)));
    check_map(&[live], 8 * PAGE, 8 * PAGE, Ok((8 * PAGE, 0)));
}

#[test]
fn unmap_of_the_length_or_the_footprint_finds_the_mapping() {
    check_unmap((PAGE, 0x7081), PAGE, 0x7081, Ok(()));
    check_unmap((PAGE, 0x7081), PAGE, 0x8000, Ok(()));
}

#[test]
fn unmap_of_anything_but_the_whole_mapping_finds_none() {
    for (offset, len) in [
        (PAGE, 1),
        (PAGE, 0x7080),
        (PAGE, 0x7082),
        (PAGE, 0x7000),
        (PAGE, 0x9000),
        (0, 0x9000),
        (2 * PAGE, 0x7000),
        (8 * PAGE, PAGE),
    ] {
        let refusal = Reason::NoMapping {
            offset,
            len,
            live: Some((PAGE, 0x7081)),
        };
        check_unmap((PAGE, 0x7081), offset, len, Err(refusal));
    }
    let nothing = Reason::NoMapping {
        offset: 9 * PAGE,
        len: PAGE,
        live: None,
    };
    check_unmap((PAGE, 0x7081), 9 * PAGE, PAGE, Err(nothing));
}

#[test]
fn unmap_that_no_map_could_match_says_why() {
    let misaligned = Reason::Misaligned {
        offset: PAGE + 1,
        page_size: PAGE,
    };
    check_unmap((PAGE, PAGE), PAGE + 1, PAGE, Err(misaligned));
    check_unmap((PAGE, PAGE), PAGE, 0, Err(Reason::ZeroLength));
    let out = Reason::OutOfRegion {
        offset: PAGE,
        len: 16 * PAGE,
        region_len: 16 * PAGE,
    };
    check_unmap((PAGE, PAGE), PAGE, 16 * PAGE, Err(out));
}

#[test]
fn unmap_by_offset_only_ignores_the_length() {
    let table = table(&[(PAGE, 3 * PAGE)]);
    for len in [0, 1, PAGE, 3 * PAGE, u64::MAX] {
        let found = table.find(PAGE, len, UnmapRule::OffsetOnly);
        assert_eq!(found.map(|found| found.footprint()), Ok(3 * PAGE));
    }
    let inside = table.find(2 * PAGE, 1, UnmapRule::OffsetOnly);
    let refusal = Reason::NoMapping {
        offset: 2 * PAGE,
        len: 0,
        live: Some((PAGE, 3 * PAGE)),
    };
    assert_eq!(inside.map(|_| ()), Err(refusal));
}

#[test]
fn clear_forgets_everything() {
    let mut table = table(&[(0, PAGE), (4 * PAGE, 1)]);
    assert_eq!(
        (table.len(), table.bytes(), table.areas()),
        (2, 2 * PAGE, 3)
    );
    table.clear();
    table.assert_consistent();
    assert_eq!((table.len(), table.bytes(), table.areas()), (0, 0, 0));
}

/// Pages in the model's region: enough mappings for several chunks.
const PAGES: u64 = 400;

#[derive(Clone, Copy, Debug)]
enum Step {
    Map(u64, u64),
    Unmap(u64, u64),
    UnmapOffset(u64),
    /// Unmaps the live mapping at this place in the order, rounded.
    UnmapLive(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = (0..PAGES + 3).prop_map(|page| page * PAGE);
    let len = prop_oneof![
        8 => 1..=2 * PAGE,
        1 => 0..PAGES * PAGE,
        1 => Just(u64::MAX),
    ];
    prop_oneof![
        12 => (offset.clone(), len.clone()).prop_map(|(offset, len)| Step::Map(offset, len)),
        1 => (offset.clone(), len).prop_map(|(offset, len)| Step::Unmap(offset, len)),
        1 => offset.prop_map(Step::UnmapOffset),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(nth, round)| Step::UnmapLive(nth, round)),
    ]
}

/// The naive table: who owns each page, as the offset and length of its mapping.
struct Model([Option<(u64, u64)>; 400]);

impl Model {
    fn map(&mut self, offset: u64, len: u64) -> bool {
        let pages = len.div_ceil(PAGE);
        let first = offset / PAGE;
        if len == 0 || pages > PAGES || first + pages > PAGES {
            return false;
        }
        let range =
            usize::try_from(first).expect("small")..usize::try_from(first + pages).expect("small");
        if self.0[range.clone()].iter().any(Option::is_some) {
            return false;
        }
        self.0[range].fill(Some((offset, len)));
        true
    }

    fn unmap(&mut self, offset: u64, len: Option<u64>) -> bool {
        let first = usize::try_from(offset / PAGE).expect("small");
        let Some(Some(owner)) = self.0.get(first).copied() else {
            return false;
        };
        let fits = len.is_none_or(|len| len == owner.1 || len == owner.1.div_ceil(PAGE) * PAGE);
        if owner.0 != offset || !fits {
            return false;
        }
        for page in &mut self.0 {
            page.take_if(|page| *page == owner);
        }
        true
    }

    fn live(&self) -> Vec<(u64, u64)> {
        let mut live: Vec<_> = self.0.iter().copied().flatten().collect();
        live.dedup();
        live
    }
}

fn unmap(table: &mut RegionTable, offset: u64, len: u64, rule: UnmapRule) -> bool {
    match table.find(offset, len, rule) {
        Ok(occupied) => {
            assert_eq!(occupied.mapping().offset, offset);
            table.remove(&occupied);
            true
        }
        Err(_) => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn table_agrees_with_an_array_of_pages(steps in prop::collection::vec(step(), 0..500)) {
        let mut table = RegionTable::new(PAGES * PAGE, PAGE);
        let mut model = Model([None; 400]);
        for step in steps {
            let (done, expected) = match step {
                Step::Map(offset, len) => {
                    let vacancy = table.vacancy(offset, len);
                    if let Ok(vacancy) = vacancy {
                        table.insert(vacancy, Protection::read(), KIND);
                    }
                    (vacancy.is_ok(), model.map(offset, len))
                }
                Step::Unmap(offset, len) => (
                    unmap(&mut table, offset, len, UnmapRule::Exact),
                    model.unmap(offset, Some(len)),
                ),
                Step::UnmapOffset(offset) => (
                    unmap(&mut table, offset, 0, UnmapRule::OffsetOnly),
                    model.unmap(offset, None),
                ),
                Step::UnmapLive(nth, round) => {
                    let live = model.live();
                    let Some((offset, len)) = live.get(nth % live.len().max(1)).copied() else {
                        continue;
                    };
                    let len = if round { len.next_multiple_of(PAGE) } else { len };
                    (
                        unmap(&mut table, offset, len, UnmapRule::Exact),
                        model.unmap(offset, Some(len)),
                    )
                }
            };
            prop_assert_eq!(done, expected, "{:?}", step);
            table.assert_consistent();
            let live: Vec<_> = table.iter().map(|mapping| (mapping.offset, mapping.len)).collect();
            prop_assert_eq!(live, model.live());
        }
    }
}
