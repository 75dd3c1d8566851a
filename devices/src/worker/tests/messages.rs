//! The messages that are not about memory: notifications, doorbells, translations, shared objects.

use std::io::IoSliceMut;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::Arc;

use base::Protection;
use base::scm;
use base::scm::DescriptorVec;

use super::*;
use crate::control::HookRequest;
use crate::control::HookResponse;
use crate::control::IotlbEntry;
use crate::control::ObjectId;
use crate::iotlb;

const IOTLB: u32 = 1;
const HOST_NOTIFIER: u32 = 3;
const VRING_CALL: u32 = 4;
const VRING_ERR: u32 = 5;
const OBJECT_ADD: u32 = 6;
const OBJECT_LOOKUP: u32 = 8;

#[test]
fn vring_call_signals_the_queue_in_the_backends_place() {
    let bench = Bench::new();
    let backend = bench.channel();
    let call = Event::new().unwrap();
    let descriptor = Arc::new(SafeDescriptor::from(call.try_clone().unwrap()));
    bench
        .worker
        .activate(negotiated(), vec![(3, descriptor)])
        .unwrap();
    send(
        &backend,
        VRING_CALL,
        NEED_REPLY,
        &[3, 0, 0, 0, 0, 0, 0, 0],
        None,
    );
    assert_eq!(read_reply(&backend), (VRING_CALL, 0));
    assert_eq!(call.wait_timeout(TIMEOUT), Ok(EventWaitResult::Signaled));
    assert_eq!(bench.worker.stats().unwrap().vring_calls, 1);
}

#[test]
fn vring_call_of_a_queue_that_is_not_set_up_is_refused() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(
        &backend,
        VRING_CALL,
        NEED_REPLY,
        &[3, 0, 0, 0, 0, 0, 0, 0],
        None,
    );
    assert_eq!(read_reply(&backend), (VRING_CALL, -i64::from(libc::ENXIO)));
}

#[test]
fn vring_err_is_reported_to_the_vmm() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(
        &backend,
        VRING_ERR,
        NEED_REPLY,
        &[1, 0, 0, 0, 0, 0, 0, 0],
        None,
    );
    assert_eq!(read_reply(&backend), (VRING_ERR, 0));
    assert_eq!(bench.event(), DeviceEvent::VringError { index: 1 });
}

fn notifier(queue: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    for word in [queue, PAGE, 0] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    payload
}

