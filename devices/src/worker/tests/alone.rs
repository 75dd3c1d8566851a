//! A backend that waits for each answer: the worker waits for its next request outside the wait context.

use super::*;
use crate::worker::intake::ALONE_PROBE;

/// Enough requests that the worker has come to expect them one at a time.
const MANY: u32 = 4 * ALONE_PROBE;

/// A pair of requests, each answered before the next is sent.
fn one_pair(bench: &Bench, backend: &UnixStream) {
    send_map(backend, 0, NEED_REPLY);
    assert_eq!(bench.grant(1), [1]);
    assert_eq!(read_reply(backend), (MAP, 0));
    send(backend, UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0), None);
    assert_eq!(bench.grant(1), [1]);
    assert_eq!(read_reply(backend), (UNMAP, 0));
}

fn used_to_waiting() -> (Bench, UnixStream) {
    let bench = Bench::new();
    let backend = bench.channel();
    for _ in 0..MANY {
        one_pair(&bench, &backend);
    }
    (bench, backend)
}

#[test]
fn commands_and_kill_are_served_while_the_backend_is_waited_for() {
    let (bench, _backend) = used_to_waiting();
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.maps, stats.unmaps), (MANY.into(), MANY.into()));
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn kill_is_served_while_the_service_is_waited_for() {
    let (bench, backend) = used_to_waiting();
    send_map(&backend, 0, NEED_REPLY);
    assert_eq!(bench.batch().requests.len(), 1);
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn kill_is_served_between_requests_that_never_end() {
    let (bench, backend) = used_to_waiting();
    let Bench {
        worker,
        memory,
        exits,
        ..
    } = bench;
    let stopper = std::thread::spawn(move || worker.stop());
    let request = message(UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0));
    let responses = ResponseBatch {
        responses: std::iter::once(VmMemoryResponse::Ok).collect(),
    };
    let mut reply = [0; 20];
    // Each is answered at once, until the worker is gone.
    let mut rounds = 0..100 * ALONE_IN_A_ROW;
    while rounds.next().is_some()
        && (&backend).write_all(&request).is_ok()
        && memory.recv::<RequestBatch>().is_ok()
        && memory.send(&responses).is_ok()
        && (&backend).read_exact(&mut reply).is_ok()
    {}
    assert_eq!(exits.recv_timeout(TIMEOUT), Ok(WorkerExit::Killed));
    assert_eq!(stopper.join().unwrap(), WorkerExit::Killed);
}

#[test]
fn hang_up_is_seen_while_the_backend_is_waited_for() {
    let (bench, backend) = used_to_waiting();
    drop(backend);
    assert_eq!(
        bench.event(),
        DeviceEvent::ChannelClosed {
            reason: ChannelClosed::ByBackend
        }
    );
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn backend_that_begins_to_send_ahead_is_served_in_batches() {
    let (bench, backend) = used_to_waiting();
    let ahead = 4 * ALONE_PROBE as usize;
    // In one piece, so that it is not up to the scheduler what the worker finds there.
    let unmap = message(UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0));
    (&backend).write_all(&unmap.repeat(ahead)).unwrap();
    let batches = bench.grant(ahead);
    assert!(batches.len() < ahead, "{batches:?}");
    for _ in 0..ahead {
        assert_eq!(read_reply(&backend), (UNMAP, 0));
    }
}
