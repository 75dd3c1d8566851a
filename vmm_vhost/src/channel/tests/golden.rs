//! Golden bytes of every message, typed by hand, in; and of its answers, out.

use base::Error as Errno;
use base::Protection;

use crate::BackendRequest;
use crate::ExternalMap;
use crate::Incoming;
use crate::Iotlb;
use crate::Peer;
use crate::RequestChannel;
use crate::ShmemUnmap;
use crate::Uuid;
use crate::message::Dialect;
use crate::testing::Canary;
use crate::testing::RawPeer;
use crate::testing::channel_with;
use crate::testing::everything;
use crate::testing::take_all;

/// Sends one message and returns the request that it became.
#[track_caller]
fn accept(bytes: &[u8], canaries: &[&Canary]) -> (RawPeer, RequestChannel, Incoming) {
    let (peer, mut channel) = channel_with(everything(), Peer::InProcess);
    let descriptors: Vec<_> = canaries.iter().map(|canary| canary.fd()).collect();
    peer.send(bytes, &descriptors);
    let mut taken = take_all(&mut channel);
    assert_eq!(taken.len(), 1, "refused: {:?}", channel.last_refused());
    let incoming = taken.remove(0);
    (peer, channel, incoming)
}

/// Completes a request with success and with EEXIST and compares the replies' bytes.
#[track_caller]
fn check_replies(bytes: &[u8], descriptor: bool, code: [u8; 4]) {
    let [a, b, c, d] = code;
    #[rustfmt::skip]
    let success = [
        a, b, c, d, 5, 0, 0, 0, 8, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    let failure = [
        a, b, c, d, 5, 0, 0, 0, 8, 0, 0, 0,
        0xef, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // -17
    ];
    for (result, want) in [(Ok(0), success), (Err(Errno::new(libc::EEXIST)), failure)] {
        let canary = Canary::new();
        let canaries = if descriptor { &[&canary][..] } else { &[] };
        let (peer, mut channel, incoming) = accept(bytes, canaries);
        channel.complete(incoming.ticket, result);
        channel.flush().expect("the peer is there");
        assert_eq!(peer.read_bytes(), want);
    }
}

#[rustfmt::skip]
const IOTLB_MISS: [u8; 44] = [
    1, 0, 0, 0, 0x9, 0, 0, 0, 32, 0, 0, 0,
    0x00, 0x10, 0, 0, 0, 0, 0, 0, // iova
    0x00, 0x20, 0, 0, 0, 0, 0, 0, // size
    0, 0, 0, 0, 0, 0, 0, 0, // uaddr
    2, 1, 0xff, 0xff, 0, 0, 0, 0, // permission, kind, padding that is not zero
];

#[test]
fn iotlb_miss_is_accepted() {
    let (_peer, _channel, incoming) = accept(&IOTLB_MISS, &[]);
    let BackendRequest::IotlbMiss(iotlb) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(
        iotlb,
        Iotlb {
            iova: 0x1000,
            size: 0x2000,
            access: Protection::write(),
        }
    );
    check_replies(&IOTLB_MISS, false, [1, 0, 0, 0]);
}

#[test]
fn iotlb_access_fail_is_accepted() {
    let mut bytes = IOTLB_MISS;
    bytes[36] = 1; // permission
    bytes[37] = 4; // kind
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(
            incoming.request,
            BackendRequest::IotlbAccessFail(Iotlb { access, .. }) if access == Protection::read()
        ),
        "{incoming:?}"
    );
}

#[test]
fn config_change_is_accepted() {
    let bytes = [2, 0, 0, 0, 0x9, 0, 0, 0, 0, 0, 0, 0];
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::ConfigChange),
        "{incoming:?}"
    );
    check_replies(&bytes, false, [2, 0, 0, 0]);
}

