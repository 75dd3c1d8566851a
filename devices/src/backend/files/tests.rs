//! The files backend against the crate `vhost`'s own frontend, which knows nothing of this project.

use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::FrontendReqHandler;
use vhost::vhost_user::HandlerResult;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::VhostUserFrontendReqHandlerMut;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::message::VhostUserMMap;

use super::*;

/// How long an event may take before the test fails.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the frontend was asked, in order.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Map(u64, u64, Vec<u8>),
    Unmap(u64, u64),
    ConfigChange,
}

/// A frontend's handler that notes every request and refuses one offset.
struct Notes {
    asked: mpsc::Sender<Asked>,
    refuse: Option<u64>,
}

impl VhostUserFrontendReqHandlerMut for Notes {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.asked
            .send(Asked::ConfigChange)
            .map_err(io::Error::other)?;
        Ok(0)
    }

    fn shmem_map(&mut self, request: &VhostUserMMap, file: &dyn AsRawFd) -> HandlerResult<u64> {
        let (offset, len) = (request.shm_offset, request.len);
        if self.refuse == Some(offset) {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut contents = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        fs::File::open(path)?.read_exact_at(&mut contents, request.fd_offset)?;
        self.asked
            .send(Asked::Map(offset, len, contents))
            .map_err(io::Error::other)?;
        Ok(0)
    }

    fn shmem_unmap(&mut self, request: &VhostUserMMap) -> HandlerResult<u64> {
        let (offset, len) = (request.shm_offset, request.len);
        self.asked
            .send(Asked::Unmap(offset, len))
            .map_err(io::Error::other)?;
        Ok(0)
    }
}

/// A files backend on a thread of this process, and a frontend that is connected to it.
struct Pair {
    dir: TempDir,
    backend: thread::JoinHandle<(Result<(), Error>, Vec<String>)>,
    frontend: Frontend,
    channel: Option<thread::JoinHandle<()>>,
    asked: mpsc::Receiver<Asked>,
}

const ALL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::from_bits_truncate(
    VhostUserProtocolFeatures::MQ.bits()
        | VhostUserProtocolFeatures::REPLY_ACK.bits()
        | VhostUserProtocolFeatures::BACKEND_REQ.bits()
        | VhostUserProtocolFeatures::CONFIG.bits()
        | VhostUserProtocolFeatures::BACKEND_SEND_FD.bits()
        | VhostUserProtocolFeatures::RESET_DEVICE.bits()
        | VhostUserProtocolFeatures::SHMEM.bits(),
);

