//! Clients of every temper against the control server.

use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;

struct Fixture {
    server: Server,
    path: PathBuf,
    _dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let path = dir.path().join("control");
        Self {
            server: Server::bind(&path).expect("binds"),
            path,
            _dir: dir,
        }
    }

    fn connect(&mut self) -> (ClientId, UnixStream) {
        let stream = UnixStream::connect(&self.path).expect("connects");
        stream.set_nonblocking(true).expect("non-blocking");
        let accepted = self.server.accept().expect("accepts").expect("a client");
        (accepted.id, stream)
    }
}

/// Reads what is there, without waiting.
fn read_all(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    let result = stream.read_to_end(&mut bytes);
    assert!(
        result.is_ok() || result.is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
        "reading works"
    );
    String::from_utf8(bytes).expect("text")
}

#[test]
fn request_byte_by_byte_is_complete_with_its_newline() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    for byte in br#"{"command":"maps"}"# {
        stream.write_all(&[*byte]).expect("writes");
        assert_eq!(fixture.server.ready(id), Progress::Idle);
    }
    stream.write_all(b"\n").expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Maps));
}

#[test]
fn second_request_waits_for_the_answer_to_the_first() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    stream
        .write_all(b"{\"command\":\"maps\"}\n{\"command\":\"status\"}\n")
        .expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Maps));
    assert_eq!(
        fixture.server.interest(id),
        Some(Interest {
            read: false,
            write: false
        })
    );
    assert_eq!(fixture.server.ready(id), Progress::Idle);
    fixture.server.answer(id, Ok(1));
    assert_eq!(read_all(&mut stream), "{\"ok\":1}\n");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Status));
}

#[test]
fn line_that_is_no_request_is_answered_and_the_client_stays() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    stream
        .write_all(b"hello\n\n{\"command\":\"stats\"}\n")
        .expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Stats));
    let reply = read_all(&mut stream);
    assert!(
        reply.starts_with("{\"error\":\"this is no request: "),
        "{reply}"
    );
}

#[test]
fn line_without_end_is_cut_off_at_the_limit() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    let flood = vec![b'x'; 64 << 10];
    let mut sent = 0;
    loop {
        match stream.write(&flood) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        if fixture.server.ready(id) == Progress::Gone {
            break;
        }
        assert!(sent < 8 * MAX_LINE, "the server goes on reading");
    }
    assert!(fixture.server.stream(id).is_none());
}

#[test]
fn client_that_never_reads_costs_one_reply() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    let big = "x".repeat(4 << 20);
    stream
        .write_all(b"{\"command\":\"maps\"}\n")
        .expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Maps));
    fixture.server.answer(id, Ok(&big));
    stream
        .write_all(b"{\"command\":\"maps\"}\n")
        .expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Idle);
    assert_eq!(
        fixture.server.interest(id),
        Some(Interest {
            read: false,
            write: true
        })
    );
    let mut seen = 0;
    while seen < big.len() {
        seen += read_all(&mut stream).len();
        if let Progress::Request(request) = fixture.server.ready(id) {
            assert_eq!(request, Request::Maps);
        }
    }
    seen += read_all(&mut stream).len();
    assert_eq!(seen, big.len() + "{\"ok\":\"\"}\n".len());
}

#[test]
fn client_that_hangs_up_is_gone_and_its_answer_is_no_error() {
    let mut fixture = Fixture::new();
    let (id, mut stream) = fixture.connect();
    stream
        .write_all(b"{\"command\":\"maps\"}\n")
        .expect("writes");
    assert_eq!(fixture.server.ready(id), Progress::Request(Request::Maps));
    drop(stream);
    fixture.server.answer(id, Ok(1));
    fixture.server.answer(id, Ok(2));
    assert_eq!(fixture.server.ready(id), Progress::Idle);
    assert!(fixture.server.stream(id).is_none());
}

#[test]
fn client_too_many_replaces_the_longest_silent_one() {
    let mut fixture = Fixture::new();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| fixture.connect()).collect();
    let (first, stream) = &mut clients[0];
    stream.write_all(b"\n").expect("writes");
    assert_eq!(fixture.server.ready(*first), Progress::Idle);
    let (_newest, _stream) = fixture.connect();
    assert!(fixture.server.stream(*first).is_some());
    assert!(fixture.server.stream(clients[1].0).is_none());
    assert!(fixture.server.stream(clients[2].0).is_some());
}

#[test]
fn socket_is_for_its_owner_only_and_goes_with_the_server() {
    let fixture = Fixture::new();
    let mode = std::fs::metadata(&fixture.path)
        .expect("exists")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let Fixture {
        server,
        path,
        _dir: _keep,
    } = fixture;
    drop(server);
    assert!(!path.exists());
}

#[test]
fn socket_of_a_dead_server_is_replaced_and_of_a_live_one_is_not() {
    let fixture = Fixture::new();
    assert!(matches!(Server::bind(&fixture.path), Err(BindError::InUse)));
    let stale = fixture.path.with_file_name("stale");
    drop(UnixListener::bind(&stale).expect("binds"));
    let server = Server::bind(&stale).expect("the dead one is replaced");
    std::fs::remove_file(&stale).expect("removed by somebody else");
    drop(server);
    std::fs::write(&stale, b"text").expect("writes");
    assert!(matches!(Server::bind(&stale), Err(BindError::NotASocket)));
}