#[rustfmt::skip]
const HOST_NOTIFIER: [u8; 36] = [
    3, 0, 0, 0, 0x9, 0, 0, 0, 24, 0, 0, 0,
    2, 0, 0, 0, 0, 0, 0, 0, // queue 2
    0x00, 0x10, 0, 0, 0, 0, 0, 0, // size
    0x00, 0x30, 0, 0, 0, 0, 0, 0, // offset
];

#[test]
fn vring_host_notifier_with_a_page_is_accepted() {
    let mut canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&HOST_NOTIFIER, &[&canary]);
    let BackendRequest::VringHostNotifier(notifier) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(notifier.queue, 2);
    let area = notifier.area.expect("a page came along");
    assert_eq!((area.offset, area.size), (0x3000, 0x1000));
    assert!(!canary.is_closed_elsewhere());
    drop(area);
    assert!(canary.is_closed_elsewhere());
    check_replies(&HOST_NOTIFIER, true, [3, 0, 0, 0]);
}

#[test]
fn vring_host_notifier_that_goes_is_accepted_whatever_its_size() {
    let mut bytes = HOST_NOTIFIER;
    bytes[12] = 0xff;
    bytes[13] = 1; // bit 8: no descriptor
    bytes[21] = 0; // size 0
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    let BackendRequest::VringHostNotifier(notifier) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(notifier.queue, 255);
    assert!(notifier.area.is_none());
}

#[test]
fn vring_call_is_accepted() {
    let bytes = [4, 0, 0, 0, 0x9, 0, 0, 0, 8, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0];
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::VringCall(0x201)),
        "{incoming:?}"
    );
    check_replies(&bytes, false, [4, 0, 0, 0]);
}

#[test]
fn vring_err_is_accepted() {
    let bytes = [5, 0, 0, 0, 0x9, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::VringErr(7)),
        "{incoming:?}"
    );
    check_replies(&bytes, false, [5, 0, 0, 0]);
}

#[rustfmt::skip]
const OBJECT_ADD: [u8; 28] = [
    6, 0, 0, 0, 0x9, 0, 0, 0, 16, 0, 0, 0,
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
];
const UUID: Uuid = Uuid([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

#[test]
fn shared_object_add_is_accepted() {
    let (_peer, _channel, incoming) = accept(&OBJECT_ADD, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::SharedObjectAdd(uuid) if uuid == UUID),
        "{incoming:?}"
    );
    check_replies(&OBJECT_ADD, false, [6, 0, 0, 0]);
}

#[test]
fn shared_object_remove_is_accepted() {
    let mut bytes = OBJECT_ADD;
    bytes[0] = 7;
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::SharedObjectRemove(uuid) if uuid == UUID),
        "{incoming:?}"
    );
    check_replies(&bytes, false, [7, 0, 0, 0]);
}

/// A lookup that doesn't ask for a reply: it gets one all the same.
#[rustfmt::skip]
const LOOKUP: [u8; 28] = [
    8, 0, 0, 0, 0x1, 0, 0, 0, 16, 0, 0, 0,
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
];

#[test]
fn shared_object_lookup_is_answered_with_one_descriptor() {
    let (peer, mut channel, incoming) = accept(&LOOKUP, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::SharedObjectLookup(uuid) if uuid == UUID),
        "{incoming:?}"
    );
    let mut canary = Canary::new();
    let found = canary.fd().try_clone_to_owned().expect("a duplicate");
    channel.complete_with_descriptor(incoming.ticket, found.into());
    channel.flush().expect("the peer is there");
    let (bytes, descriptors) = peer.read();
    assert_eq!(
        bytes,
        [8, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(descriptors.len(), 1);
    assert!(!canary.is_closed_elsewhere());
    drop(descriptors);
    assert!(canary.is_closed_elsewhere());
}

#[test]
fn shared_object_lookup_without_descriptor_is_no_success() {
    for (result, low) in [
        (Ok(0), 0xfe),                         // ENOENT
        (Err(Errno::new(libc::EEXIST)), 0xef), // as given
    ] {
        let (peer, mut channel, incoming) = accept(&LOOKUP, &[]);
        channel.complete(incoming.ticket, result);
        channel.flush().expect("the peer is there");
        let (bytes, descriptors) = peer.read();
        #[rustfmt::skip]
        let want = [
            8, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0,
            low, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ];
        assert_eq!(bytes, want);
        assert!(descriptors.is_empty());
    }
}

#[test]
fn shared_object_lookup_with_a_descriptor_of_its_own_is_accepted_and_closes_it() {
    let mut canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&LOOKUP, &[&canary]);
    assert!(
        matches!(incoming.request, BackendRequest::SharedObjectLookup(uuid) if uuid == UUID),
        "{incoming:?}"
    );
    assert!(canary.is_closed_elsewhere());
}

