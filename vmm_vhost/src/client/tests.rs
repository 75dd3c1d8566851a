//! The client against a frontend of raw bytes, and against our own server.

use base::scm;

use super::*;
use crate::ChannelConfig;
use crate::ExternalMap;
use crate::FrontendHandler;
use crate::FrontendServer;
use crate::HandlerResult;
use crate::ShmemMap;
use crate::ShmemUnmap;
use crate::message::CrosvmMapPayload;
use crate::message::CrosvmUnmapPayload;
use crate::message::ExternalMapPayload;
use crate::message::FsPayload;
use crate::message::GpuMapPayload;
use crate::message::IotlbPayload;
use crate::message::MmapPayload;
use crate::message::VringAreaPayload;
use crate::request::Uuid;
use crate::testing::Canary;
use crate::testing::RawPeer;
use crate::testing::everything;
use crate::testing::message;
use crate::testing::refusal;
use crate::testing::reply;

fn client(reply_ack: bool) -> (RawPeer, FrontendClient) {
    let (ours, theirs) = scm::stream_pair().expect("socket pair");
    (
        RawPeer { socket: theirs },
        FrontendClient::new(ours, reply_ack),
    )
}

/// Sends a request and compares its bytes and the number of its descriptors.
#[track_caller]
fn check_bytes(request: &Outgoing<'_>, ack: Ack, want: &[u8], descriptors: usize) {
    let (frontend, mut client) = client(true);
    client.send(request, ack).expect("the frontend is there");
    let (bytes, got) = frontend.read();
    assert_eq!(bytes, want);
    assert_eq!(got.len(), descriptors);
}

