//! crosvm's older requests, alone and mixed with those of the specification.

use std::io;
use std::os::fd::AsFd;

use super::Case;
use super::accepted;
use super::memfd;
use super::place;
use super::refused_with;
use crate::conform::session::PAGE;
use crate::conform::session::REGION;
use crate::conform::session::Reply;
use crate::conform::session::Session;
use crate::conform::wire;
use crate::conform::wire::Mmap;
use crate::conform::wire::code;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = old_maps();
    cases.extend(old_refusals());
    cases.extend(mixed());
    cases.extend(gpu());
    cases
}

fn old_map(session: &mut Session, flags: u8, shm_offset: u64, len: u64) -> io::Result<Reply> {
    let file = memfd(len.clamp(PAGE, REGION))?;
    let payload = wire::old_map(flags, 0, shm_offset, 0, len);
    session.ask(code::OLD_MAP, &payload, &[file.as_fd()])
}

fn old_unmap(session: &mut Session, shm_offset: u64, len: u64) -> io::Result<Reply> {
    session.ask(code::OLD_UNMAP, &wire::old_unmap(0, shm_offset, len), &[])
}

fn old_maps() -> Vec<Case> {
    let rule = "the older map is served: flags 1 read, 3 read and write";
    vec![
        Case::ours("dialects/old_map_for_reading", rule, |session| {
            accepted(old_map(session, 1, 0, PAGE)?)
        }),
        Case::ours("dialects/old_map_for_writing", rule, |session| {
            accepted(old_map(session, 3, 0, PAGE)?)
        }),
        Case::ours(
            "dialects/old_map_has_the_region_offset_first",
            "the older map has the region's offset before the file's",
            |session| {
                let file = memfd(PAGE)?;
                let payload = wire::old_map(1, 0, 8 * PAGE, 0, PAGE);
                accepted(session.ask(code::OLD_MAP, &payload, &[file.as_fd()])?)?;
                accepted(session.unmap(&Mmap::at(8 * PAGE, PAGE))?)
            },
        ),
        Case::ours(
            "dialects/old_unmap",
            "the older unmap is served",
            |session| {
                accepted(old_map(session, 1, 0, PAGE)?)?;
                accepted(old_unmap(session, 0, PAGE)?)
            },
        ),
    ]
}

fn old_refusals() -> Vec<Case> {
    let rule = "the older requests keep the same rules";
    vec![
        Case::ours("dialects/old_map_out_of_region", rule, |session| {
            refused_with(old_map(session, 1, REGION, PAGE)?, libc::ERANGE)
        }),
        Case::ours("dialects/old_map_overlap", rule, |session| {
            place(session, 0, PAGE)?;
            refused_with(old_map(session, 1, 0, PAGE)?, libc::EEXIST)
        }),
        Case::ours("dialects/old_map_length_zero", rule, |session| {
            refused_with(old_map(session, 1, 0, 0)?, libc::EINVAL)
        }),
        Case::ours("dialects/old_map_unknown_flag", rule, |session| {
            refused_with(old_map(session, 4, 0, PAGE)?, libc::EINVAL)
        }),
        Case::ours("dialects/old_unmap_of_a_hole", rule, |session| {
            refused_with(old_unmap(session, 0, PAGE)?, libc::ENOENT)
        }),
        Case::ours("dialects/old_unmap_of_a_part", rule, |session| {
            place(session, 0, 2 * PAGE)?;
            refused_with(old_unmap(session, 0, PAGE)?, libc::ENOENT)
        }),
        Case::ours(
            "dialects/external_map_of_a_remote_peer",
            "a pointer means nothing from another process: EPERM",
            |session| {
                let payload = wire::external_map(0, PAGE, 0x1000);
                refused_with(session.ask(code::EXTERNAL_MAP, &payload, &[])?, libc::EPERM)
            },
        ),
    ]
}

fn mixed() -> Vec<Case> {
    let rule = "a mapping is a mapping, whichever dialect made it";
    vec![
        Case::ours("dialects/mapped_new_unmapped_old", rule, |session| {
            place(session, 0, PAGE)?;
            accepted(old_unmap(session, 0, PAGE)?)
        }),
        Case::ours("dialects/mapped_old_unmapped_new", rule, |session| {
            accepted(old_map(session, 1, 0, PAGE)?)?;
            accepted(session.unmap(&Mmap::at(0, PAGE))?)
        }),
        Case::ours("dialects/both_on_one_channel_in_turn", rule, |session| {
            for index in 0..32 {
                let offset = index * PAGE;
                if index % 2 == 0 {
                    place(session, offset, PAGE)?;
                } else {
                    accepted(old_map(session, 1, offset, PAGE)?)?;
                }
            }
            Ok("32 mappings".to_owned())
        }),
    ]
}

fn gpu_map(session: &mut Session, offset: u64, len: u64) -> io::Result<Reply> {
    let file = memfd(len.clamp(PAGE, REGION))?;
    session.ask(code::GPU_MAP, &wire::gpu_map(offset, len), &[file.as_fd()])
}

fn gpu() -> Vec<Case> {
    let rule = "GPU_MAP keeps the rules of a map, and an unmap removes it";
    vec![
        Case::ours("dialects/gpu_map_of_mappable_memory", rule, |session| {
            accepted(gpu_map(session, 0, PAGE)?)?;
            accepted(session.unmap(&Mmap::at(0, PAGE))?)
        }),
        Case::ours("dialects/gpu_map_unmapped_old", rule, |session| {
            accepted(gpu_map(session, 0, PAGE)?)?;
            accepted(old_unmap(session, 0, PAGE)?)
        }),
        Case::ours("dialects/gpu_map_overlap", rule, |session| {
            place(session, 0, PAGE)?;
            refused_with(gpu_map(session, 0, PAGE)?, libc::EEXIST)
        }),
        Case::ours("dialects/gpu_map_out_of_region", rule, |session| {
            refused_with(gpu_map(session, REGION, PAGE)?, libc::ERANGE)
        }),
        Case::ours("dialects/gpu_map_length_zero", rule, |session| {
            refused_with(gpu_map(session, 0, 0)?, libc::EINVAL)
        }),
    ]
}