#[rustfmt::skip]
const SHMEM_MAP: [u8; 52] = [
    9, 0, 0, 0, 0x9, 0, 0, 0, 40, 0, 0, 0,
    7, 1, 2, 3, 4, 5, 6, 7, // shmid, padding that is not zero
    0x00, 0x10, 0, 0, 0, 0, 0, 0, // fd_offset
    0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
    0x00, 0x08, 0x07, 0, 0, 0, 0, 0, // len, no page multiple
    1, 0, 0, 0, 0, 0, 0, 0, // flags
];

#[test]
fn shmem_map_is_accepted() {
    let mut canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&SHMEM_MAP, &[&canary]);
    let BackendRequest::ShmemMap(map) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(map.shmid, 7);
    assert_eq!(map.fd_offset, 0x1000);
    assert_eq!(map.shm_offset, 0x20_0000);
    assert_eq!(map.len, 0x7_0800);
    assert_eq!(map.protection, Protection::read_write());
    assert_eq!(map.dialect, Dialect::Standard);
    assert!(!canary.is_closed_elsewhere());
    drop(map);
    assert!(canary.is_closed_elsewhere());
    check_replies(&SHMEM_MAP, true, [9, 0, 0, 0]);
}

#[test]
fn shmem_map_without_the_write_flag_is_read_only() {
    let mut bytes = SHMEM_MAP;
    bytes[44] = 0;
    let canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&bytes, &[&canary]);
    assert!(
        matches!(&incoming.request, BackendRequest::ShmemMap(map)
            if map.protection == Protection::read()),
        "{incoming:?}"
    );
}

#[rustfmt::skip]
const SHMEM_UNMAP: [u8; 52] = [
    10, 0, 0, 0, 0x9, 0, 0, 0, 40, 0, 0, 0,
    7, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
    0, 0, 0, 0, 0, 0, 0, 0, // fd_offset
    0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
    1, 0, 0, 0, 0, 0, 0, 0, // len
    0, 0, 0, 0, 0, 0, 0, 0, // flags
];

#[test]
fn shmem_unmap_is_accepted() {
    let (_peer, _channel, incoming) = accept(&SHMEM_UNMAP, &[]);
    let BackendRequest::ShmemUnmap(unmap) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(
        unmap,
        ShmemUnmap {
            shmid: 7,
            shm_offset: 0x20_0000,
            len: 1,
            dialect: Dialect::Standard,
        }
    );
    check_replies(&SHMEM_UNMAP, false, [10, 0, 0, 0]);
}

#[test]
fn shmem_unmap_that_repeats_the_maps_payload_is_accepted() {
    let mut bytes = SHMEM_MAP;
    bytes[0] = 10;
    bytes[20] = 0x33; // fd_offset is not looked at
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    assert!(
        matches!(incoming.request, BackendRequest::ShmemUnmap(unmap) if unmap.len == 0x7_0800),
        "{incoming:?}"
    );
}

#[rustfmt::skip]
const CROSVM_MAP: [u8; 44] = [
    0xe8, 3, 0, 0, 0x1, 0, 0, 0, 32, 0, 0, 0,
    1, 7, 9, 9, 9, 9, 9, 9, // flags, shmid, padding that is not zero
    0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
    0x00, 0x10, 0, 0, 0, 0, 0, 0, // fd_offset
    0x00, 0x30, 0, 0, 0, 0, 0, 0, // len
];

