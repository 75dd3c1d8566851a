//! The end of a channel, of an activation and of the worker.

use super::*;

#[test]
fn closed_channel_drops_the_mappings_and_another_can_be_opened() {
    let bench = Bench::new();
    let backend = bench.channel();
    send_map(&backend, 0, NEED_REPLY);
    bench.grant(1);
    assert_eq!(read_reply(&backend), (MAP, 0));
    drop(backend);

    let batch = bench.batch();
    assert!(
        matches!(batch.requests.as_slice(), [VmMemoryRequest::UnregisterAll]),
        "{batch:?}"
    );
    assert_eq!(
        bench.event(),
        DeviceEvent::ChannelClosed {
            reason: ChannelClosed::ByBackend
        }
    );
    bench
        .memory
        .send(&ResponseBatch {
            responses: [VmMemoryResponse::Ok].into_iter().collect(),
        })
        .unwrap();

    let backend = bench.channel();
    send_map(&backend, 0, NEED_REPLY);
    bench.grant(1);
    assert_eq!(read_reply(&backend), (MAP, 0));
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.channels, stats.channel_open), (2, true));
}

#[test]
fn request_before_the_end_of_the_channel_is_still_served() {
    let bench = Bench::new();
    let backend = bench.channel();
    send_map(&backend, 0, 0);
    drop(backend);
    let mut requests = Vec::new();
    while requests.len() < 2 {
        requests.extend(bench.batch().requests);
    }
    assert!(
        matches!(
            requests.as_slice(),
            [
                VmMemoryRequest::RegisterMemory { .. },
                VmMemoryRequest::UnregisterAll
            ]
        ),
        "{requests:?}"
    );
}

#[test]
fn broken_framing_closes_the_channel_and_says_why() {
    let bench = Bench::new();
    let mut backend = bench.channel();
    // Version 2.
    for word in [UNMAP, 2, 40] {
        backend.write_all(&word.to_ne_bytes()).unwrap();
    }
    let DeviceEvent::ChannelClosed {
        reason: ChannelClosed::BrokenFraming { detail },
    } = bench.event()
    else {
        panic!("another event");
    };
    assert!(detail.contains("version"), "{detail}");
    assert_eq!(backend.read(&mut [0; 1]).unwrap(), 0);
    assert!(!bench.worker.stats().unwrap().channel_open);
}

#[test]
fn answer_for_a_closed_channel_does_not_reach_the_next_one() {
    let bench = Bench::new();
    let first = bench.channel();
    send_map(&first, 0, NEED_REPLY);
    assert_eq!(bench.batch().requests.len(), 1);
    drop(first);
    assert!(matches!(bench.event(), DeviceEvent::ChannelClosed { .. }));

    let second = bench.channel();
    send(&second, UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0), None);
    // The first answer belongs to the closed channel's map, the next ones to the order to drop everything and to the unmap.
    bench
        .memory
        .send(&ResponseBatch {
            responses: [VmMemoryResponse::Err(base::Error::new(libc::EEXIST))]
                .into_iter()
                .collect(),
        })
        .unwrap();
    bench.grant(2);
    assert_eq!(read_reply(&second), (UNMAP, 0));
}

#[test]
fn reset_cancels_what_was_asked_and_serves_what_comes_after() {
    let bench = Bench::new();
    let backend = bench.channel();
    bench.worker.cancel().unwrap();
    send_map(&backend, 0, NEED_REPLY);
    assert_eq!(read_reply(&backend), (MAP, -i64::from(libc::ECANCELED)));

    bench.worker.hold().unwrap();
    send_map(&backend, 0x1000, NEED_REPLY);
    bench.worker.resume(Generation(1)).unwrap();
    let batch = bench.batch();
    assert_eq!(batch.generation, Generation(1));
    let [VmMemoryRequest::RegisterMemory { dest, .. }] = batch.requests.as_slice() else {
        panic!("{batch:?}");
    };
    assert_eq!(dest.offset, 0x1000);
}

#[test]
fn hold_cancels_what_has_arrived() {
    let bench = Bench::new();
    let backend = bench.channel();
    // A silent service, and more than a batch: some of it is still in the socket when the reset comes.
    for index in 0..100 {
        send_map(&backend, index * PAGE, NEED_REPLY);
    }
    bench.worker.cancel().unwrap();
    bench.worker.hold().unwrap();
    bench.worker.resume(Generation(1)).unwrap();
    send_map(&backend, 0, NEED_REPLY);
    let mut old = 0;
    loop {
        let batch = bench.batch();
        let responses = batch.requests.iter().map(|_| VmMemoryResponse::Ok);
        bench
            .memory
            .send(&ResponseBatch {
                responses: responses.collect(),
            })
            .unwrap();
        if batch.generation == Generation(1) {
            assert_eq!(batch.requests.len(), 1);
            break;
        }
        old += batch.requests.len();
    }
    let replies: Vec<_> = (0..101).map(|_| read_reply(&backend).1).collect();
    let cancelled = replies
        .iter()
        .filter(|value| **value == -i64::from(libc::ECANCELED))
        .count();
    assert_eq!(old + cancelled, 100);
    assert_eq!(replies.last(), Some(&0));
}

#[test]
fn main_channel_hang_up_ends_the_worker() {
    let bench = Bench::new();
    let _backend = bench.channel();
    let Bench {
        main_channel,
        exits,
        worker: _worker,
        ..
    } = bench;
    drop(main_channel);
    let exit = exits.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(exit, WorkerExit::MainChannelClosed);
}

#[test]
fn memory_tube_hang_up_ends_the_worker() {
    let bench = Bench::new();
    let Bench {
        memory,
        exits,
        worker: _worker,
        ..
    } = bench;
    drop(memory);
    assert_eq!(
        exits.recv_timeout(TIMEOUT).unwrap(),
        WorkerExit::ServiceGone
    );
}

#[test]
fn service_that_answers_what_was_not_asked_ends_the_worker() {
    let bench = Bench::new();
    bench
        .memory
        .send(&ResponseBatch {
            responses: [VmMemoryResponse::Ok].into_iter().collect(),
        })
        .unwrap();
    assert_eq!(bench.exit(), WorkerExit::ServiceGone);
}

#[test]
fn command_to_a_worker_that_has_ended_is_refused() {
    let bench = Bench::new();
    let Bench {
        memory,
        exits,
        worker,
        ..
    } = bench;
    drop(memory);
    exits.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(worker.stats(), Err(CommandError::Ended));
}