impl Pair {
    fn start(refuse: Option<u64>, features: VhostUserProtocolFeatures) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = dir.path().join("files");
        fs::create_dir(&files).expect("a directory");
        fs::write(files.join("a"), "first").expect("a file");
        fs::write(files.join("b"), vec![7; 5000]).expect("a file");
        fs::write(files.join("c"), "third").expect("a file");
        let (mut ready, ready_descriptor) = io::pipe().expect("a pipe");
        let options = Options {
            socket: dir.path().join("socket"),
            directory: files,
            region_size: None,
            writable: false,
            once: true,
            ready_descriptor: Some(ready_descriptor.into()),
            probes: Vec::new(),
        };
        let socket = options.socket.clone();
        let backend = thread::spawn(move || {
            let mut events = Vec::new();
            let result = run(options, &mut |report| {
                let json = serde_json::to_value(report).expect("a report is JSON");
                let event = json["event"].as_str().unwrap_or_default().to_owned();
                events.push(event);
            });
            (result, events)
        });
        ready.read_exact(&mut [0]).expect("the backend listens");
        let frontend = Frontend::connect(&socket, 1).expect("a connection");
        let (sender, asked) = mpsc::channel();
        let mut pair = Self {
            dir,
            backend,
            frontend,
            channel: None,
            asked,
        };
        pair.negotiate(features);
        if features.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let notes = Notes {
                asked: sender,
                refuse,
            };
            pair.open_channel(notes);
        }
        pair
    }

    fn negotiate(&mut self, features: VhostUserProtocolFeatures) {
        self.frontend.set_owner().expect("the owner");
        let virtio = self.frontend.get_features().expect("the features");
        assert_eq!(virtio, 1 << 30);
        self.frontend
            .set_features(virtio)
            .expect("the features are acknowledged");
        let offered = self
            .frontend
            .get_protocol_features()
            .expect("the protocol features");
        assert_eq!(offered, ALL);
        self.frontend
            .set_protocol_features(features)
            .expect("the protocol features are set");
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    fn open_channel(&mut self, notes: Notes) {
        let mut server = FrontendReqHandler::new(Arc::new(Mutex::new(notes))).expect("a channel");
        server.set_reply_ack_flag(true);
        self.frontend
            .set_backend_request_fd(&server.get_tx_raw_fd())
            .expect("the channel is handed over");
        // The handler holds the backend's end as well, so only the backend can end this thread.
        self.channel = Some(thread::spawn(move || {
            while !matches!(
                server.handle_request(),
                Err(vhost::vhost_user::Error::Disconnected
                    | vhost::vhost_user::Error::SocketBroken(_)
                    | vhost::vhost_user::Error::PartialMessage)
            ) {}
        }));
    }

    fn next(&self) -> Asked {
        self.asked.recv_timeout(TIMEOUT).expect("a request")
    }

    fn order(&mut self, order: &[u8]) {
        self.frontend
            .set_config(16, VhostUserConfigFlags::empty(), order)
            .expect("the order is taken");
    }

    fn config_u32(&mut self, offset: u32) -> u32 {
        let (_, bytes) = self
            .frontend
            .get_config(offset, 4, VhostUserConfigFlags::empty(), &[0; 4])
            .expect("the configuration space");
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    fn finish(self) -> Vec<String> {
        drop(self.frontend);
        let (result, events) = self.backend.join().expect("the backend does not panic");
        assert!(matches!(result, Ok(())), "{result:?}");
        if let Some(channel) = self.channel {
            channel.join().expect("the channel's thread does not panic");
        }
        assert!(!self.dir.path().join("socket").exists());
        events
    }
}

fn first_three() -> [Asked; 4] {
    [
        Asked::Map(0, 5, b"first".to_vec()),
        Asked::Map(4096, 5000, vec![7; 5000]),
        Asked::Map(12288, 5, b"third".to_vec()),
        Asked::ConfigChange,
    ]
}

#[test]
fn files_are_mapped_as_soon_as_the_channel_is_there() {
    let pair = Pair::start(None, ALL);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    let events = pair.finish();
    let want = [
        "listening",
        "layout",
        "connected",
        "mapped",
        "mapped",
        "mapped",
        "ready",
        "disconnected",
    ];
    assert_eq!(events, want);
}

#[test]
fn orders_unmap_one_unmap_all_and_map_again() {
    let mut pair = Pair::start(None, ALL);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    pair.order(&[1, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(pair.next(), Asked::Unmap(4096, 5000));
    assert_eq!(pair.next(), Asked::ConfigChange);
    assert_eq!(pair.config_u32(8), 2);
    pair.order(&[2, 0, 0, 0]);
    assert_eq!(pair.next(), Asked::Unmap(0, 5));
    assert_eq!(pair.next(), Asked::Unmap(12288, 5));
    assert_eq!(pair.next(), Asked::ConfigChange);
    pair.order(&[3, 0, 0, 0]);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    assert_eq!((pair.config_u32(4), pair.config_u32(24)), (3, 3));
    pair.finish();
}

#[test]
fn unknown_order_is_refused_and_the_backend_goes_on() {
    let mut pair = Pair::start(None, ALL);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    let refused = pair
        .frontend
        .set_config(16, VhostUserConfigFlags::empty(), &[77, 0, 0, 0]);
    assert!(
        matches!(
            refused,
            Err(vhost::Error::VhostUserProtocol(
                vhost::vhost_user::Error::BackendInternalError
            ))
        ),
        "{refused:?}"
    );
    assert_eq!(pair.config_u32(8), 3);
    pair.finish();
}

#[test]
fn refused_file_is_counted_and_the_others_are_mapped() {
    let mut pair = Pair::start(Some(4096), ALL);
    assert_eq!(pair.next(), Asked::Map(0, 5, b"first".to_vec()));
    assert_eq!(pair.next(), Asked::Map(12288, 5, b"third".to_vec()));
    assert_eq!(pair.next(), Asked::ConfigChange);
    assert_eq!((pair.config_u32(8), pair.config_u32(12)), (2, 1));
    assert_eq!(pair.config_u32(28), 122);
    assert!(pair.finish().contains(&"refused".to_owned()));
}

#[test]
fn file_that_shrank_is_left_out_when_it_is_mapped_again() {
    let mut pair = Pair::start(None, ALL);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    pair.order(&[2, 0, 0, 0]);
    for _ in 0..4 {
        pair.next();
    }
    fs::write(pair.dir.path().join("files/b"), "short").expect("a file");
    fs::remove_file(pair.dir.path().join("files/c")).expect("a file to remove");
    pair.order(&[3, 0, 0, 0]);
    assert_eq!(pair.next(), Asked::Map(0, 5, b"first".to_vec()));
    assert_eq!(pair.next(), Asked::ConfigChange);
    let skipped = pair.finish();
    let skipped = skipped.iter().filter(|event| *event == "skipped").count();
    assert_eq!(skipped, 2);
}

#[test]
fn reset_maps_everything_again() {
    let mut pair = Pair::start(None, ALL);
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    pair.frontend.reset_device().expect("the reset");
    for want in first_three() {
        assert_eq!(pair.next(), want);
    }
    assert!(pair.finish().contains(&"reset".to_owned()));
}

#[test]
fn frontend_without_shmem_is_told_and_served() {
    let mut pair = Pair::start(None, ALL - VhostUserProtocolFeatures::SHMEM);
    assert_eq!((pair.config_u32(0), pair.config_u32(4)), (3, 3));
    let events = pair.finish();
    let want = [
        "listening",
        "layout",
        "connected",
        "no_channel",
        "disconnected",
    ];
    assert_eq!(events, want);
}
