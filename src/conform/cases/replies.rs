//! When a reply comes, what it says, and in which order.

use std::os::fd::AsFd;

use super::Case;
use super::accepted;
use super::memfd;
use super::place;
use super::refused;
use crate::conform::session::PAGE;
use crate::conform::session::Profile;
use crate::conform::session::feature;
use crate::conform::wire;
use crate::conform::wire::Mmap;
use crate::conform::wire::NEED_REPLY;
use crate::conform::wire::VERSION;
use crate::conform::wire::code;

const MANY: u64 = 64;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = acks();
    cases.extend(silence());
    cases.extend(order());
    cases.extend(without_acks());
    cases
}

fn acks() -> Vec<Case> {
    let rule = "a request with need_reply gets a reply: 0 on success";
    vec![
        Case::spec("replies/map_is_acknowledged", rule, |session| {
            let file = memfd(PAGE)?;
            accepted(session.map(&Mmap::at(0, PAGE), file.as_fd())?)
        }),
        Case::spec("replies/unmap_is_acknowledged", rule, |session| {
            place(session, 0, PAGE)?;
            accepted(session.unmap(&Mmap::at(0, PAGE))?)
        }),
        Case::spec("replies/config_change_is_acknowledged", rule, |session| {
            accepted(session.ask(code::CONFIG_CHANGE, &[], &[])?)
        })
        .in_profile(Profile::Full, feature::REPLY_ACK | feature::CONFIG),
        Case::spec(
            "replies/refusal_leaves_the_channel_alive",
            "a failure is an answer; the channel goes on",
            |session| {
                let first = session.unmap(&Mmap::at(0, PAGE))?;
                refused(first)?;
                place(session, 0, PAGE)?;
                Ok(format!("{first}, then success"))
            },
        ),
        Case::ours(
            "replies/failure_is_a_negated_errno",
            "a failure's value is -errno in two's complement",
            |session| {
                let reply = session.unmap(&Mmap::at(0, PAGE))?;
                match reply.errno() {
                    Some(errno) if errno > 0 => Ok(reply.to_string()),
                    _ => Err(reply.to_string().into()),
                }
            },
        ),
    ]
}

/// Each sends something that gets no reply, and then something that does: the first reply must be the second one's.
fn silence() -> Vec<Case> {
    let rule = "without need_reply there is no reply, for a failure either";
    vec![
        Case::spec(
            "replies/map_without_need_reply_gets_none",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                let map = wire::message(code::MAP, VERSION, &Mmap::at(0, PAGE).bytes());
                session.send(&map, &[file.as_fd()])?;
                accepted(session.unmap(&Mmap::at(0, PAGE))?)
            },
        ),
        Case::spec(
            "replies/refused_map_without_need_reply_gets_none",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                let map = wire::message(code::MAP, VERSION, &Mmap::at(0, 0).bytes());
                session.send(&map, &[file.as_fd()])?;
                // As a request of another code follows, its reply cannot be mistaken.
                refused(session.unmap(&Mmap::at(0, PAGE))?)
            },
        ),
        Case::spec(
            "replies/refused_unmap_without_need_reply_gets_none",
            rule,
            |session| {
                let unmap = wire::message(code::UNMAP, VERSION, &Mmap::at(0, PAGE).bytes());
                session.send(&unmap, &[])?;
                place(session, 0, PAGE)?;
                Ok("the next request's reply".to_owned())
            },
        ),
        Case::spec(
            "replies/config_change_without_need_reply_gets_none",
            rule,
            |session| {
                session.send(&wire::message(code::CONFIG_CHANGE, VERSION, &[]), &[])?;
                refused(session.unmap(&Mmap::at(0, PAGE))?)
            },
        ),
    ]
}

