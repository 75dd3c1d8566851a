//! What a driver can ask for.

use std::io::Read;

use vhost::vhost_user::message::VhostUserConfigFlags;

use super::super::protocol::NOT_MAPPED;
use super::driver::Used;
use super::*;

/// Asks for everything once.
fn use_everything(executor: ExecutorKind, event_idx: bool) {
    let mut pair = Pair::start(Wanted {
        executor,
        event_idx,
        ..WANTED
    });
    let blob = pair.allocate(3 * PAGE);
    let filled = pair.driver.call(Request::Fill {
        blob,
        blob_offset: PAGE,
        len: PAGE + 2,
        pattern: 0x0403_0201,
    });
    assert_eq!((filled.status, filled.size), (0, 3 * PAGE));
    let mapped = pair.driver.call(Request::Map {
        blob,
        shm_offset: 8 * PAGE,
        blob_offset: PAGE,
        len: 2 * PAGE,
        writable: false,
    });
    let expected = Response {
        status: 0,
        blob,
        blobs: 1,
        flags: 0,
        size: 3 * PAGE,
        shm_offset: 8 * PAGE,
        mapped: 2 * PAGE,
    };
    assert_eq!(mapped, expected);
    assert_eq!(pair.read(8 * PAGE, 6), Ok(vec![1, 2, 3, 4, 1, 2]));
    assert_eq!(pair.read(9 * PAGE, 4), Ok(vec![1, 2, 0, 0]));
    assert_eq!(
        pair.arena.write_at(size(8 * PAGE), &[9]),
        Err(Errno::new(libc::EFAULT))
    );
    let all = pair.driver.call(Request::Info { blob: 0 });
    assert_eq!((all.blobs, all.mapped), (1, 2 * PAGE));
    assert_eq!(pair.driver.call(Request::Info { blob }), expected);
    let unmapped = pair.driver.call(Request::Unmap { blob });
    assert_eq!((unmapped.status, unmapped.shm_offset), (0, NOT_MAPPED));
    assert_eq!(pair.read(8 * PAGE, 1), Err(Errno::new(libc::EFAULT)));
    let freed = pair.driver.call(Request::Free { blob });
    assert_eq!((freed.status, freed.blob), (0, blob));
    let events = pair.finish();
    let want = [
        "a frontend has connected",
        "the request channel is open",
        "the queue runs",
        "blob 1: 12288 bytes",
        "blob 1: 4098 bytes filled",
        "blob 1: 8192 bytes mapped at 0x8000, read-only",
        "blob 1: unmapped",
        "blob 1: freed",
        "the frontend is gone after 7 requests",
    ];
    assert_eq!(events, want);
}

#[test]
fn everything_works_on_epoll() {
    use_everything(ExecutorKind::Epoll, false);
}

#[test]
fn everything_works_with_an_interrupt_where_the_driver_wants_it() {
    use_everything(ExecutorKind::Epoll, true);
}

#[test]
fn everything_works_on_io_uring() {
    match Executor::with_executor_kind(ExecutorKind::Uring) {
        Ok(_) => use_everything(ExecutorKind::Uring, false),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}

#[test]
fn guest_and_device_write_the_same_memory() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    assert_eq!(pair.map(blob, 0, PAGE).flags, 1);
    pair.arena.write_at(0, b"guest").expect("it is writable");
    let filled = pair.driver.call(Request::Fill {
        blob,
        blob_offset: 2,
        len: 1,
        pattern: u32::from(b'X'),
    });
    assert_eq!(filled.status, 0);
    assert_eq!(pair.read(0, 5), Ok(b"guXst".to_vec()));
    pair.finish();
}

#[test]
fn frontends_refusal_reaches_the_driver_and_changes_nothing() {
    let mut pair = Pair::start(WANTED);
    let (one, other) = (pair.allocate(2 * PAGE), pair.allocate(PAGE));
    assert_eq!(pair.map(one, 0, 2 * PAGE).status, 0);
    let refused = pair.map(other, PAGE, PAGE);
    assert_eq!(
        (refused.status, refused.blob),
        (status(libc::EEXIST), other)
    );
    let described = pair.driver.call(Request::Info { blob: other });
    assert_eq!((described.shm_offset, described.mapped), (NOT_MAPPED, 0));
    assert_eq!(pair.map(other, 2 * PAGE, PAGE).status, 0);
    let events = pair.finish();
    assert!(
        events.contains(&"blob 2: map refused: EEXIST".to_owned()),
        "{events:?}"
    );
}

