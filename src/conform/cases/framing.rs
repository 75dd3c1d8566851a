//! Messages cut into pieces, run together, of a wrong length, with too many or too few descriptors, or no messages at all.

use std::os::fd::AsFd;

use super::Case;
use super::accepted;
use super::memfd;
use super::place;
use super::refused;
use super::refused_with;
use crate::conform::case::Verdict;
use crate::conform::session::PAGE;
use crate::conform::session::Session;
use crate::conform::wire;
use crate::conform::wire::HEADER_BYTES;
use crate::conform::wire::Mmap;
use crate::conform::wire::NEED_REPLY;
use crate::conform::wire::REPLY;
use crate::conform::wire::VERSION;
use crate::conform::wire::code;

/// Bytes of a map or an unmap: header and payload.
const MESSAGE: usize = HEADER_BYTES + 40;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = splits();
    cases.extend(runs());
    cases.extend(lengths());
    cases.extend(descriptor_counts());
    cases.extend(unknown_codes());
    cases
}

fn map_message() -> Vec<u8> {
    let mmap = Mmap::at(0, PAGE).bytes();
    wire::message(code::MAP, VERSION | NEED_REPLY, &mmap)
}

/// Takes the reply to [`map_message`], and notes the mapping.
fn mapped(session: &mut Session) -> Verdict {
    let reply = session.reply()?;
    session.note(code::MAP, &Mmap::at(0, PAGE).bytes(), &reply);
    accepted(reply)
}

fn splits() -> Vec<Case> {
    let rule = "a stream has no message boundaries: a message may come in pieces";
    let mut cases: Vec<Case> = (1..MESSAGE)
        .map(|at| {
            Case::spec(format!("framing/map_split_at_{at}"), rule, move |session| {
                let file = memfd(PAGE)?;
                let message = map_message();
                session.send(&message[..at], &[file.as_fd()])?;
                session.send(&message[at..], &[])?;
                mapped(session)
            })
        })
        .collect();
    cases.push(Case::spec("framing/byte_by_byte", rule, |session| {
        let file = memfd(PAGE)?;
        let message = map_message();
        session.send(&message[..1], &[file.as_fd()])?;
        for byte in &message[1..] {
            session.send(std::slice::from_ref(byte), &[])?;
        }
        mapped(session)
    }));
    cases
}

fn runs() -> Vec<Case> {
    let rule = "a stream has no message boundaries: a write may hold several messages";
    let unmap = || {
        let mmap = Mmap::at(0, PAGE).bytes();
        wire::message(code::UNMAP, VERSION | NEED_REPLY, &mmap)
    };
    vec![
        Case::spec("framing/two_messages_in_one_write", rule, move |session| {
            place(session, 0, PAGE)?;
            // Without descriptors: those of a write are on its first byte, whatever it holds.
            session.send(&[unmap(), unmap()].concat(), &[])?;
            accepted(session.reply()?)?;
            refused(session.reply()?)
        }),
        Case::spec("framing/many_messages_in_one_write", rule, move |session| {
            session.send(&unmap().repeat(16), &[])?;
            for _ in 0..16 {
                refused(session.reply()?)?;
            }
            Ok("16 replies".to_owned())
        }),
        Case::spec(
            "framing/end_of_one_and_begin_of_the_next",
            rule,
            move |session| {
                let file = memfd(PAGE)?;
                let both = [map_message(), unmap()].concat();
                session.send(&both[..30], &[file.as_fd()])?;
                session.send(&both[30..70], &[])?;
                session.send(&both[70..], &[])?;
                accepted(session.reply()?)?;
                accepted(session.reply()?)
            },
        ),
        Case::spec(
            "framing/half_a_message_delays_nothing_before_it",
            "a complete request is answered whatever follows",
            move |session| {
                place(session, 0, PAGE)?;
                let next = unmap();
                session.send(&[&next[..], &next[..5]].concat(), &[])?;
                accepted(session.reply()?)?;
                session.send(&next[5..], &[])?;
                refused(session.reply()?)
            },
        ),
    ]
}

/// Sends a message with a payload of `bytes` zeros, and expects it to be refused without the stream losing step.
fn wrong_length(session: &mut Session, request: u32, bytes: usize, with: bool) -> Verdict {
    let file = memfd(PAGE)?;
    let descriptors = [file.as_fd()];
    let payload = vec![0; bytes];
    let reply = session.ask(request, &payload, if with { &descriptors } else { &[] })?;
    if request == code::EXTERNAL_MAP {
        // Who may not send it at all may be told so first.
        refused(reply)?;
    } else {
        refused_with(reply, libc::EINVAL)?;
    }
    in_step(session, &reply.to_string())
}

/// Shows that the stream is in step: a plain pair works.
fn in_step(session: &mut Session, seen: &str) -> Verdict {
    place(session, 0, PAGE)?;
    accepted(session.unmap(&Mmap::at(0, PAGE))?)?;
    Ok(format!("{seen}, then a pair"))
}