const UUID: Uuid = Uuid([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

#[test]
fn standard_requests_without_mappings_have_golden_bytes() {
    let canary = Canary::new();
    let iotlb = IotlbPayload {
        iova: 0x1000,
        permission: 3,
        kind: IotlbPayload::MISS,
        ..IotlbPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::iotlb(&iotlb), Ack::Wanted, &[
        1, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0,
        0x00, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        3, 1, 0, 0, 0, 0, 0, 0,
    ], 0);
    #[rustfmt::skip]
    check_bytes(&Outgoing::config_change(), Ack::Unwanted, &[
        2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    ], 0);
    let area = VringAreaPayload {
        index_and_flags: 5,
        size: 0x1000,
        offset: 0x2000,
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::vring_host_notifier(&area, Some(canary.fd())), Ack::Wanted, &[
        3, 0, 0, 0, 9, 0, 0, 0, 24, 0, 0, 0,
        5, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x10, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
    ], 1);
    #[rustfmt::skip]
    check_bytes(&Outgoing::vring_call(7), Ack::Wanted, &[
        4, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
    ], 0);
    #[rustfmt::skip]
    check_bytes(&Outgoing::vring_err(8), Ack::Wanted, &[
        5, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0,
        8, 0, 0, 0, 0, 0, 0, 0,
    ], 0);
    for (request, code) in [
        (Outgoing::shared_object_add(UUID), 6),
        (Outgoing::shared_object_remove(UUID), 7),
        (Outgoing::shared_object_lookup(UUID), 8),
    ] {
        #[rustfmt::skip]
        check_bytes(&request, Ack::Wanted, &[
            code, 0, 0, 0, 9, 0, 0, 0, 16, 0, 0, 0,
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
        ], 0);
    }
}

#[test]
fn standard_mapping_requests_have_golden_bytes() {
    let canary = Canary::new();
    let mmap = MmapPayload {
        shmid: 7,
        fd_offset: 0x1000,
        shm_offset: 0x2000,
        len: 0x3000,
        flags: MmapPayload::WRITABLE,
        ..MmapPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::shmem_map(&mmap, canary.fd()), Ack::Wanted, &[
        9, 0, 0, 0, 9, 0, 0, 0, 40, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x10, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
    ], 1);
    #[rustfmt::skip]
    check_bytes(&Outgoing::shmem_unmap(&mmap), Ack::Unwanted, &[
        10, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x10, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
    ], 0);
}

#[test]
fn crosvm_requests_have_golden_bytes() {
    let canary = Canary::new();
    let map = CrosvmMapPayload {
        flags: CrosvmMapPayload::READ,
        shmid: 7,
        shm_offset: 0x2000,
        fd_offset: 0x1000,
        len: 0x3000,
        ..CrosvmMapPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::crosvm_map(&map, canary.fd()), Ack::Unwanted, &[
        0xe8, 3, 0, 0, 1, 0, 0, 0, 32, 0, 0, 0,
        1, 7, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x10, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
    ], 1);
    let unmap = CrosvmUnmapPayload {
        shmid: 7,
        shm_offset: 0x2000,
        len: 0x3000,
        ..CrosvmUnmapPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::crosvm_unmap(&unmap), Ack::Unwanted, &[
        0xe9, 3, 0, 0, 1, 0, 0, 0, 24, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
    ], 0);
    let gpu = GpuMapPayload {
        shmid: 7,
        shm_offset: 0x2000,
        len: 0x3000,
        memory_idx: 4,
        handle_type: 5,
        device_uuid: [0xaa; 16],
        driver_uuid: [0xbb; 16],
        ..GpuMapPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::gpu_map(&gpu, canary.fd()), Ack::Unwanted, &[
        0xee, 3, 0, 0, 1, 0, 0, 0, 64, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
        4, 0, 0, 0, 5, 0, 0, 0,
        0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa,
        0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb,
        0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb,
    ], 1);
    let external = ExternalMapPayload {
        shmid: 7,
        shm_offset: 0x2000,
        len: 0x3000,
        ptr: 0x7fff_0000_1000,
        ..ExternalMapPayload::default()
    };
    #[rustfmt::skip]
    check_bytes(&Outgoing::external_map(&external), Ack::Unwanted, &[
        0xef, 3, 0, 0, 1, 0, 0, 0, 32, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x20, 0, 0, 0, 0, 0, 0,
        0x00, 0x30, 0, 0, 0, 0, 0, 0,
        0x00, 0x10, 0, 0, 0xff, 0x7f, 0, 0,
    ], 0);
}

#[test]
fn draft_and_raw_requests_have_golden_bytes() {
    let mut fs = FsPayload::default();
    fs.flags[7] = 1;
    let mut want = vec![0xec, 3, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0];
    want.extend([0; 248]);
    want.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    let request = Outgoing::fs(RequestCode::FS_SYNC, &fs, None);
    check_bytes(&request, Ack::Unwanted, &want, 0);

    let canary = Canary::new();
    let request = Outgoing::raw(RequestCode(12), &[5], Some(canary.fd())).expect("short");
    #[rustfmt::skip]
    check_bytes(&request, Ack::Wanted, &[12, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 5], 1);
    assert!(Outgoing::raw(RequestCode(12), &[0; 257], None).is_none());
}

#[test]
fn call_without_reply_ack_returns_at_once() {
    let (frontend, mut client) = client(false);
    client.config_change().expect("the frontend is there");
    assert_eq!(client.pending(), 0);
    assert_eq!(frontend.read_bytes(), [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    client.set_reply_ack(true);
    frontend.send(&reply(2, 0), &[]);
    client.config_change().expect("an acknowledgement");
    assert_eq!(frontend.read_bytes(), [2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
}

#[track_caller]
fn check_refusal(value: u64, errno: Option<i32>) {
    let (frontend, mut client) = client(true);
    frontend.send(&reply(2, value), &[]);
    let error = client.config_change().expect_err("a refusal");
    assert!(
        matches!(error, ClientError::Refused { code: RequestCode::CONFIG_CHANGE, value: got }
            if got == value),
        "{error:?}"
    );
    assert_eq!(error.errno(), errno.map(Errno::new));
}

#[test]
fn refusals_of_all_kinds_of_frontends_are_told() {
    check_refusal(0xffff_ffff_ffff_ffef, Some(libc::EEXIST));
    check_refusal(u64::MAX, Some(libc::EPERM));
    check_refusal(1, None); // QEMU
    check_refusal(i64::MIN.cast_unsigned(), None);
    check_refusal(0xffff_ffff_ffff_f000, None);
}

#[test]
fn replies_are_read_in_order_and_the_first_refusal_is_told_after_all() {
    let (frontend, mut client) = client(true);
    for _ in 0..4 {
        client
            .send(&Outgoing::config_change(), Ack::Wanted)
            .expect("the frontend is there");
    }
    client
        .send(&Outgoing::config_change(), Ack::Unwanted)
        .expect("the frontend is there");
    assert_eq!(client.pending(), 4);
    let replies = [
        reply(2, 0),
        refusal(2, libc::ENXIO),
        refusal(2, libc::EINVAL),
        reply(2, 0),
    ];
    frontend.send(&replies.concat(), &[]);
    let error = client.read_replies(4).expect_err("two refusals");
    assert_eq!(error.errno(), Some(Errno::new(libc::ENXIO)));
    assert_eq!(client.pending(), 0);
    assert!(matches!(
        client.read_reply(),
        Err(ClientError::NothingPending)
    ));
}

#[test]
fn call_before_earlier_replies_are_read_sends_nothing() {
    let (frontend, mut client) = client(true);
    client
        .send(&Outgoing::vring_call(1), Ack::Wanted)
        .expect("the frontend is there");
    frontend.read_bytes();
    assert!(matches!(
        client.config_change(),
        Err(ClientError::RepliesPending { count: 1 })
    ));
    assert_eq!(frontend.read_bytes(), [0u8; 0]);
}

#[test]
fn lookup_returns_the_descriptor_of_the_reply() {
    let (frontend, mut client) = client(false);
    let mut canary = Canary::new();
    frontend.send(&reply(8, 0), &[canary.fd()]);
    let found = client.shared_object_lookup(UUID).expect("an object");
    assert!(!canary.is_closed_elsewhere());
    drop(found);
    assert!(canary.is_closed_elsewhere());

    frontend.send(&refusal(8, libc::ENOENT), &[]);
    let error = client.shared_object_lookup(UUID).expect_err("no object");
    assert_eq!(error.errno(), Some(Errno::new(libc::ENOENT)));
}

#[test]
fn replies_with_wrong_descriptors_are_told_apart_and_close_them() {
    for (code, value, count) in [(8_u32, 0_u64, 0), (8, 0, 2), (8, 1, 1), (2, 0, 1)] {
        let (frontend, mut client) = client(true);
        let mut canary = Canary::new();
        frontend.send(&reply(code, value), &vec![canary.fd(); count]);
        let request = Outgoing::raw(RequestCode(code), &[], None).expect("short");
        let error = client.call(&request).expect_err("a bad reply");
        assert!(
            matches!(error, ClientError::ReplyDescriptors { got, .. } if got == count),
            "{error:?}"
        );
        assert!(canary.is_closed_elsewhere());
    }
}

#[test]
fn replies_that_do_not_fit_are_told_apart() {
    let (frontend, mut first) = client(true);
    frontend.send(&reply(4, 0), &[]);
    assert!(matches!(
        first.config_change(),
        Err(ClientError::UnexpectedReply {
            want: RequestCode::CONFIG_CHANGE,
            got: RequestCode::VRING_CALL
        })
    ));

    let (frontend, mut second) = client(true);
    frontend.send(&message(2, 0x5, &[0; 4]), &[]);
    assert!(matches!(
        second.config_change(),
        Err(ClientError::ReplySize { got: 4, .. })
    ));

    let (frontend, mut third) = client(true);
    frontend.send(&message(2, 0x1, &[0; 8]), &[]);
    assert!(matches!(
        third.config_change(),
        Err(ClientError::Connection(ConnectionError::Framing(
            FramingError::NotReply { .. }
        )))
    ));

    let (frontend, mut fourth) = client(true);
    drop(frontend);
    assert!(matches!(
        fourth.config_change(),
        Err(ClientError::Connection(ConnectionError::Closed {
            unfinished: 0
        }))
    ));
}

/// Accepts maps of an even shmid, remembers nothing.
struct Even;

impl FrontendHandler for Even {
    fn shmem_map(&mut self, map: ShmemMap) -> HandlerResult<u64> {
        if map.shmid.is_multiple_of(2) {
            Ok(0)
        } else {
            Err(Errno::new(libc::ENXIO))
        }
    }
    fn shmem_unmap(&mut self, _unmap: ShmemUnmap) -> HandlerResult<u64> {
        Ok(0)
    }
    fn external_map(&mut self, _map: ExternalMap) -> HandlerResult<u64> {
        Ok(0)
    }
}

#[test]
fn client_and_server_understand_each_other() {
    let (ours, theirs) = scm::stream_pair().expect("socket pair");
    let config = ChannelConfig {
        negotiated: everything(),
        peer: crate::Peer::InProcess,
        ..ChannelConfig::default()
    };
    let mut server = FrontendServer::new(ours, config, Even).expect("a valid configuration");
    let mut client = FrontendClient::new(theirs, true);
    let canary = Canary::new();

    let len = 0x1000;
    for shmid in 0..64 {
        let map = MmapPayload {
            shmid,
            len,
            ..MmapPayload::default()
        };
        client
            .shmem_map_nowait(&map, canary.fd(), Ack::Wanted)
            .expect("the frontend is there");
    }
    let unmap = MmapPayload {
        len,
        ..MmapPayload::default()
    };
    client
        .shmem_unmap_nowait(&unmap, Ack::Unwanted)
        .expect("the frontend is there");
    let crosvm = CrosvmMapPayload {
        flags: CrosvmMapPayload::WRITE,
        len,
        ..CrosvmMapPayload::default()
    };
    client
        .crosvm_map_nowait(&crosvm, canary.fd())
        .expect("the frontend is there");
    let crosvm = CrosvmUnmapPayload {
        len,
        ..CrosvmUnmapPayload::default()
    };
    client
        .crosvm_unmap_nowait(&crosvm)
        .expect("the frontend is there");
    assert_eq!(client.pending(), 66);

    while server.handle_readable().expect("the client is there") > 0 {}
    for shmid in 0..64 {
        let reply = client.read_reply().expect("a reply");
        let want = if shmid % 2 == 0 {
            0
        } else {
            failure(libc::ENXIO)
        };
        assert_eq!((reply.code, reply.value), (RequestCode::SHMEM_MAP, want));
    }
    client.read_replies(2).expect("both succeed");
    assert_eq!(client.pending(), 0);
}

fn failure(errno: i32) -> u64 {
    i64::from(-errno).cast_unsigned()
}

#[test]
fn socket_with_a_timeout_does_not_wait_for_ever() {
    let (ours, _theirs) = scm::stream_pair().expect("socket pair");
    let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(ours));
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(1)))
        .expect("a socket option");
    let mut client = FrontendClient::new(stream.into(), true);
    assert!(matches!(client.config_change(), Err(ClientError::TimedOut)));
}
