//! The blobs backend against the crate `vhost`'s own frontend and a driver of its own, all on threads of this process.

mod driver;
mod stops;
mod whole;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use base::Descriptor;
use base::Error as Errno;
use base::MemoryMappingArena;
use base::Protection;
use vhost::VhostBackend;
use vhost::vhost_user::Error as VhostError;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::FrontendReqHandler;
use vhost::vhost_user::HandlerResult;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::VhostUserFrontendReqHandlerMut;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::protocol::Request;
use super::protocol::Response;
use super::*;
use crate::backend::rings::EVENT_IDX;
use crate::backend::rings::INDIRECT;
use crate::backend::rings::VERSION_1;
use crate::backend::serve::PROTOCOL_FEATURES;

use self::driver::Driver;
use self::driver::TIMEOUT;

const REGION_BYTES: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;

/// Where the test holds up a request to the frontend: it is told that one is there, and lets it go on.
struct Gate {
    arrived: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
}

/// A frontend's region, with real mappings.
struct Region {
    arena: Arc<MemoryMappingArena>,
    mapped: BTreeMap<u64, u64>,
    gate: Option<Gate>,
}

fn failed(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("it is small")
}

impl Region {
    fn pass_gate(&self) {
        if let Some(gate) = &self.gate {
            // Nobody waits for it in a test that has gone on.
            let _ = gate.arrived.send(());
            let _ = gate.go_on.recv_timeout(TIMEOUT);
        }
    }

    fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.mapped
            .iter()
            .any(|(at, bytes)| offset < at + bytes.next_multiple_of(PAGE) && *at < offset + len)
    }
}

impl VhostUserFrontendReqHandlerMut for Region {
    fn shmem_map(&mut self, request: &VhostUserMMap, file: &dyn AsRawFd) -> HandlerResult<u64> {
        self.pass_gate();
        let (offset, len) = (request.shm_offset, request.len);
        if self.overlaps(offset, len) {
            return Err(failed(libc::EEXIST));
        }
        let protection = match request.flags {
            0 => Protection::read(),
            _ => Protection::read_write(),
        };
        let file = Descriptor(file.as_raw_fd());
        let fd_offset = request.fd_offset;
        self.arena
            .add_fd_mapping(size(offset), size(len), &file, fd_offset, protection)?;
        self.mapped.insert(offset, len);
        Ok(0)
    }

    fn shmem_unmap(&mut self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.pass_gate();
        let (offset, len) = (request.shm_offset, request.len);
        if self.mapped.get(&offset) != Some(&len) {
            return Err(failed(libc::ENOENT));
        }
        self.arena.remove_mapping(size(offset), size(len))?;
        self.mapped.remove(&offset);
        Ok(0)
    }
}

/// How a test wants its pair.
#[derive(Clone, Copy)]
struct Wanted {
    executor: ExecutorKind,
    limits: Limits,
    reply_deadline: Duration,
    event_idx: bool,
    channel: bool,
}

const WANTED: Wanted = Wanted {
    executor: ExecutorKind::Epoll,
    limits: Limits {
        max_blobs: 4,
        max_bytes: 0x10_0000,
    },
    reply_deadline: TIMEOUT,
    event_idx: false,
    channel: true,
};

/// A backend, a frontend that has negotiated, and a driver whose ring runs.
struct Pair {
    frontend: Frontend,
    driver: Driver,
    arena: Arc<MemoryMappingArena>,
    region: Arc<Mutex<Region>>,
    backend: thread::JoinHandle<(Result<(), Error>, Vec<String>)>,
    channels: Vec<thread::JoinHandle<()>>,
}

impl Pair {
    fn start(wanted: Wanted) -> Self {
        let mut options = Options::new(PathBuf::new());
        options.region_size = REGION_BYTES;
        options.limits = wanted.limits;
        options.executor = wanted.executor;
        let mut service = Service::new(&options).expect("a service");
        service.reply_deadline = wanted.reply_deadline;
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let backend = thread::spawn(move || {
            let mut events = Vec::new();
            let mut note = |report: &Report<'_>| events.push(report.to_string());
            let result = service.serve_frontend(theirs, &Mutex::new(&mut note));
            (result, events)
        });
        let arena = MemoryMappingArena::new(size(REGION_BYTES)).expect("an arena");
        let arena = Arc::new(arena);
        let region = Region {
            arena: Arc::clone(&arena),
            mapped: BTreeMap::new(),
            gate: None,
        };
        let mut pair = Self {
            frontend: Frontend::from_stream(ours, 1),
            driver: Driver::new(wanted.event_idx),
            arena,
            region: Arc::new(Mutex::new(region)),
            backend,
            channels: Vec::new(),
        };
        pair.negotiate();
        if wanted.channel {
            pair.open_channel();
        }
        pair.activate(wanted.event_idx, 0);
        pair
    }

    fn negotiate(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().expect("the owner");
        let features = frontend.get_features().expect("the features");
        assert_eq!(
            features,
            VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | INDIRECT
        );
        let offered = frontend.get_protocol_features().expect("more features");
        assert!(offered.contains(VhostUserProtocolFeatures::SHMEM));
        frontend
            .set_protocol_features(offered)
            .expect("they are set");
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    fn open_channel(&mut self) {
        let region = Arc::clone(&self.region);
        let mut server = FrontendReqHandler::new(region).expect("a channel");
        server.set_reply_ack_flag(true);
        self.frontend
            .set_backend_request_fd(&server.get_tx_raw_fd())
            .expect("the channel is handed over");
        // The handler holds the backend's end as well, so only the backend can end this thread.
        self.channels.push(thread::spawn(move || {
            while !matches!(
                server.handle_request(),
                Err(VhostError::Disconnected
                    | VhostError::SocketBroken(_)
                    | VhostError::PartialMessage)
            ) {}
        }));
    }

    /// What a driver's activation makes a frontend say.
    fn activate(&mut self, event_idx: bool, base: u16) {
        let event_idx = if event_idx { EVENT_IDX } else { 0 };
        self.frontend
            .set_features(VERSION_1 | PROTOCOL_FEATURES | INDIRECT | event_idx)
            .expect("they are acknowledged");
        self.driver.share_memory(&self.frontend);
        self.driver.start(&mut self.frontend, base);
    }

    /// From now on requests to the frontend are held up; returns what tells of one, and what lets it go on.
    fn shut_gate(&self) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (arrived, told) = mpsc::channel();
        let (let_go, go_on) = mpsc::channel();
        lock(&self.region).gate = Some(Gate { arrived, go_on });
        (told, let_go)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        self.arena.read_at(size(offset), &mut bytes)?;
        Ok(bytes)
    }

    fn allocate(&mut self, len: u64) -> u32 {
        let response = self.driver.call(Request::Allocate { len });
        assert_eq!(response.status, 0);
        response.blob
    }

    fn map(&mut self, blob: u32, shm_offset: u64, len: u64) -> Response {
        self.driver.call(Request::Map {
            blob,
            shm_offset,
            blob_offset: 0,
            len,
            writable: true,
        })
    }

    /// Lets the frontend go, and returns the backend's reports.
    fn finish(self) -> Vec<String> {
        drop(self.frontend);
        let (result, events) = self.backend.join().expect("the backend does not panic");
        assert!(matches!(result, Ok(())), "{result:?}");
        for channel in self.channels {
            channel.join().expect("the channel's thread does not panic");
        }
        events
    }
}

const fn status(errno: i32) -> u32 {
    errno.unsigned_abs()
}
