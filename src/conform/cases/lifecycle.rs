//! What becomes of mappings and half messages when a channel ends, seen from the next connection.

use std::os::fd::AsFd;

use super::Case;
use super::accepted;
use super::memfd;
use super::place;
use crate::conform::session::PAGE;
use crate::conform::wire;
use crate::conform::wire::Mmap;
use crate::conform::wire::NEED_REPLY;
use crate::conform::wire::VERSION;
use crate::conform::wire::code;

pub(super) fn cases() -> Vec<Case> {
    let gone = "mappings go when the backend goes: the next one finds its region empty";
    vec![
        Case::spec("lifecycle/disconnect_with_live_mappings", gone, |session| {
            for page in 0..8 {
                place(session, page * PAGE, PAGE)?;
            }
            Ok("disconnected with 8 live mappings".to_owned())
        })
        .ending_the_channel(),
        Case::spec(
            "lifecycle/region_is_empty_after_a_disconnect",
            gone,
            |session| {
                let file = memfd(8 * PAGE)?;
                accepted(session.map(&Mmap::at(0, 8 * PAGE), file.as_fd())?)
            },
        ),
        Case::ours(
            "lifecycle/disconnect_in_the_middle_of_a_header",
            "half a message at the end costs nobody but its sender",
            |session| {
                let message = wire::message(code::MAP, VERSION | NEED_REPLY, &[0; 40]);
                let file = memfd(PAGE)?;
                session.send(&message[..7], &[file.as_fd()])?;
                Ok("disconnected after 7 bytes".to_owned())
            },
        )
        .ending_the_channel(),
        Case::ours(
            "lifecycle/served_after_a_disconnect_in_a_header",
            "half a message at the end costs nobody but its sender",
            |session| {
                place(session, 0, PAGE)?;
                accepted(session.unmap(&Mmap::at(0, PAGE))?)
            },
        ),
        Case::ours(
            "lifecycle/disconnect_with_unread_replies",
            "replies that nobody reads cost nobody but who does not read them",
            |session| {
                let unmap = Mmap::at(0, PAGE).bytes();
                let unmap = wire::message(code::UNMAP, VERSION | NEED_REPLY, &unmap);
                session.send(&unmap.repeat(32), &[])?;
                Ok("disconnected with 32 replies to come".to_owned())
            },
        )
        .ending_the_channel(),
        Case::ours(
            "lifecycle/served_after_unread_replies",
            "replies that nobody reads cost nobody but who does not read them",
            |session| {
                place(session, 0, PAGE)?;
                accepted(session.unmap(&Mmap::at(0, PAGE))?)
            },
        ),
    ]
}