fn lengths() -> Vec<Case> {
    let rule = "a payload of a wrong length is refused, and the stream keeps step";
    let mut cases = Vec::new();
    for (name, request, with, wrong) in [
        (
            "map",
            code::MAP,
            true,
            &[0, 1, 39, 41, 48, 64, 255, 256][..],
        ),
        (
            "unmap",
            code::UNMAP,
            false,
            &[0, 1, 39, 41, 48, 64, 255, 256],
        ),
        ("config_change", code::CONFIG_CHANGE, false, &[1, 8, 40]),
        ("old_map", code::OLD_MAP, true, &[0, 31, 33, 40]),
        ("old_unmap", code::OLD_UNMAP, false, &[0, 23, 25, 40]),
        ("gpu_map", code::GPU_MAP, true, &[0, 63, 65]),
        ("external_map", code::EXTERNAL_MAP, false, &[0, 31, 33]),
    ] {
        cases.extend(wrong.iter().map(move |bytes| {
            let bytes = *bytes;
            Case::ours(
                format!("framing/{name}_of_{bytes}_bytes"),
                rule,
                move |session| wrong_length(session, request, bytes, with),
            )
        }));
    }
    cases
}

fn descriptor_counts() -> Vec<Case> {
    let rule = "a wrong number of descriptors is refused, and the stream keeps step";
    let count = |name: &str, request: u32, payload: Vec<u8>, count: usize| {
        Case::ours(
            format!("framing/{name}_with_{count}_descriptors"),
            rule,
            move |session| {
                let file = memfd(PAGE)?;
                let descriptors = vec![file.as_fd(); count];
                let reply = session.ask(request, &payload, &descriptors)?;
                refused_with(reply, libc::EINVAL)?;
                in_step(session, &reply.to_string())
            },
        )
    };
    let mmap = Mmap::at(0, PAGE).bytes();
    let mut cases: Vec<Case> = [0, 2, 3, 8, 9, 64, 253]
        .into_iter()
        .map(|number| count("map", code::MAP, mmap.clone(), number))
        .collect();
    cases.extend([
        count("unmap", code::UNMAP, mmap, 1),
        count("config_change", code::CONFIG_CHANGE, Vec::new(), 1),
        count("old_map", code::OLD_MAP, wire::old_map(1, 0, 0, 0, PAGE), 0),
        count("old_map", code::OLD_MAP, wire::old_map(1, 0, 0, 0, PAGE), 2),
        count("old_unmap", code::OLD_UNMAP, wire::old_unmap(0, 0, PAGE), 1),
        count("gpu_map", code::GPU_MAP, wire::gpu_map(0, PAGE), 0),
        count("gpu_map", code::GPU_MAP, wire::gpu_map(0, PAGE), 2),
        Case::ours(
            "framing/descriptor_on_a_later_byte",
            "descriptors ride on a message's first byte; elsewhere they are refused",
            |session| {
                let file = memfd(PAGE)?;
                let message = map_message();
                // In one write with an unmap, whose reply shows that the header has been read: what follows is its body.
                let hole = Mmap::at(0, PAGE).bytes();
                let unmap = wire::message(code::UNMAP, VERSION | NEED_REPLY, &hole);
                session.send(&[&unmap[..], &message[..HEADER_BYTES]].concat(), &[])?;
                refused(session.reply()?)?;
                session.send(&message[HEADER_BYTES..], &[file.as_fd()])?;
                let reply = session.reply()?;
                session.note(code::MAP, &Mmap::at(0, PAGE).bytes(), &reply);
                refused_with(reply, libc::EINVAL)?;
                in_step(session, &reply.to_string())
            },
        ),
    ]);
    cases
}

fn unknown_codes() -> Vec<Case> {
    let mut cases = Vec::new();
    for request in [
        0,
        11,
        12,
        13,
        41,
        999,
        1002,
        1003,
        1004,
        1005,
        1008,
        u32::MAX,
    ] {
        let rule = "a request of an unknown or abandoned code is refused in step";
        cases.push(Case::ours(
            format!("framing/code_{request}"),
            rule,
            move |session| {
                let bytes = if (1002..=1005).contains(&request) {
                    256
                } else {
                    8
                };
                let reply = session.ask(request, &vec![0; bytes], &[])?;
                refused(reply)?;
                in_step(session, &reply.to_string())
            },
        ));
    }
    cases.push(Case::ours(
        "framing/unknown_code_without_need_reply",
        "an unknown code that asks for no reply gets none",
        |session| {
            session.send(&wire::message(99, VERSION, &[0; 16]), &[])?;
            in_step(session, "nothing")
        },
    ));
    cases
}

/// Headers that cannot be trusted for framing.
pub(super) fn closing_cases() -> Vec<Case> {
    let rule = "a header that cannot be trusted for framing closes the channel, at once and without a reply";
    let good = VERSION | NEED_REPLY;
    [
        ("version_0", code::MAP, NEED_REPLY, 40),
        ("version_2", code::MAP, 2 | NEED_REPLY, 40),
        ("version_3", code::MAP, 3 | NEED_REPLY, 40),
        ("reply_flag", code::MAP, good | REPLY, 40),
        ("reserved_flag_4", code::MAP, good | 1 << 4, 40),
        ("reserved_flag_16", code::MAP, good | 1 << 16, 40),
        ("reserved_flag_31", code::MAP, good | 1 << 31, 40),
        ("size_257", code::MAP, good, 257),
        ("size_4096", code::MAP, good, 4096),
        ("size_of_2_gib", code::MAP, good, 1 << 31),
        ("size_of_all_ones", code::MAP, good, u32::MAX),
        ("size_of_all_ones_of_an_unknown_code", 99, good, u32::MAX),
    ]
    .into_iter()
    .map(|(name, request, flags, size)| {
        Case::ours(format!("closing/{name}"), rule, move |session| {
            session.send(&wire::header(request, flags, size), &[])?;
            session.expect_close()?;
            Ok("closed".to_owned())
        })
        .ending_the_channel()
    })
    .collect()
}
