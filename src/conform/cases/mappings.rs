//! Where a mapping may be, what an unmap names, and what stays after a refusal.

use std::io;
use std::os::fd::AsFd;

use super::Case;
use super::accepted;
use super::memfd;
use super::place;
use super::refusal;
use super::refused;
use super::refused_with;
use crate::conform::session::PAGE;
use crate::conform::session::REGION;
use crate::conform::session::Reply;
use crate::conform::session::SECOND_REGION;
use crate::conform::session::SECOND_SHMID;
use crate::conform::session::Session;
use crate::conform::wire::Mmap;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = good_maps();
    cases.extend(bad_ranges());
    cases.extend(bad_fields());
    cases.extend(overlaps());
    cases.extend(good_unmaps());
    cases.extend(bad_unmaps());
    cases.extend(atomicity());
    cases
}

/// Maps a memfd that is long enough for whatever `mmap` says, as far as that can be.
fn map(session: &mut Session, mmap: &Mmap) -> io::Result<Reply> {
    let end = mmap.fd_offset.saturating_add(mmap.len);
    let file = memfd(end.clamp(PAGE, REGION * 2))?;
    session.map(mmap, file.as_fd())
}

/// A mapping in the region whose id leaves a gap.
fn second(offset: u64, len: u64) -> Mmap {
    Mmap {
        shmid: SECOND_SHMID,
        ..Mmap::at(offset, len)
    }
}

fn in_region(shmid: u8, mmap: Mmap) -> Mmap {
    Mmap { shmid, ..mmap }
}

fn flagged(flags: u64) -> Mmap {
    Mmap {
        flags,
        ..Mmap::at(0, PAGE)
    }
}

fn from_file_offset(fd_offset: u64) -> Mmap {
    Mmap {
        fd_offset,
        ..Mmap::at(0, PAGE)
    }
}

fn good_maps() -> Vec<Case> {
    let padded = Mmap {
        padding: [0xff; 7],
        ..Mmap::at(0, PAGE)
    };
    let mut cases: Vec<Case> = [
        ("read_only", "flags 0 map read-only", flagged(0)),
        ("read_write", "flag bit 0 maps for writing", flagged(1)),
        (
            "last_page",
            "the region's last page is in it",
            Mmap::at(REGION - PAGE, PAGE),
        ),
        (
            "whole_region",
            "a mapping may fill its region",
            Mmap::at(0, REGION),
        ),
        (
            "file_offset",
            "the descriptor is mapped from fd_offset",
            from_file_offset(4 * PAGE),
        ),
        (
            "second_region",
            "regions are told apart by their shmid",
            second(SECOND_REGION - PAGE, PAGE),
        ),
        ("nonzero_padding", "padding carries nothing", padded),
    ]
    .into_iter()
    .map(|(name, rule, mmap)| {
        Case::spec(format!("mappings/{name}"), rule, move |session| {
            accepted(map(session, &mmap)?)
        })
    })
    .collect();
    for (name, len) in [("of_an_odd_length", 0x70800), ("of_one_byte", 1)] {
        let rule = "a length need not be a multiple of the page size";
        cases.push(Case::ours(
            format!("mappings/{name}"),
            rule,
            move |session| accepted(map(session, &Mmap::at(0, len))?),
        ));
    }
    cases.extend([
        Case::spec(
            "mappings/one_file_at_two_places",
            "a descriptor may be mapped more than once",
            |session| {
                let file = memfd(PAGE)?;
                accepted(session.map(&Mmap::at(0, PAGE), file.as_fd())?)?;
                accepted(session.map(&Mmap::at(4 * PAGE, PAGE), file.as_fd())?)
            },
        ),
        Case::spec(
            "mappings/same_offset_in_two_regions",
            "an offset is one of its region",
            |session| {
                place(session, 0, PAGE)?;
                accepted(map(session, &second(0, PAGE))?)
            },
        ),
        Case::spec(
            "mappings/neighbours_before_and_after",
            "mappings that touch do not overlap",
            |session| {
                place(session, 4 * PAGE, PAGE)?;
                accepted(map(session, &Mmap::at(3 * PAGE, PAGE))?)?;
                accepted(map(session, &Mmap::at(5 * PAGE, PAGE))?)
            },
        ),
    ]);
    cases
}

