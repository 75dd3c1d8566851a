//! Which descriptors can be mapped, and how.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::EventfdFlags;
use rustix::event::epoll;
use rustix::event::eventfd;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::SealFlags;
use rustix::fs::fcntl_add_seals;

use super::Case;
use super::accepted;
use super::files;
use super::memfd;
use super::refusal;
use crate::conform::session::PAGE;
use crate::conform::session::Reply;
use crate::conform::session::Session;
use crate::conform::wire::Mmap;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = kinds();
    cases.extend(access());
    cases.extend(seals());
    cases.extend(lengths());
    cases
}

/// Maps one page of `file`.
fn page(session: &mut Session, file: &impl AsFd, writable: bool) -> io::Result<Reply> {
    let mmap = Mmap {
        flags: u64::from(writable),
        ..Mmap::at(0, PAGE)
    };
    session.map(&mmap, file.as_fd())
}

type Make = fn() -> io::Result<OwnedFd>;

fn kinds() -> Vec<Case> {
    let others: [(&str, Make); 8] = [
        ("pipe", || Ok(io::pipe()?.0.into())),
        ("socket", || Ok(UnixStream::pair()?.0.into())),
        ("directory", || Ok(File::open("/")?.into())),
        ("character_device", || Ok(File::open("/dev/null")?.into())),
        ("zero_device", || Ok(File::open("/dev/zero")?.into())),
        ("eventfd", || Ok(eventfd(0, EventfdFlags::CLOEXEC)?)),
        ("epoll", || Ok(epoll::create(epoll::CreateFlags::CLOEXEC)?)),
        ("path_only", || {
            let file = memfd(PAGE)?;
            let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            Ok(rustix::fs::open(
                name,
                OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
            )?)
        }),
    ];
    let mut cases: Vec<Case> = others
        .into_iter()
        .flat_map(|(name, make)| {
            let rule = "only memory that can be shared is mapped: files, memfds, dma-bufs";
            refusal(
                &format!("descriptors/{name}"),
                rule,
                libc::EBADF,
                move |session| page(session, &make()?, false),
            )
            // Whether a device of characters is memory the specification leaves open.
            .into_iter()
            .filter(move |case| name != "zero_device" || case.name.ends_with("errno"))
        })
        .collect();
    cases.extend([
        Case::spec("descriptors/memfd", "a memfd can be mapped", |session| {
            accepted(page(session, &memfd(PAGE)?, true)?)
        }),
        Case::spec(
            "descriptors/file",
            "a regular file can be mapped",
            |session| {
                let [file, ..] = files(PAGE)?;
                accepted(page(session, &file, true)?)
            },
        ),
    ]);
    cases
}

fn access() -> Vec<Case> {
    let rule = "a mapping needs a descriptor that was opened for it";
    let mut cases = vec![
        Case::spec("descriptors/read_only_file_for_reading", rule, |session| {
            let [_, read, _] = files(PAGE)?;
            accepted(page(session, &read, false)?)
        }),
        Case::spec("descriptors/writable_file_for_reading", rule, |session| {
            let [file, ..] = files(PAGE)?;
            accepted(page(session, &file, false)?)
        }),
    ];
    cases.extend(refusal(
        "descriptors/read_only_file_for_writing",
        rule,
        libc::EACCES,
        |session| {
            let [_, read, _] = files(PAGE)?;
            page(session, &read, true)
        },
    ));
    for writable in [false, true] {
        let name = if writable { "writing" } else { "reading" };
        let name = format!("descriptors/write_only_file_for_{name}");
        cases.extend(refusal(&name, rule, libc::EACCES, move |session| {
            let [_, _, write] = files(PAGE)?;
            page(session, &write, writable)
        }));
    }
    cases
}

fn sealed(seals: SealFlags) -> io::Result<OwnedFd> {
    let file = memfd(PAGE)?;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn seals() -> Vec<Case> {
    let mut cases = vec![
        Case::spec(
            "descriptors/memfd_sealed_against_resizing",
            "a memfd whose length cannot change can be mapped",
            |session| {
                let file = sealed(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
                accepted(page(session, &file, true)?)
            },
        ),
        Case::spec(
            "descriptors/memfd_sealed_against_writing_for_reading",
            "a memfd that cannot be written can be mapped read-only",
            |session| accepted(page(session, &sealed(SealFlags::WRITE)?, false)?),
        ),
    ];
    for (name, seal) in [
        ("writing", SealFlags::WRITE),
        ("future_writing", SealFlags::FUTURE_WRITE),
    ] {
        let name = format!("descriptors/memfd_sealed_against_{name}_for_writing");
        let rule =
            "what is sealed against writing is not mapped for writing, nor turned into a copy";
        cases.extend(refusal(&name, rule, libc::EACCES, move |session| {
            page(session, &sealed(seal)?, true)
        }));
    }
    cases
}

fn lengths() -> Vec<Case> {
    let rule = "the range must lie within the descriptor";
    let map = |session: &mut Session, file_len: u64, fd_offset: u64, len: u64| {
        let file = memfd(file_len)?;
        let mmap = Mmap {
            fd_offset,
            ..Mmap::at(0, len)
        };
        session.map(&mmap, file.as_fd())
    };
    let mut cases = Vec::new();
    for (name, file_len, fd_offset, len) in [
        ("exactly_long_enough", 4 * PAGE, 2 * PAGE, 2 * PAGE),
        ("partial_last_page", PAGE + 100, PAGE, 100),
        ("longer_than_needed", 8 * PAGE, 0, PAGE),
    ] {
        let name = format!("descriptors/{name}");
        cases.push(Case::spec(name, rule, move |session| {
            accepted(map(session, file_len, fd_offset, len)?)
        }));
    }
    for (name, file_len, fd_offset, len) in [
        ("empty", 0, 0, PAGE),
        ("a_byte_too_short", PAGE - 1, 0, PAGE),
        ("a_page_too_short", PAGE, 0, 2 * PAGE),
        ("offset_at_its_end", PAGE, PAGE, 1),
        ("offset_far_beyond", PAGE, 1 << 40, PAGE),
        ("offset_overflows", PAGE, PAGE.wrapping_neg(), PAGE),
    ] {
        let name = format!("descriptors/{name}");
        cases.push(Case::ours(name, rule, move |session| {
            super::refused_with(map(session, file_len, fd_offset, len)?, libc::EOVERFLOW)
        }));
    }
    cases
}