#[test]
fn host_notifier_is_mapped_replaced_and_removed() {
    let bench = Bench::new();
    let backend = bench.channel();
    let page = file(PAGE);
    let places = |batch: RequestBatch| -> Vec<(bool, u8, u64)> {
        batch
            .requests
            .iter()
            .map(|request| match request {
                VmMemoryRequest::RegisterMemory { dest, .. } => (true, dest.shmid, dest.offset),
                VmMemoryRequest::UnregisterMemory { dest, .. } => (false, dest.shmid, dest.offset),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let answer = |count: usize| {
        let responses = (0..count).map(|_| VmMemoryResponse::Ok).collect();
        bench.memory.send(&ResponseBatch { responses }).unwrap();
    };
    let at = |mapped: bool| (mapped, NOTIFIERS, 2 * PAGE);

    send(
        &backend,
        HOST_NOTIFIER,
        NEED_REPLY,
        &notifier(2),
        Some(page.as_fd()),
    );
    assert_eq!(places(bench.batch()), [at(true)]);
    answer(1);
    assert_eq!(read_reply(&backend), (HOST_NOTIFIER, 0));

    send(
        &backend,
        HOST_NOTIFIER,
        NEED_REPLY,
        &notifier(2),
        Some(page.as_fd()),
    );
    assert_eq!(places(bench.batch()), [at(false), at(true)]);
    answer(2);
    assert_eq!(read_reply(&backend), (HOST_NOTIFIER, 0));

    send(
        &backend,
        HOST_NOTIFIER,
        NEED_REPLY,
        &notifier(2 | 1 << 8),
        None,
    );
    assert_eq!(places(bench.batch()), [at(false)]);
    answer(1);
    assert_eq!(read_reply(&backend), (HOST_NOTIFIER, 0));

    send(
        &backend,
        HOST_NOTIFIER,
        NEED_REPLY,
        &notifier(2 | 1 << 8),
        None,
    );
    assert_eq!(
        read_reply(&backend),
        (HOST_NOTIFIER, -i64::from(libc::ENOENT))
    );
}

#[test]
fn region_of_the_doorbells_is_not_the_backends_to_name() {
    let bench = Bench::new();
    let backend = bench.channel();
    let page = file(PAGE);
    let payload = mmap(NOTIFIERS, 0, PAGE, 1);
    send(&backend, MAP, NEED_REPLY, &payload, Some(page.as_fd()));
    assert_eq!(read_reply(&backend), (MAP, -i64::from(libc::ENXIO)));
    let payload = mmap(NOTIFIERS, 0, PAGE, 0);
    send(&backend, UNMAP, NEED_REPLY, &payload, None);
    assert_eq!(read_reply(&backend), (UNMAP, -i64::from(libc::ENXIO)));
}

fn iotlb_miss(iova: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    for word in [iova, PAGE, 0] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    // Read and write; a miss.
    payload.extend_from_slice(&[3, 1, 0, 0, 0, 0, 0, 0]);
    payload
}

#[test]
fn iotlb_miss_is_answered_after_the_update_went_out() {
    let mut bench = Bench::new();
    let backend = bench.channel();
    send(&backend, IOTLB, NEED_REPLY, &iotlb_miss(0x7000), None);
    let request: HookRequest = bench.hooks.recv().unwrap();
    let access = Protection::read_write();
    assert_eq!(
        request,
        HookRequest::IotlbMiss {
            iova: 0x7000,
            size: PAGE,
            access
        }
    );
    let entry = IotlbEntry {
        iova: 0x7000,
        size: PAGE,
        guest_address: 0x10_0000,
        access,
    };
    bench.hooks.send(&HookResponse::Translation(entry)).unwrap();
    assert_eq!(read_reply(&backend), (IOTLB, 0));
    // The update is there already.
    bench.main_channel.set_nonblocking(true).unwrap();
    let mut update = [0; 44];
    bench.main_channel.read_exact(&mut update).unwrap();
    assert_eq!(update, iotlb::update(&entry));
}

#[test]
fn iotlb_miss_that_the_vmm_refuses_gets_its_errno() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(&backend, IOTLB, NEED_REPLY, &iotlb_miss(0x7000), None);
    let _: HookRequest = bench.hooks.recv().unwrap();
    let refusal = HookResponse::Refused(base::Error::new(libc::EFAULT));
    bench.hooks.send(&refusal).unwrap();
    assert_eq!(read_reply(&backend), (IOTLB, -i64::from(libc::EFAULT)));
}

#[test]
fn iotlb_without_translated_addresses_is_not_welcome() {
    let bench = Bench::new();
    let backend = bench.channel();
    let untranslated = Negotiated {
        virtio_features: 0,
        ..negotiated()
    };
    bench.worker.activate(untranslated, Vec::new()).unwrap();
    send(&backend, IOTLB, NEED_REPLY, &iotlb_miss(0), None);
    assert_eq!(read_reply(&backend), (IOTLB, -i64::from(libc::ENOTSUP)));
}

#[test]
fn object_lookup_is_answered_with_the_descriptor() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(&backend, OBJECT_LOOKUP, 0, &[7; 16], None);
    let request: HookRequest = bench.hooks.recv().unwrap();
    assert_eq!(request, HookRequest::ObjectLookup(ObjectId([7; 16])));
    bench.hooks.send(&HookResponse::Object(file(PAGE))).unwrap();
    let mut reply = [0; 20];
    let mut descriptors = DescriptorVec::<1>::new();
    scm::recv(
        backend.as_fd(),
        &mut [IoSliceMut::new(&mut reply)],
        &mut descriptors,
        scm::Wait::Block,
    )
    .unwrap();
    assert_eq!(reply[12..], [0; 8]);
    assert_eq!(descriptors.len(), 1);
}

#[test]
fn object_lookup_answered_without_an_object_fails() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(&backend, OBJECT_LOOKUP, 0, &[7; 16], None);
    let _: HookRequest = bench.hooks.recv().unwrap();
    bench.hooks.send(&HookResponse::Done).unwrap();
    assert_eq!(
        read_reply(&backend),
        (OBJECT_LOOKUP, -i64::from(libc::ENOENT))
    );
}

#[test]
fn hooks_that_the_vmm_does_not_answer_are_bounded_and_stall_nothing() {
    let bench = Bench::new();
    let backend = bench.channel();
    for _ in 0..33 {
        send(&backend, OBJECT_ADD, 0, &[7; 16], None);
    }
    send_map(&backend, 0, 0);
    bench.grant(1);
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.maps, stats.refused), (1, 1));
    assert_eq!(
        stats.last_refused.map(|refused| refused.errno.errno()),
        Some(libc::EAGAIN)
    );
    assert_eq!(bench.kill(), WorkerExit::Killed);
}