fn order() -> Vec<Case> {
    let rule = "requests are executed in order, replies keep that order";
    vec![
        Case::spec(
            "replies/pipelined_maps_are_answered_in_order",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                for index in 0..MANY {
                    let mmap = Mmap::at(index * PAGE, PAGE).bytes();
                    let map = wire::message(code::MAP, VERSION | NEED_REPLY, &mmap);
                    session.send(&map, &[file.as_fd()])?;
                }
                for index in 0..MANY {
                    let reply = session.reply()?;
                    session.note(code::MAP, &Mmap::at(index * PAGE, PAGE).bytes(), &reply);
                    accepted(reply)?;
                }
                Ok(format!("{MANY} replies"))
            },
        ),
        Case::spec(
            "replies/refusals_are_answered_in_their_place",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                for index in 0..MANY / 2 {
                    let mmap = Mmap::at(index * PAGE, PAGE).bytes();
                    let map = wire::message(code::MAP, VERSION | NEED_REPLY, &mmap);
                    session.send(&map, &[file.as_fd()])?;
                    let hole = Mmap::at((MANY + index) * PAGE, PAGE).bytes();
                    let unmap = wire::message(code::UNMAP, VERSION | NEED_REPLY, &hole);
                    session.send(&unmap, &[])?;
                }
                for index in 0..MANY / 2 {
                    let reply = session.reply()?;
                    session.note(code::MAP, &Mmap::at(index * PAGE, PAGE).bytes(), &reply);
                    accepted(reply)?;
                    let reply = session.reply()?;
                    if reply.code != code::UNMAP {
                        return Err(format!("{reply} in the place of an unmap").into());
                    }
                    refused(reply)?;
                }
                Ok(format!("{MANY} replies"))
            },
        ),
        Case::spec(
            "replies/ack_on_the_last_covers_those_before",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                for index in 0..MANY - 1 {
                    let mmap = Mmap::at(index * PAGE, PAGE).bytes();
                    session.send(&wire::message(code::MAP, VERSION, &mmap), &[file.as_fd()])?;
                }
                accepted(session.map(&Mmap::at((MANY - 1) * PAGE, PAGE), file.as_fd())?)?;
                for index in 0..MANY - 1 {
                    accepted(session.unmap(&Mmap::at(index * PAGE, PAGE))?)?;
                }
                Ok(format!("{MANY} mapped with one reply"))
            },
        ),
        Case::spec(
            "replies/map_and_unmap_of_one_place_pipelined",
            rule,
            |session| {
                let file = memfd(PAGE)?;
                let mmap = Mmap::at(0, PAGE).bytes();
                for _ in 0..MANY / 2 {
                    let map = wire::message(code::MAP, VERSION | NEED_REPLY, &mmap);
                    session.send(&map, &[file.as_fd()])?;
                    let unmap = wire::message(code::UNMAP, VERSION | NEED_REPLY, &mmap);
                    session.send(&unmap, &[])?;
                }
                for _ in 0..MANY {
                    accepted(session.reply()?)?;
                }
                Ok(format!("{MANY} replies"))
            },
        ),
    ]
}

fn without_acks() -> Vec<Case> {
    let always = |name: &'static str, code: u32, payload: Vec<u8>, with: bool| {
        let rule = "this request is always answered, whatever was negotiated";
        Case::ours(name, rule, move |session| {
            let file = memfd(PAGE)?;
            let descriptors = [file.as_fd()];
            let message = wire::message(code, VERSION, &payload);
            session.send(&message, if with { &descriptors } else { &[] })?;
            let reply = session.reply()?;
            session.note(code, &payload, &reply);
            if reply.code == code {
                Ok(reply.to_string())
            } else {
                Err(reply.to_string().into())
            }
        })
        .in_profile(Profile::WithoutReplyAck, feature::SHMEM)
        .ending_the_channel()
    };
    vec![
        Case::spec(
            "replies/need_reply_without_reply_ack_gets_none",
            "without REPLY_ACK need_reply is void",
            |session| {
                let file = memfd(PAGE)?;
                let mmap = Mmap::at(0, PAGE).bytes();
                let map = wire::message(code::MAP, VERSION | NEED_REPLY, &mmap);
                session.send(&map, &[file.as_fd()])?;
                // The older dialect's unmap is always answered; its reply must be the first to come.
                let unmap = wire::message(code::OLD_UNMAP, VERSION, &wire::old_unmap(0, 0, PAGE));
                session.send(&unmap, &[])?;
                let reply = session.reply()?;
                if reply.code == code::OLD_UNMAP {
                    accepted(reply)
                } else {
                    Err(reply.to_string().into())
                }
            },
        )
        .in_profile(Profile::WithoutReplyAck, feature::SHMEM)
        .ending_the_channel(),
        always(
            "replies/old_map_is_always_answered",
            code::OLD_MAP,
            wire::old_map(1, 0, 0, 0, PAGE),
            true,
        ),
        always(
            "replies/old_unmap_is_always_answered",
            code::OLD_UNMAP,
            wire::old_unmap(0, 0, PAGE),
            false,
        ),
        always(
            "replies/gpu_map_is_always_answered",
            code::GPU_MAP,
            wire::gpu_map(0, PAGE),
            true,
        ),
        always(
            "replies/external_map_is_always_answered",
            code::EXTERNAL_MAP,
            wire::external_map(0, PAGE, 0x1000),
            false,
        ),
    ]
}