#[test]
fn resize_uses_more_and_less_of_the_region() {
    let mut pair = Pair::start(WANTED);
    let (one, other) = (pair.allocate(PAGE), pair.allocate(PAGE));
    pair.map(one, 0, PAGE);
    pair.map(other, 4 * PAGE, PAGE);
    let more = pair.driver.call(Request::Resize {
        blob: one,
        len: 3 * PAGE,
    });
    assert_eq!(
        (more.status, more.size, more.mapped),
        (0, 3 * PAGE, 3 * PAGE)
    );
    assert_eq!(pair.read(2 * PAGE, 1), Ok(vec![0]));
    // Over the other one: refused, and as it was.
    let refused = pair.driver.call(Request::Resize {
        blob: one,
        len: 5 * PAGE,
    });
    assert_eq!(refused.status, status(libc::EEXIST));
    let described = pair.driver.call(Request::Info { blob: one });
    assert_eq!((described.shm_offset, described.mapped), (0, 3 * PAGE));
    assert_eq!(pair.read(2 * PAGE, 1), Ok(vec![0]));
    let less = pair.driver.call(Request::Resize { blob: one, len: 1 });
    assert_eq!((less.status, less.size, less.mapped), (0, 5 * PAGE, 1));
    assert_eq!(pair.read(PAGE, 1), Err(Errno::new(libc::EFAULT)));
    pair.finish();
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    let mut check = |request: Request, errno: i32| {
        let response = pair.driver.call(request);
        assert_eq!(response.status, status(errno), "{request:?}");
    };
    let map = |blob_offset, len| Request::Map {
        blob,
        shm_offset: 0,
        blob_offset,
        len,
        writable: false,
    };
    check(Request::Allocate { len: 0 }, libc::EINVAL);
    check(Request::Allocate { len: 0x10_0000 }, libc::EDQUOT);
    check(Request::Free { blob: 9 }, libc::ENOENT);
    check(Request::Free { blob: 0 }, libc::ENOENT);
    check(Request::Info { blob: 9 }, libc::ENOENT);
    check(Request::Unmap { blob }, libc::ENXIO);
    check(Request::Resize { blob, len: 1 }, libc::ENXIO);
    check(map(1, PAGE), libc::ERANGE);
    check(map(u64::MAX, 2), libc::ERANGE);
    check(map(0, PAGE), 0);
    check(map(0, PAGE), libc::EBUSY);
    check(Request::Resize { blob, len: 0 }, libc::EINVAL);
    let len = u64::MAX;
    check(Request::Resize { blob, len }, libc::EDQUOT);
    check(Request::Free { blob }, libc::EBUSY);
    check(
        Request::Fill {
            blob,
            blob_offset: PAGE,
            len: 1,
            pattern: 0,
        },
        libc::ERANGE,
    );
    pair.finish();
}

#[test]
fn chains_of_any_shape_are_served() {
    let mut pair = Pair::start(WANTED);
    let request = Request::Allocate { len: PAGE }.to_bytes();
    let (first, rest) = request.split_at(3);
    let head = pair.driver.put(&[first, rest], &[7, 33, 60]);
    pair.driver.kick();
    let used = pair.driver.wait();
    let head_id = u32::from(head);
    assert_eq!(
        used,
        Used {
            head: head_id,
            len: 40
        }
    );
    let mut bytes = pair.driver.buffer(head + 2, 7);
    bytes.extend(pair.driver.buffer(head + 3, 33));
    let response = Response::parse(&bytes.try_into().expect("40 bytes"));
    assert_eq!((response.status, response.blob), (0, 1));

    let head = pair
        .driver
        .put_indirect(&[&Request::Info { blob: 1 }.to_bytes()], &[40]);
    pair.driver.kick();
    let used = pair.driver.wait();
    let head_id = u32::from(head);
    assert_eq!(
        used,
        Used {
            head: head_id,
            len: 40
        }
    );
    // The table's second piece has the second buffer.
    assert_eq!(pair.driver.response(1).size, PAGE);
    pair.finish();
}