fn bad_ranges() -> Vec<Case> {
    let top = PAGE.wrapping_neg();
    [
        ("offset_at_the_end", libc::ERANGE, Mmap::at(REGION, PAGE)),
        (
            "one_page_too_long",
            libc::ERANGE,
            Mmap::at(0, REGION + PAGE),
        ),
        (
            "one_byte_too_long",
            libc::ERANGE,
            Mmap::at(REGION - PAGE, PAGE + 1),
        ),
        ("far_outside", libc::ERANGE, Mmap::at(1 << 40, PAGE)),
        ("end_is_two_to_the_64", libc::ERANGE, Mmap::at(top, PAGE)),
        ("end_wraps", libc::ERANGE, Mmap::at(top, 2 * PAGE)),
        ("length_of_all_ones", libc::ERANGE, Mmap::at(0, u64::MAX)),
        (
            "beyond_the_second_region",
            libc::ERANGE,
            second(SECOND_REGION, PAGE),
        ),
        (
            "unknown_region_in_the_gap",
            libc::ENXIO,
            in_region(1, flagged(0)),
        ),
        (
            "unknown_region_above",
            libc::ENXIO,
            in_region(4, flagged(0)),
        ),
        (
            "unknown_region_255",
            libc::ENXIO,
            in_region(255, flagged(0)),
        ),
    ]
    .into_iter()
    .flat_map(|(name, errno, mmap)| {
        let rule = "the range must be valid";
        refusal(&format!("mappings/{name}"), rule, errno, move |session| {
            map(session, &mmap)
        })
    })
    .collect()
}

fn bad_fields() -> Vec<Case> {
    let mut cases: Vec<Case> = [("1", 2), ("1_and_0", 3), ("63", 1 << 63)]
        .into_iter()
        .flat_map(|(bits, flags)| {
            let name = format!("mappings/reserved_flag_{bits}");
            let rule = "flag bits but the lowest are reserved";
            refusal(&name, rule, libc::EINVAL, move |session| {
                map(session, &flagged(flags))
            })
        })
        .collect();
    for (name, mmap) in [
        ("length_zero", Mmap::at(0, 0)),
        ("region_offset_of_a_byte", Mmap::at(1, PAGE)),
        ("region_offset_of_half_a_page", Mmap::at(PAGE / 2, PAGE)),
        ("file_offset_of_a_byte", from_file_offset(1)),
        ("file_offset_of_half_a_page", from_file_offset(PAGE / 2)),
    ] {
        let rule = "offsets are multiples of the page size, and a length is not zero";
        cases.push(Case::ours(
            format!("mappings/{name}"),
            rule,
            move |session| refused_with(map(session, &mmap)?, libc::EINVAL),
        ));
    }
    cases
}

/// Each meets one mapping of four pages, which stands at page 8.
fn overlaps() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        ("same_place", 8, 4 * PAGE),
        ("inside", 9, PAGE),
        ("first_page", 8, PAGE),
        ("last_page", 11, PAGE),
        ("from_before_into_it", 6, 3 * PAGE),
        ("from_within_beyond_it", 11, 4 * PAGE),
        ("all_around_it", 4, 16 * PAGE),
        ("same_start_longer", 8, 8 * PAGE),
        ("same_end_longer", 4, 8 * PAGE),
        ("by_one_byte", 7, PAGE + 1),
    ]
    .into_iter()
    .flat_map(|(name, page, len)| {
        let rule = "a mapping over an existing one must fail";
        refusal(
            &format!("overlap/{name}"),
            rule,
            libc::EEXIST,
            move |session| {
                place(session, 8 * PAGE, 4 * PAGE)?;
                map(session, &Mmap::at(page * PAGE, len))
            },
        )
    })
    .collect();
    cases.push(Case::ours(
        "overlap/rest_of_a_partial_last_page",
        "a mapping's last page is its own, even where only a part of it is used",
        |session| {
            place(session, 0, PAGE + 0x800)?;
            refused_with(map(session, &Mmap::at(PAGE, PAGE))?, libc::EEXIST)
        },
    ));
    cases
}

fn good_unmaps() -> Vec<Case> {
    let mut cases: Vec<Case> = [("as_mapped", 0x70800), ("in_whole_pages", 0x71000)]
        .into_iter()
        .map(|(name, len)| {
            let rule =
                "an unmap names its mapping by its length, as it was mapped or in whole pages";
            Case::ours(format!("unmap/length_{name}"), rule, move |session| {
                place(session, 0, 0x70800)?;
                accepted(session.unmap(&Mmap::at(0, len))?)
            })
        })
        .collect();
    cases.extend([
        Case::spec(
            "unmap/range_can_be_used_again",
            "after an unmap the range is free",
            |session| {
                for _ in 0..8 {
                    place(session, 0, 4 * PAGE)?;
                    accepted(session.unmap(&Mmap::at(0, 4 * PAGE))?)?;
                }
                accepted(map(session, &Mmap::at(PAGE, PAGE))?)
            },
        ),
        Case::spec(
            "unmap/leaves_its_neighbours",
            "an unmap removes one mapping",
            |session| {
                for page in 0..3 {
                    place(session, page * PAGE, PAGE)?;
                }
                accepted(session.unmap(&Mmap::at(PAGE, PAGE))?)?;
                refused(map(session, &Mmap::at(0, PAGE))?)?;
                refused(map(session, &Mmap::at(2 * PAGE, PAGE))?)
            },
        ),
        Case::spec(
            "unmap/of_one_region_leaves_the_other",
            "an unmap is one of its region",
            |session| {
                place(session, 0, PAGE)?;
                accepted(map(session, &second(0, PAGE))?)?;
                accepted(session.unmap(&second(0, PAGE))?)?;
                refused(map(session, &Mmap::at(0, PAGE))?)
            },
        ),
    ]);
    cases
}

