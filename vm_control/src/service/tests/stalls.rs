//! Devices that flood, do not read, talk nonsense or die; and what the others notice of it.

use base::SafeDescriptor;
use base::Tube;
use base::TubeError;
use base::packet::PacketTube;

use super::fixture::*;
use crate::Generation;
use crate::GoneReason;
use crate::MAX_BATCH;
use crate::ResponseBatch;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;
use crate::api::BatchClient;

#[test]
fn batch_is_answered_in_one_packet_in_its_order() {
    let mut fixture = Fixture::new();
    let (_, tube, arena) = fixture.add_bare(named("fs0"));
    let requests = [
        map_request(memfd(PAGE, 1), 0),
        map_request(memfd(PAGE, 2), 0),
        unmap_request(0),
        map_request(memfd(PAGE, 3), 0),
        unmap_request(1),
    ];
    tube.send(&batch(requests)).expect("sent");
    let answers: ResponseBatch = tube.recv().expect("answered");
    let expected = [
        VmMemoryResponse::Ok,
        refused(libc::EEXIST),
        VmMemoryResponse::Ok,
        VmMemoryResponse::Ok,
        refused(libc::ENOENT),
    ];
    assert_eq!(answers.responses[..], expected);
    let mut byte = [0];
    assert_eq!(arena.read_at(0, &mut byte), Ok(()));
    assert_eq!(byte, [3]);
}

#[test]
fn batch_client_sends_what_it_collected_and_keeps_generations_apart() {
    let mut fixture = Fixture::new();
    let (id, tube, _arena) = fixture.add_bare(named("fs0"));
    let mut client = BatchClient::new(tube, Generation::default());
    for page in 0..MAX_BATCH as u64 {
        client
            .push(map_request(memfd(PAGE, 1), page))
            .expect("room");
    }
    assert!(client.is_full());
    let refused = client.push(unmap_request(0));
    assert!(matches!(
        refused,
        Err(VmMemoryRequest::UnregisterMemory { .. })
    ));
    assert_eq!(client.try_send(), Ok(true));
    assert!(client.is_empty());
    assert_eq!(answers(&mut client), [VmMemoryResponse::Ok; MAX_BATCH]);

    client.push(unmap_request(0)).expect("room");
    let generation = fixture.handle.reset_device(id).expect("known");
    client.set_generation(generation);
    // What was collected before the reset is not of the new generation.
    assert!(client.is_full());
    assert!(client.push(map_request(memfd(PAGE, 1), 0)).is_err());
    assert_eq!(client.try_send(), Ok(true));
    let cancelled = VmMemoryResponse::Err(base::Error::new(libc::ECANCELED));
    assert_eq!(answers(&mut client), [cancelled]);
    client.push(map_request(memfd(PAGE, 1), 0)).expect("room");
    assert_eq!(client.try_send(), Ok(true));
    assert_eq!(answers(&mut client), [VmMemoryResponse::Ok]);
    assert_eq!(client.try_recv(), Ok(None));
}

/// Waits for the next packet of answers.
#[track_caller]
fn answers(client: &mut BatchClient) -> Vec<VmMemoryResponse> {
    let context = base::WaitContext::build_with(&[(&*client, 0u32)]).expect("a wait context");
    let ready = context.wait_timeout(TIMEOUT).expect("it waits");
    assert_eq!(ready.len(), 1, "no answer within {TIMEOUT:?}");
    let batch = client.try_recv().expect("answered");
    batch.expect("a packet").responses.to_vec()
}