#[test]
fn crosvm_shmem_map_is_accepted_and_answered_unasked() {
    let canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&CROSVM_MAP, &[&canary]);
    let BackendRequest::ShmemMap(map) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(map.shmid, 7);
    assert_eq!(map.shm_offset, 0x20_0000);
    assert_eq!(map.fd_offset, 0x1000);
    assert_eq!(map.len, 0x3000);
    assert_eq!(map.protection, Protection::read());
    assert_eq!(map.dialect, Dialect::Crosvm);
    check_replies(&CROSVM_MAP, true, [0xe8, 3, 0, 0]);
}

#[test]
fn crosvm_shmem_map_that_can_be_written_can_be_read() {
    for flags in [2, 3] {
        let mut bytes = CROSVM_MAP;
        bytes[12] = flags;
        let canary = Canary::new();
        let (_peer, _channel, incoming) = accept(&bytes, &[&canary]);
        assert!(
            matches!(&incoming.request, BackendRequest::ShmemMap(map)
                if map.protection == Protection::read_write()),
            "{incoming:?}"
        );
    }
}

#[test]
fn crosvm_shmem_unmap_is_accepted_and_answered_unasked() {
    #[rustfmt::skip]
    let bytes = [
        0xe9, 3, 0, 0, 0x1, 0, 0, 0, 24, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
        0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
        0x00, 0x30, 0, 0, 0, 0, 0, 0, // len
    ];
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    let BackendRequest::ShmemUnmap(unmap) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(
        unmap,
        ShmemUnmap {
            shmid: 7,
            shm_offset: 0x20_0000,
            len: 0x3000,
            dialect: Dialect::Crosvm,
        }
    );
    check_replies(&bytes, false, [0xe9, 3, 0, 0]);
}

#[test]
fn gpu_map_is_accepted_and_answered_unasked() {
    #[rustfmt::skip]
    let bytes = [
        0xee, 3, 0, 0, 0x1, 0, 0, 0, 64, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
        0x00, 0x10, 0, 0, 0, 0, 0, 0, // shm_offset
        0x00, 0x20, 0, 0, 0, 0, 0, 0, // len
        5, 0, 0, 0, 0x02, 0x01, 0, 0, // memory_idx, handle_type
        0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, // device_uuid
        0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, // driver_uuid
        0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb,
    ];
    let canary = Canary::new();
    let (_peer, _channel, incoming) = accept(&bytes, &[&canary]);
    let BackendRequest::GpuMap(map) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!((map.shmid, map.shm_offset, map.len), (1, 0x1000, 0x2000));
    assert_eq!((map.memory_idx, map.handle_type), (5, 0x102));
    assert_eq!(map.device_uuid, [0xaa; 16]);
    assert_eq!(map.driver_uuid, [0xbb; 16]);
    check_replies(&bytes, true, [0xee, 3, 0, 0]);
}

#[test]
fn external_map_of_an_in_process_backend_is_accepted_and_answered_unasked() {
    #[rustfmt::skip]
    let bytes = [
        0xef, 3, 0, 0, 0x1, 0, 0, 0, 32, 0, 0, 0,
        2, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
        0x00, 0x10, 0, 0, 0, 0, 0, 0, // shm_offset
        0x00, 0x20, 0, 0, 0, 0, 0, 0, // len
        0x00, 0x50, 0x34, 0x12, 0xff, 0x7f, 0, 0, // ptr
    ];
    let (_peer, _channel, incoming) = accept(&bytes, &[]);
    let BackendRequest::ExternalMap(map) = incoming.request else {
        panic!("{incoming:?}");
    };
    assert_eq!(
        map,
        ExternalMap {
            shmid: 2,
            shm_offset: 0x1000,
            len: 0x2000,
            ptr: 0x7fff_1234_5000,
        }
    );
    check_replies(&bytes, false, [0xef, 3, 0, 0]);
}
