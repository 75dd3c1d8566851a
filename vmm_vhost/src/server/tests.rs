//! Handlers behind the server, against a peer of raw bytes.

use std::collections::VecDeque;

use super::*;
use crate::message::Dialect;
use crate::testing::Canary;
use crate::testing::RawPeer;
use crate::testing::everything;
use crate::testing::message;
use crate::testing::refusal;
use crate::testing::reply;

/// Writes down what it is asked and answers from a list, with 0 after its end.
#[derive(Debug, Default)]
struct Script {
    seen: Vec<String>,
    answers: VecDeque<HandlerResult<u64>>,
    object: Option<SafeDescriptor>,
}

impl Script {
    fn note(&mut self, what: String) -> HandlerResult<u64> {
        self.seen.push(what);
        self.answers.pop_front().unwrap_or(Ok(0))
    }
}

impl FrontendHandler for Script {
    fn iotlb_miss(&mut self, miss: Iotlb) -> HandlerResult<u64> {
        self.note(format!("miss {:#x}", miss.iova))
    }
    fn iotlb_access_fail(&mut self, fail: Iotlb) -> HandlerResult<u64> {
        self.note(format!("access fail {:#x}", fail.iova))
    }
    fn config_change(&mut self) -> HandlerResult<u64> {
        self.note("config change".to_owned())
    }
    fn vring_host_notifier(&mut self, notifier: VringHostNotifier) -> HandlerResult<u64> {
        let comes = notifier.area.is_some();
        self.note(format!("host notifier {} {comes}", notifier.queue))
    }
    fn vring_call(&mut self, queue: u32) -> HandlerResult<u64> {
        self.note(format!("call {queue}"))
    }
    fn vring_err(&mut self, queue: u32) -> HandlerResult<u64> {
        self.note(format!("err {queue}"))
    }
    fn shared_object_add(&mut self, uuid: Uuid) -> HandlerResult<u64> {
        self.note(format!("add {}", uuid.0[0]))
    }
    fn shared_object_remove(&mut self, uuid: Uuid) -> HandlerResult<u64> {
        self.note(format!("remove {}", uuid.0[0]))
    }
    fn shared_object_lookup(&mut self, uuid: Uuid) -> HandlerResult<SafeDescriptor> {
        self.seen.push(format!("lookup {}", uuid.0[0]));
        self.object.take().ok_or(Errno::new(libc::ENOENT))
    }
    fn shmem_map(&mut self, map: ShmemMap) -> HandlerResult<u64> {
        self.note(format!("{:?} map {:#x}", map.dialect, map.len))
    }
    fn shmem_unmap(&mut self, unmap: ShmemUnmap) -> HandlerResult<u64> {
        self.note(format!("{:?} unmap {:#x}", unmap.dialect, unmap.len))
    }
    fn gpu_map(&mut self, map: GpuMap) -> HandlerResult<u64> {
        self.note(format!("gpu {:#x}", map.len))
    }
    fn external_map(&mut self, map: ExternalMap) -> HandlerResult<u64> {
        self.note(format!("external {:#x}", map.ptr))
    }
}

/// Implements nothing.
struct Nothing;

impl FrontendHandler for Nothing {}

fn server<H: FrontendHandler>(handler: H) -> (RawPeer, FrontendServer<H>) {
    let (ours, theirs) = base::scm::stream_pair().expect("socket pair");
    let config = ChannelConfig {
        negotiated: everything(),
        max_in_flight: 16,
        peer: crate::Peer::InProcess,
        has_timeout: false,
        strict: false,
    };
    let server = FrontendServer::new(ours, config, handler).expect("a valid configuration");
    (RawPeer { socket: theirs }, server)
}

const ZERO: [u8; 8] = [0; 8];
const PAGE: [u8; 8] = [0x00, 0x10, 0, 0, 0, 0, 0, 0];

/// One message of every served code with need_reply, with the number of its descriptors.
fn every_message() -> Vec<(u32, Vec<u8>, usize)> {
    let mmap = [ZERO, ZERO, PAGE, PAGE, ZERO].concat();
    let gpu = [&[ZERO, ZERO, PAGE].concat()[..], &[0; 40]].concat();
    vec![
        (1, [PAGE, ZERO, ZERO, [1, 1, 0, 0, 0, 0, 0, 0]].concat(), 0),
        (1, [PAGE, ZERO, ZERO, [1, 4, 0, 0, 0, 0, 0, 0]].concat(), 0),
        (2, vec![], 0),
        (3, [ZERO, PAGE, ZERO].concat(), 1),
        (4, vec![1, 0, 0, 0, 0, 0, 0, 0], 0),
        (5, vec![2, 0, 0, 0, 0, 0, 0, 0], 0),
        (6, vec![6; 16], 0),
        (7, vec![7; 16], 0),
        (8, vec![8; 16], 0),
        (9, mmap.clone(), 1),
        (10, mmap, 0),
        (
            1000,
            [[1, 0, 0, 0, 0, 0, 0, 0], ZERO, ZERO, PAGE].concat(),
            1,
        ),
        (1001, [ZERO, ZERO, PAGE].concat(), 0),
        (1006, gpu, 1),
        (1007, [ZERO, ZERO, PAGE, PAGE].concat(), 0),
    ]
}

fn send_every_message(peer: &RawPeer) {
    let canary = Canary::new();
    for (code, payload, descriptors) in every_message() {
        peer.send(
            &message(code, 0x9, &payload),
            &vec![canary.fd(); descriptors],
        );
    }
}