#[test]
fn chains_of_the_wrong_size_are_answered_where_there_is_room() {
    let mut pair = Pair::start(WANTED);
    let request = [Request::Info { blob: 0 }.to_bytes().as_slice(), &[0]].concat();
    for (readable, errno) in [
        (&request[..39], libc::EINVAL),
        (&request[..41], libc::EINVAL),
        (&request[..40], 0),
    ] {
        let head = pair.driver.put(&[readable], &[40]);
        pair.driver.kick();
        assert_eq!(pair.driver.wait().len, 40);
        assert_eq!(pair.driver.response(head + 1).status, status(errno));
    }
    for writable in [&[39][..], &[]] {
        let allocate = Request::Allocate { len: 1 }.to_bytes();
        pair.driver.put(&[&allocate], writable);
        pair.driver.kick();
        assert_eq!(pair.driver.wait().len, 0);
    }
    let mut unknown = [0; 40];
    unknown[0] = 99;
    let head = pair.driver.put(&[&unknown], &[40]);
    pair.driver.kick();
    assert_eq!(pair.driver.wait().len, 40);
    let response = pair.driver.response(head + 1);
    assert_eq!(response.status, status(libc::EOPNOTSUPP));
    let all = pair.driver.call(Request::Info { blob: 0 });
    assert_eq!(all.blobs, 0);
    pair.finish();
}

#[test]
fn batch_of_requests_is_answered_in_order() {
    let mut pair = Pair::start(WANTED);
    let requests = [
        Request::Allocate { len: 1 },
        Request::Allocate { len: 2 },
        Request::Info { blob: 2 },
    ];
    let heads = requests.map(|request| pair.driver.put(&[&request.to_bytes()], &[40]));
    pair.driver.kick();
    for head in heads {
        assert_eq!(pair.driver.wait().head, u32::from(head));
    }
    let last = pair.driver.response(heads[2] + 1);
    assert_eq!((last.status, last.size, last.blobs), (0, 2, 2));
    pair.finish();
}

#[test]
fn map_without_a_channel_is_not_connected() {
    let mut pair = Pair::start(Wanted {
        channel: false,
        ..WANTED
    });
    let blob = pair.allocate(PAGE);
    assert_eq!(pair.map(blob, 0, PAGE).status, status(libc::ENOTCONN));
    pair.open_channel();
    assert_eq!(pair.map(blob, 0, PAGE).status, 0);
    pair.finish();
}

#[test]
fn config_tells_the_limits_and_can_not_be_written() {
    let mut pair = Pair::start(WANTED);
    let flags = VhostUserConfigFlags::empty();
    let (_, bytes) = pair
        .frontend
        .get_config(0, 32, flags, &[0; 32])
        .expect("the configuration space");
    #[rustfmt::skip]
    let want = [
        0, 0, 0x10, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0,  4, 0, 0, 0,
        0, 0, 0x10, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(bytes, want);
    let written = pair
        .frontend
        .set_config(0, VhostUserConfigFlags::WRITABLE, &[1]);
    assert!(
        matches!(written, Err(vhost::Error::VhostUserProtocol(_))),
        "{written:?}"
    );
    assert_eq!(pair.driver.call(Request::Info { blob: 0 }).status, 0);
    let config = pair.frontend.get_shmem_config().expect("the regions");
    assert_eq!((config.nregions, config.memory_sizes[0]), (1, REGION_BYTES));
    pair.finish();
}

#[test]
fn run_serves_a_frontend_and_cleans_up() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut ready, ready_descriptor) = io::pipe().expect("a pipe");
    let mut options = Options::new(dir.path().join("socket"));
    options.once = true;
    options.ready_descriptor = Some(ready_descriptor.into());
    let socket = options.socket.clone();
    let backend = thread::spawn(move || {
        let mut events = Vec::new();
        let result = run(options, &mut |report| events.push(report.to_string()));
        (result, events)
    });
    ready.read_exact(&mut [0]).expect("the backend listens");
    let frontend = Frontend::connect(&socket, 1).expect("a connection");
    frontend.set_owner().expect("the owner");
    drop(frontend);
    let (result, events) = backend.join().expect("the backend does not panic");
    assert!(matches!(result, Ok(())), "{result:?}");
    let listening = format!("listening on {}", socket.display());
    let want = [
        listening.as_str(),
        "a frontend has connected",
        "the frontend is gone after 0 requests",
    ];
    assert_eq!(events, want);
    assert!(!socket.exists());
}

#[test]
fn region_that_is_no_region_is_refused() {
    for bytes in [0, 1, PAGE + 1] {
        let mut options = Options::new(PathBuf::from("/nonexistent/socket"));
        options.region_size = bytes;
        let result = run(options, &mut |_| {});
        assert!(
            matches!(result, Err(Error::Region { bytes: got, .. }) if got == bytes),
            "{result:?}"
        );
    }
}