/// Sends requests until the tube is closed or full, and returns how many went.
fn flood(tube: Tube) -> (PacketTube, u64) {
    let mut tube = PacketTube::new(tube);
    let mut sent = 0;
    loop {
        match tube.try_send(&batch([unmap_request(0)])) {
            Ok(()) => sent += 1,
            // The service is not as fast; it gets the rest of the processor.
            Err(TubeError::WouldBlock) => std::thread::yield_now(),
            Err(TubeError::Disconnected) => return (tube, sent),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn device_that_never_reads_its_answers_is_dropped_and_the_others_are_served() {
    let mut fixture = Fixture::new();
    let mut other = fixture.add(named("fs1"));
    let (id, tube, arena) = fixture.add_bare(named("fs0"));
    tube.send(&batch([map_request(memfd(PAGE, 1), 0)]))
        .expect("sent");
    let _: ResponseBatch = tube.recv().expect("answered");
    let flooding = std::thread::spawn(move || {
        let (_tube, sent) = flood(tube);
        sent
    });
    assert_eq!(other.map(memfd(PAGE, 2), 0, PAGE, READ), Ok(()));
    let gone = fixture.wait_gone();
    assert_eq!(gone.id, id);
    assert!(
        matches!(gone.reason, GoneReason::DoesNotRead),
        "{:?}",
        gone.reason
    );
    let sent = flooding.join().expect("it ends");
    assert!(sent > 0);
    assert_eq!(areas(&arena), 1);
    assert_eq!(other.byte(0), Ok(2));
    assert_eq!(other.unmap(0, PAGE), Ok(()));
}

#[test]
fn packet_that_is_no_batch_costs_the_device_its_tube() {
    let mut fixture = Fixture::new();
    let (watch, pipe) = watched();
    let pipe = SafeDescriptor::from(pipe);
    let nonsense: [&dyn Fn(&Tube); 4] = [
        &|tube| tube.send(&[0xffu8; 32]).expect("sent"),
        &|tube| tube.send(&vec![7u8; 60_000]).expect("sent"),
        // A batch with a descriptor that no request has.
        &|tube| tube.send(&(0u32, 0u8, &pipe)).expect("sent"),
        // More requests than a batch may have.
        &|tube| {
            let requests: Vec<_> = (0..40).map(unmap_request).collect();
            tube.send(&(0u32, requests)).expect("sent");
        },
    ];
    for send in nonsense {
        let (id, tube, _arena) = fixture.add_bare(named("fs0"));
        send(&tube);
        let gone = fixture.wait_gone();
        assert_eq!(gone.id, id);
        assert!(
            matches!(gone.reason, GoneReason::Protocol(_)),
            "{:?}",
            gone.reason
        );
        assert!(matches!(
            tube.recv::<ResponseBatch>(),
            Err(TubeError::Disconnected)
        ));
    }
    drop(pipe);
    assert_closed(&watch);
    let (_, tube, _arena) = fixture.add_bare(named("fs0"));
    tube.send(&batch([])).expect("sent");
    let gone = fixture.wait_gone();
    assert!(
        matches!(gone.reason, GoneReason::EmptyBatch),
        "{:?}",
        gone.reason
    );
}

#[test]
fn device_that_dies_with_requests_under_way_leaves_nothing() {
    let mut fixture = Fixture::new();
    for _ in 0..20 {
        let (id, tube, arena) = fixture.add_bare(named("fs0"));
        let (watch, pipe) = watched();
        let maps = (0..8).map(|page| map_request(memfd(PAGE, 1), page));
        tube.send(&batch(maps)).expect("sent");
        tube.send(&batch([map_request(pipe, 9)])).expect("sent");
        drop(tube);
        let gone = fixture.wait_gone();
        assert_eq!(gone.id, id);
        assert!(
            matches!(gone.reason, GoneReason::Closed),
            "{:?}",
            gone.reason
        );
        assert_closed(&watch);
        assert_eq!(areas(&arena), 1);
        assert_eq!(fixture.mappings(), []);
    }
}

#[test]
fn device_removed_with_requests_under_way_leaves_nothing() {
    let mut fixture = Fixture::new();
    for _ in 0..20 {
        let (id, tube, arena) = fixture.add_bare(named("fs0"));
        let (watch, pipe) = watched();
        tube.send(&batch([map_request(memfd(PAGE, 1), 0)]))
            .expect("sent");
        tube.send(&batch([map_request(pipe, 9)])).expect("sent");
        fixture.handle.remove_device(id).expect("known");
        assert_closed(&watch);
        assert_eq!(areas(&arena), 1);
        assert_eq!(fixture.mappings(), []);
    }
}

#[test]
fn sockets_sent_as_memory_are_refused_and_closed_and_the_device_stays() {
    let mut fixture = Fixture::new();
    let (_, tube, _arena) = fixture.add_bare(named("fs0"));
    for _ in 0..8 {
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let requests = (0..16).map(|page| {
            let socket = theirs.try_clone().expect("a duplicate");
            map_request(socket, page)
        });
        tube.send(&batch(requests)).expect("sent");
        drop(theirs);
        let answers: ResponseBatch = tube.recv().expect("answered");
        assert_eq!(answers.responses[..], [refused(libc::EBADF); 16]);
        assert_closed(&mine.into());
    }
    tube.send(&batch([map_request(memfd(PAGE, 1), 0)]))
        .expect("sent");
    let answers: ResponseBatch = tube.recv().expect("answered");
    assert_eq!(answers.responses[..], [VmMemoryResponse::Ok]);
}

#[test]
fn batch_that_is_discarded_is_not_sent() {
    let mut fixture = Fixture::new();
    let (_, tube, _arena) = fixture.add_bare(named("fs0"));
    let mut client = BatchClient::new(tube, Generation::default());
    let (watch, pipe) = watched();
    client.push(map_request(pipe, 0)).expect("room");
    client.push(unmap_request(0)).expect("room");
    assert_eq!(client.discard(), 2);
    assert_closed(&watch);
    assert_eq!(client.try_send(), Ok(true));
    assert_eq!(fixture.handle.stats()[0].counters.batches, 0);
}
