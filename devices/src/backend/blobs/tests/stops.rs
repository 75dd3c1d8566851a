//! Stopping, resetting and exchanging things, also while a request waits for the frontend.

use super::*;

#[test]
fn stopped_ring_goes_on_with_the_next_request() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    assert_eq!(pair.frontend.get_vring_base(0).expect("a base"), 1);
    let place = pair.driver.ask(Request::Info { blob });
    // The device can't have seen it: the ring was stopped before it was there.
    assert_eq!(pair.driver.unseen(), 0);
    pair.activate(false, 1);
    pair.driver.wait();
    assert_eq!(pair.driver.response(place).size, PAGE);
    let events = pair.finish();
    let tail = &events[events.len() - 3..];
    let want = [
        "the queue is stopped",
        "the queue runs",
        "the frontend is gone after 2 requests",
    ];
    assert_eq!(tail, want);
}

#[test]
fn new_memory_is_taken_while_a_request_waits_for_the_frontend() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    let (arrived, go_on) = pair.shut_gate();
    let place = pair.driver.ask(Request::Map {
        blob,
        shm_offset: 0,
        blob_offset: 0,
        len: PAGE,
        writable: false,
    });
    arrived
        .recv_timeout(TIMEOUT)
        .expect("the request is with the frontend");
    // A frontend may do this before it answers the request.
    pair.driver.share_memory(&pair.frontend);
    go_on.send(()).expect("the frontend waits");
    pair.driver.wait();
    assert_eq!(pair.driver.response(place).status, 0);
    go_on.send(()).expect("the gate is there");
    pair.finish();
}

#[test]
fn frontend_that_does_not_answer_loses_the_channel() {
    let mut pair = Pair::start(Wanted {
        reply_deadline: Duration::from_millis(20),
        ..WANTED
    });
    let blob = pair.allocate(PAGE);
    let (arrived, go_on) = pair.shut_gate();
    let response = pair.map(blob, 0, PAGE);
    assert_eq!(response.status, status(libc::ETIMEDOUT));
    arrived
        .recv_timeout(TIMEOUT)
        .expect("the request is with the frontend");
    let response = pair.map(blob, 0, PAGE);
    assert_eq!(response.status, status(libc::ENOTCONN));
    go_on.send(()).expect("the frontend waits");
    pair.finish();
}

#[test]
fn ring_stops_after_the_request_that_waits_for_the_frontend() {
    let mut pair = Pair::start(Wanted {
        reply_deadline: Duration::from_millis(20),
        ..WANTED
    });
    let blob = pair.allocate(PAGE);
    let (arrived, go_on) = pair.shut_gate();
    let place = pair.driver.ask(Request::Map {
        blob,
        shm_offset: 0,
        blob_offset: 0,
        len: PAGE,
        writable: false,
    });
    arrived
        .recv_timeout(TIMEOUT)
        .expect("the request is with the frontend");
    assert_eq!(pair.frontend.get_vring_base(0).expect("a base"), 2);
    assert_eq!(pair.driver.unseen(), 1);
    pair.driver.wait();
    let response = pair.driver.response(place);
    assert_eq!(response.status, status(libc::ETIMEDOUT));
    go_on.send(()).expect("the frontend waits");
    pair.finish();
}

#[test]
fn reset_gives_up_a_request_and_the_next_one_does_not_get_its_answer() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    let (arrived, go_on) = pair.shut_gate();
    pair.driver.ask(Request::Map {
        blob,
        shm_offset: 0,
        blob_offset: 0,
        len: PAGE,
        writable: false,
    });
    arrived
        .recv_timeout(TIMEOUT)
        .expect("the request is with the frontend");
    pair.frontend.reset_device().expect("the device is reset");
    assert_eq!(pair.driver.unseen(), 0);
    go_on.send(()).expect("the frontend waits");
    pair.driver = Driver::new(false);
    pair.activate(false, 0);
    let all = pair.driver.call(Request::Info { blob: 0 });
    assert_eq!(all.blobs, 0);
    // The frontend of this test forgets nothing at a reset: it has granted the request that was given up.
    let blob = pair.allocate(PAGE);
    go_on.send(()).expect("the gate is there");
    assert_eq!(pair.map(blob, 0, PAGE).status, status(libc::EEXIST));
    go_on.send(()).expect("the gate is there");
    assert_eq!(pair.map(blob, PAGE, PAGE).status, 0);
    pair.finish();
}

#[test]
fn new_channel_finds_the_blobs_unmapped() {
    let mut pair = Pair::start(WANTED);
    let blob = pair.allocate(PAGE);
    assert_eq!(pair.map(blob, 0, PAGE).status, 0);
    pair.open_channel();
    let described = pair.driver.call(Request::Info { blob });
    assert_eq!((described.status, described.mapped), (0, 0));
    assert_eq!(pair.map(blob, PAGE, PAGE).status, 0);
    pair.finish();
}

#[test]
fn ring_that_is_no_memory_does_not_run() {
    let mut pair = Pair::start(WANTED);
    assert_eq!(pair.frontend.get_vring_base(0).expect("a base"), 0);
    let config = vhost::VringConfigData {
        queue_max_size: 8,
        queue_size: 8,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x3000,
        avail_ring_addr: 0x2000,
        log_addr: None,
    };
    // Without a kick it does not run yet.
    pair.frontend
        .set_vring_addr(0, &config)
        .expect("the addresses");
    let kick = vmm_sys_util::eventfd::EventFd::new(0).expect("an event");
    let refused = pair.frontend.set_vring_kick(0, &kick);
    assert!(
        matches!(refused, Err(vhost::Error::VhostUserProtocol(_))),
        "{refused:?}"
    );
    // The main channel goes on.
    pair.activate(false, 0);
    assert_eq!(pair.allocate(PAGE), 1);
    pair.finish();
}
