//! The conformance suite against Portcullis itself, and against the frontend of the crate `vhost` as a second opinion.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use fixture::Process;
use portcullis::conform;
use portcullis::conform::Outcome;
use portcullis::conform::Patience;
use portcullis::conform::Report;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::FrontendReqHandler;
use vhost::vhost_user::HandlerResult;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::VhostUserFrontendReqHandlerMut;
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

fn patience(then: Duration) -> Patience {
    Patience {
        first: fixture::TIMEOUT,
        then,
    }
}

fn run(listener: &UnixListener, then: Duration) -> Report {
    conform::run(listener, patience(then), None, &mut |_| ()).expect("a frontend connects")
}

fn said(report: &Report, outcome: Outcome) -> Vec<String> {
    report
        .cases
        .iter()
        .filter(|case| case.result == outcome)
        .map(|case| format!("{}: {}", case.name, case.seen))
        .collect()
}

#[test]
fn portcullis_keeps_every_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("backend");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .arg("run")
        .arg("--backend")
        .arg(&socket)
        .arg("--control")
        .arg(folder.path().join("control"))
        .args(["--guest", "none", "--wait", "--restart", "on-failure"]);
    let _vmm = Process::spawn(command);
    let report = run(&listener, fixture::TIMEOUT);
    assert_eq!(said(&report, Outcome::Fail), Vec::<String>::new());
    assert_eq!(said(&report, Outcome::NotApplicable), Vec::<String>::new());
    assert!(report.cases.len() >= 150, "{}", report.cases.len());
}

/// Keeps the rules for ranges, so that what the suite finds is the crate's own doing.
#[derive(Default)]
struct Mapper {
    /// Length by offset.
    live: BTreeMap<u64, u64>,
}

const REGION: u64 = 64 << 20;

impl Mapper {
    fn check(request: &VhostUserMMap) -> io::Result<(u64, u64)> {
        let (offset, len) = (request.shm_offset, request.len);
        let footprint = len.checked_next_multiple_of(4096);
        let inside = footprint
            .and_then(|footprint| offset.checked_add(footprint))
            .is_some_and(|end| end <= REGION);
        if request.shmid != 0 || !inside || len == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((offset, len))
    }
}

impl VhostUserFrontendReqHandlerMut for Mapper {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        Ok(0)
    }

    fn shmem_map(&mut self, request: &VhostUserMMap, _file: &dyn AsRawFd) -> HandlerResult<u64> {
        let (offset, len) = Self::check(request)?;
        let end = offset + len;
        if self
            .live
            .iter()
            .any(|(at, len)| *at < end && at + len > offset)
        {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.live.insert(offset, len);
        Ok(0)
    }

    fn shmem_unmap(&mut self, request: &VhostUserMMap) -> HandlerResult<u64> {
        let (offset, len) = Self::check(request)?;
        if self.live.get(&offset) != Some(&len) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.live.remove(&offset);
        Ok(0)
    }
}

/// Connects once and serves as the crate's documentation says: a request that fails ends the handler.
fn serve_with_the_crate(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(path)?;
    let mut frontend = Frontend::from_stream(stream, 1);
    frontend.set_owner()?;
    frontend.get_features()?;
    let offered = frontend.get_protocol_features()?;
    let wanted = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_SEND_FD
        | VhostUserProtocolFeatures::SHMEM;
    frontend.set_protocol_features(offered & wanted)?;
    let mapper = Arc::new(Mutex::new(Mapper::default()));
    let mut handler = FrontendReqHandler::new(mapper)?;
    handler.set_reply_ack_flag(offered.contains(VhostUserProtocolFeatures::REPLY_ACK));
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd())?;
    loop {
        handler.handle_request()?;
    }
}

#[test]
fn frontend_of_the_vhost_crate_gets_its_second_opinion() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("backend");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let path = socket.clone();
    let frontend = thread::spawn(move || {
        // It connects again after each end, until nobody listens any more.
        while serve_with_the_crate(&path).is_err() && path.exists() {}
    });
    let report = run(&listener, Duration::from_millis(500));
    drop(listener);
    drop(folder);
    frontend.join().expect("no panic");
    let result = |name: &str| {
        let case = report.cases.iter().find(|case| case.name == name);
        case.map(|case| case.result)
    };
    // What works there, works.
    assert_eq!(result("replies/map_is_acknowledged"), Some(Outcome::Pass));
    // One refused request ends the handler, and a malformed one is not answered at all.
    for name in [
        "replies/refusal_leaves_the_channel_alive",
        "state/refused_map_leaves_the_range_free",
        "mappings/reserved_flag_1",
        "framing/many_messages_in_one_write",
    ] {
        assert_eq!(result(name), Some(Outcome::Fail), "{name}");
    }
}