#[test]
fn every_message_reaches_its_method_and_is_answered() {
    let object = Canary::new();
    let (peer, mut server) = server(Script {
        object: Some(
            object
                .fd()
                .try_clone_to_owned()
                .expect("a duplicate")
                .into(),
        ),
        ..Script::default()
    });
    send_every_message(&peer);
    assert!(matches!(server.handle_readable(), Ok(15)));
    assert_eq!(
        server.handler().seen,
        [
            "miss 0x1000",
            "access fail 0x1000",
            "config change",
            "host notifier 0 true",
            "call 1",
            "err 2",
            "add 6",
            "remove 7",
            "lookup 8",
            "Standard map 0x1000",
            "Standard unmap 0x1000",
            "Crosvm map 0x1000",
            "Crosvm unmap 0x1000",
            "gpu 0x1000",
            "external 0x1000",
        ]
    );
    let (bytes, descriptors) = peer.read();
    let want: Vec<u8> = every_message()
        .iter()
        .flat_map(|(code, ..)| reply(*code, 0))
        .collect();
    assert_eq!(bytes, want);
    assert_eq!(descriptors.len(), 1);
}

#[test]
fn handler_that_implements_nothing_refuses_everything_with_enosys() {
    let (peer, mut server) = server(Nothing);
    send_every_message(&peer);
    assert!(matches!(server.handle_readable(), Ok(15)));
    let (bytes, descriptors) = peer.read();
    let want: Vec<u8> = every_message()
        .iter()
        .flat_map(|(code, ..)| refusal(*code, libc::ENOSYS))
        .collect();
    assert_eq!(bytes, want);
    assert!(descriptors.is_empty());
}

#[test]
fn handlers_errno_and_value_are_the_answer() {
    let (peer, mut server) = server(Script {
        answers: [Err(Errno::new(libc::EDQUOT)), Ok(7), Ok(0)].into(),
        ..Script::default()
    });
    let config_change = message(2, 0x9, &[]);
    peer.send(&config_change.repeat(3), &[]);
    assert!(matches!(server.handle_readable(), Ok(3)));
    assert_eq!(
        peer.read_bytes(),
        [refusal(2, libc::EDQUOT), reply(2, 7), reply(2, 0)].concat()
    );
}

#[test]
fn malformed_message_does_not_reach_the_handler() {
    let (peer, mut server) = server(Script::default());
    peer.send(&message(9, 0x9, &[0; 40]), &[]);
    peer.send(&message(2, 0x9, &[]), &[]);
    assert!(matches!(server.handle_readable(), Ok(1)));
    assert_eq!(server.handler().seen, ["config change"]);
    assert_eq!(
        peer.read_bytes(),
        [refusal(9, libc::EINVAL), reply(2, 0)].concat()
    );
}

#[test]
fn peer_that_reads_late_gets_all_replies_in_order() {
    let (peer, mut server) = server(Script::default());
    let mut sent = 0_u32;
    while !server.wants_write() || server.wants_read() {
        let call = message(4, 0x9, &[sent.to_ne_bytes(), [0; 4]].concat());
        peer.send(&call, &[]);
        sent += 1;
        server.handle_readable().expect("the peer is there");
    }
    // Requests are left on the socket and in the buffer now; none is lost.
    for _ in 0..100 {
        peer.send(
            &message(4, 0x9, &[sent.to_ne_bytes(), [0; 4]].concat()),
            &[],
        );
        sent += 1;
    }
    let mut replies = 0;
    while replies < sent as usize * 20 {
        replies += peer.read_bytes().len();
        server.handle_writable().expect("the peer is there");
        server.handle_readable().expect("the peer is there");
    }
    let want: Vec<String> = (0..sent).map(|index| format!("call {index}")).collect();
    assert_eq!(server.handler().seen, want);
    assert!(!server.wants_write());
}

#[test]
fn features_that_arrive_later_reach_the_channel() {
    let (peer, mut server) = server(Script::default());
    server.set_negotiated(Negotiated::default());
    peer.send(&message(2, 0x9, &[]), &[]);
    assert!(matches!(server.handle_readable(), Ok(0)));
    server.set_negotiated(everything());
    peer.send(&message(2, 0x9, &[]), &[]);
    assert!(matches!(server.handle_readable(), Ok(1)));
    assert_eq!(peer.read_bytes(), reply(2, 0));
    assert_eq!(server.channel().stats().refused, 1);
}

#[test]
fn peer_that_closes_ends_the_server() {
    let (peer, mut server) = server(Nothing);
    peer.send(&message(2, 0x1, &[]), &[]);
    drop(peer);
    assert!(matches!(
        server.handle_readable(),
        Err(ChannelError::Closed { unfinished: 0 })
    ));
    assert_eq!(server.channel().stats().messages, 1);
}

#[test]
fn dialects_mix_on_one_channel() {
    let (peer, mut server) = server(Script::default());
    let canary = Canary::new();
    peer.send(
        &message(9, 0x1, &[ZERO, ZERO, PAGE, PAGE, ZERO].concat()),
        &[canary.fd()],
    );
    peer.send(&message(1001, 0x1, &[ZERO, PAGE, PAGE].concat()), &[]);
    assert!(matches!(server.handle_readable(), Ok(2)));
    let want = [Dialect::Standard, Dialect::Crosvm];
    assert_eq!(
        server.handler().seen,
        [
            format!("{:?} map 0x1000", want[0]),
            format!("{:?} unmap 0x1000", want[1])
        ]
    );
    assert_eq!(peer.read_bytes(), reply(1001, 0));
}
