//! What was not negotiated is not served.

use std::os::fd::AsFd;

use super::Case;
use super::memfd;
use super::refused_with;
use crate::conform::session::PAGE;
use crate::conform::session::Profile;
use crate::conform::session::feature;
use crate::conform::wire;
use crate::conform::wire::Mmap;
use crate::conform::wire::code;

pub(super) fn cases() -> Vec<Case> {
    let uuid = vec![0x5a; 16];
    let state = vec![0; 8];
    let mut cases: Vec<Case> = [
        ("iotlb", code::IOTLB, vec![0; 32]),
        ("host_notifier", code::HOST_NOTIFIER, vec![0; 24]),
        ("vring_call", code::VRING_CALL, state.clone()),
        ("vring_err", code::VRING_ERR, state),
        ("shared_object_add", code::SHARED_OBJECT_ADD, uuid.clone()),
        (
            "shared_object_remove",
            code::SHARED_OBJECT_REMOVE,
            uuid.clone(),
        ),
        ("shared_object_lookup", code::SHARED_OBJECT_LOOKUP, uuid),
    ]
    .into_iter()
    .map(|(name, request, payload)| not_negotiated(name, request, payload, false, Profile::Full))
    .collect();
    let mmap = Mmap::at(0, PAGE).bytes();
    cases.extend([
        not_negotiated(
            "config_change",
            code::CONFIG_CHANGE,
            Vec::new(),
            false,
            Profile::Bare,
        ),
        not_negotiated("map", code::MAP, mmap.clone(), true, Profile::Bare),
        not_negotiated("unmap", code::UNMAP, mmap, false, Profile::Bare),
        not_negotiated(
            "old_map",
            code::OLD_MAP,
            wire::old_map(1, 0, 0, 0, PAGE),
            true,
            Profile::Bare,
        ),
        not_negotiated(
            "old_unmap",
            code::OLD_UNMAP,
            wire::old_unmap(0, 0, PAGE),
            false,
            Profile::Bare,
        ),
        not_negotiated(
            "gpu_map",
            code::GPU_MAP,
            wire::gpu_map(0, PAGE),
            true,
            Profile::Bare,
        ),
    ]);
    cases
}

fn not_negotiated(
    name: &str,
    request: u32,
    payload: Vec<u8>,
    with: bool,
    profile: Profile,
) -> Case {
    let rule = "what was not negotiated is answered ENOTSUP";
    Case::ours(format!("gates/{name}"), rule, move |session| {
        let file = memfd(PAGE)?;
        let descriptors = [file.as_fd()];
        let reply = session.ask(request, &payload, if with { &descriptors } else { &[] })?;
        refused_with(reply, libc::ENOTSUP)
    })
    .in_profile(profile, feature::REPLY_ACK)
}