/// Each meets two mappings of four pages, which stand at page 8 and page 12.
fn bad_unmaps() -> Vec<Case> {
    let whole = Mmap::at(8 * PAGE, 4 * PAGE);
    let mut cases: Vec<Case> = [
        ("hole", libc::ENOENT, Mmap::at(0, PAGE)),
        ("front_part", libc::ENOENT, Mmap::at(8 * PAGE, 2 * PAGE)),
        ("back_part", libc::ENOENT, Mmap::at(10 * PAGE, 2 * PAGE)),
        ("middle_part", libc::ENOENT, Mmap::at(9 * PAGE, PAGE)),
        ("more_than_it", libc::ENOENT, Mmap::at(8 * PAGE, 5 * PAGE)),
        ("two_at_once", libc::ENOENT, Mmap::at(8 * PAGE, 8 * PAGE)),
        ("from_before_it", libc::ENOENT, Mmap::at(7 * PAGE, 5 * PAGE)),
        ("outside_the_region", libc::ERANGE, Mmap::at(REGION, PAGE)),
        (
            "overflow",
            libc::ERANGE,
            Mmap::at(PAGE.wrapping_neg(), PAGE),
        ),
        ("unknown_region", libc::ENXIO, in_region(1, whole)),
        (
            "in_the_wrong_region",
            libc::ENOENT,
            in_region(SECOND_SHMID, whole),
        ),
    ]
    .into_iter()
    .flat_map(|(name, errno, mmap)| {
        let rule = "an unmap names the entirety of one mapping";
        refusal(&format!("unmap/{name}"), rule, errno, move |session| {
            place(session, 8 * PAGE, 4 * PAGE)?;
            place(session, 12 * PAGE, 4 * PAGE)?;
            session.unmap(&mmap)
        })
    })
    .collect();
    let rule = "what was unmapped cannot be unmapped again";
    cases.extend(refusal("unmap/twice", rule, libc::ENOENT, |session| {
        place(session, 0, PAGE)?;
        session.unmap(&Mmap::at(0, PAGE))?;
        session.unmap(&Mmap::at(0, PAGE))
    }));
    for (name, mmap, errno) in [
        ("length_zero", Mmap::at(8 * PAGE, 0), libc::EINVAL),
        (
            "offset_of_a_byte",
            Mmap::at(8 * PAGE + 1, 4 * PAGE),
            libc::EINVAL,
        ),
        ("by_offset_only", Mmap::at(8 * PAGE, 1), libc::ENOENT),
    ] {
        let rule = "an unmap is checked as strictly as a map";
        cases.push(Case::ours(format!("unmap/{name}"), rule, move |session| {
            place(session, 8 * PAGE, 4 * PAGE)?;
            refused_with(session.unmap(&mmap)?, errno)
        }));
    }
    cases
}

fn atomicity() -> Vec<Case> {
    let rule = "a failed request changes nothing";
    vec![
        Case::spec("state/refused_map_leaves_the_range_free", rule, |session| {
            refused(map(session, &flagged(2))?)?;
            accepted(map(session, &flagged(0))?)
        }),
        Case::spec(
            "state/refused_overlap_leaves_the_old_mapping",
            rule,
            |session| {
                place(session, 0, 2 * PAGE)?;
                refused(map(session, &Mmap::at(PAGE, 2 * PAGE))?)?;
                accepted(session.unmap(&Mmap::at(0, 2 * PAGE))?)?;
                accepted(map(session, &Mmap::at(2 * PAGE, PAGE))?)
            },
        ),
        Case::spec("state/refused_unmap_leaves_the_mapping", rule, |session| {
            place(session, 0, 2 * PAGE)?;
            refused(session.unmap(&Mmap::at(0, PAGE))?)?;
            accepted(session.unmap(&Mmap::at(0, 2 * PAGE))?)
        }),
        Case::spec(
            "state/a_thousand_pairs_leave_nothing",
            "what was unmapped is gone",
            |session| {
                let file = memfd(PAGE)?;
                for index in 0..1000 {
                    let mmap = Mmap::at(index * PAGE, PAGE);
                    accepted(session.map(&mmap, file.as_fd())?)?;
                    accepted(session.unmap(&mmap)?)?;
                }
                accepted(map(session, &Mmap::at(0, REGION))?)
            },
        ),
    ]
}
