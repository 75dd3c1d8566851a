//! `portcullis backend files` against a frontend written by hand, byte by byte.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use fixture::Message;
use fixture::Process;

use crate::rig::files_backend;

/// The main channel of a frontend that knows no library.
struct Frontend {
    stream: UnixStream,
}

impl Frontend {
    fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the backend listens");
        stream
            .set_read_timeout(Some(fixture::TIMEOUT))
            .expect("a time limit");
        Self { stream }
    }

    fn send(&self, code: u32, flags: u32, payload: &[u8]) {
        let bytes = Message::bytes(code, flags, payload);
        fixture::send(&self.stream, &bytes, &[]).expect("the backend reads");
    }

    fn ask(&self, code: u32, payload: &[u8]) -> Vec<u8> {
        self.send(code, 1, payload);
        let reply = Message::read(&self.stream).expect("a reply");
        assert_eq!((reply.code, reply.flags), (code, 5));
        assert!(reply.descriptors.is_empty());
        reply.payload
    }

    fn acknowledged(&self, code: u32, payload: &[u8]) -> u64 {
        self.send(code, 9, payload);
        let reply = Message::read(&self.stream).expect("an acknowledgement");
        assert_eq!((reply.code, reply.flags), (code, 5));
        u64::from_ne_bytes(reply.payload.try_into().expect("8 bytes"))
    }

    /// Owner, features, all protocol features that are offered, and the request channel.
    fn negotiate(&self) -> UnixStream {
        self.send(3, 1, &[]);
        assert_eq!(self.ask(1, &[]), (1_u64 << 30).to_ne_bytes());
        self.send(2, 1, &(1_u64 << 30).to_ne_bytes());
        let offered = u64::from_ne_bytes(self.ask(15, &[]).try_into().expect("8 bytes"));
        // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, BACKEND_SEND_FD, RESET_DEVICE, SHMEM.
        assert_eq!(offered, 0b100_0000_0010_0110_0010_1001);
        self.send(16, 1, &offered.to_ne_bytes());
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_read_timeout(Some(fixture::TIMEOUT))
            .expect("a time limit");
        let bytes = Message::bytes(21, 9, &[]);
        fixture::send(&self.stream, &bytes, &[theirs.as_fd()]).expect("the backend reads");
        let reply = Message::read(&self.stream).expect("an acknowledgement");
        assert_eq!(reply.code, 21);
        ours
    }
}

fn start(more: &[&str]) -> (tempfile::TempDir, Process, Frontend) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    fs::create_dir(&files).expect("a directory");
    fs::write(files.join("a"), "first").expect("a file");
    fs::write(files.join("b"), vec![2; 5000]).expect("a file");
    let socket = dir.path().join("socket");
    let backend = files_backend(&socket, &files, more);
    let frontend = Frontend::connect(&socket);
    (dir, backend, frontend)
}

fn reply(channel: &UnixStream, code: u32, value: i64) {
    let bytes = Message::bytes(code, 5, &value.to_ne_bytes());
    fixture::send(channel, &bytes, &[]).expect("the backend reads");
}

#[test]
fn maps_are_the_specified_bytes_with_one_descriptor_each() {
    let (_dir, mut backend, frontend) = start(&[]);
    let channel = frontend.negotiate();
    let map = Message::read(&channel).expect("a request");
    assert_eq!((map.code, map.flags, map.descriptors.len()), (9, 9, 1));
    #[rustfmt::skip]
    assert_eq!(map.payload, [
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        5, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    let mut contents = [0; 5];
    rustix::io::pread(&map.descriptors[0], &mut contents, 0).expect("a file");
    assert_eq!(&contents, b"first");
    reply(&channel, 9, 0);
    let map = Message::read(&channel).expect("a request");
    #[rustfmt::skip]
    assert_eq!(map.payload, [
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0x88, 0x13, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    reply(&channel, 9, -122);
    let change = Message::read(&channel).expect("a config change");
    assert_eq!((change.code, change.payload.len()), (2, 0));
    reply(&channel, 2, 0);
    assert_eq!(backend.event("refused")["errno"], "EDQUOT");
    let ready = backend.event("ready");
    assert_eq!(
        (&ready["mapped"], &ready["refused"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn region_list_is_2056_bytes_with_one_region() {
    let (_dir, _backend, frontend) = start(&["--region-size", "1M"]);
    let _channel = frontend.negotiate();
    let list = frontend.ask(44, &[]);
    let mut want = vec![0; 2056];
    want[0] = 1;
    want[8..16].copy_from_slice(&(1_u64 << 20).to_ne_bytes());
    assert_eq!(list, want);
}

#[test]
fn main_channel_is_served_while_no_map_is_answered() {
    let (_dir, _backend, frontend) = start(&[]);
    let channel = frontend.negotiate();
    Message::read(&channel).expect("a request");
    // Nobody answers it. Configuration: offset 4, size 4, flags 0; the number of files.
    let config = frontend.ask(24, &[4, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config[12..], [2, 0, 0, 0]);
    // An order, acknowledged before it is carried out: offset 16, size 4, unmap all.
    let order = [16, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(frontend.acknowledged(25, &order), 0);
    // One that does not exist is refused.
    let order = [16, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0];
    assert_eq!(frontend.acknowledged(25, &order), 1);
    reply(&channel, 9, 0);
    Message::read(&channel).expect("the second map");
}

#[test]
fn frontend_that_goes_in_the_middle_is_followed_by_the_next() {
    let (dir, mut backend, frontend) = start(&[]);
    let channel = frontend.negotiate();
    Message::read(&channel).expect("a request");
    drop(frontend);
    backend.event("disconnected");
    drop(channel);
    let next = Frontend::connect(&dir.path().join("socket"));
    let channel = next.negotiate();
    Message::read(&channel).expect("a request");
}

#[test]
fn frontend_that_breaks_the_protocol_is_dropped_and_the_backend_goes_on() {
    let (dir, mut backend, frontend) = start(&[]);
    fixture::send(&frontend.stream, &[0xff; 64], &[]).expect("the backend reads");
    backend.event("disconnected");
    let next = Frontend::connect(&dir.path().join("socket"));
    next.negotiate();
}

#[test]
fn backend_ends_with_its_first_frontend_when_asked_to() {
    let (dir, mut backend, frontend) = start(&["--once"]);
    drop(frontend);
    assert!(backend.wait().success());
    assert!(!dir.path().join("socket").exists());
}

#[test]
fn hostile_requests_are_granted_by_nobody_but_a_frontend_that_checks_nothing() {
    let (_dir, mut backend, frontend) = start(&["--probe", "range,external"]);
    let channel = frontend.negotiate();
    for _ in 0..2 {
        assert_eq!(Message::read(&channel).map(|map| map.code), Some(9));
        reply(&channel, 9, 0);
    }
    let range = Message::read(&channel).expect("a request");
    assert_eq!(range.code, 9);
    reply(&channel, 9, -34);
    let external = Message::read(&channel).expect("a request");
    assert_eq!((external.code, external.payload.len()), (1007, 32));
    reply(&channel, 1007, 0);
    assert_eq!(backend.event("probe")["errno"], "ERANGE");
    assert_eq!(backend.event("probe")["errno"], serde_json::Value::Null);
}
