//! The main channel against a scripted backend: what is sent, in which order, and what is made of the answers.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use base::Event;

use super::*;
use crate::control::MemoryRegion;
use crate::control::RegionSource;
use crate::exit::Exit;
use crate::shmem_config::ShmemConfigError;
use crate::shmem_config::ShmemRegion;
use crate::testing::Script;
use crate::testing::Seen;
use crate::testing::file;

fn connected(script: Script) -> (VhostUserFrontend, JoinHandle<Vec<Seen>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let backend = script.serve(theirs);
    (VhostUserFrontend::new(ours).unwrap(), backend)
}

fn codes(frontend: VhostUserFrontend, backend: JoinHandle<Vec<Seen>>) -> Vec<u32> {
    drop(frontend);
    let seen = backend.join().unwrap();
    seen.iter().map(|message| message.code).collect()
}

fn queue(index: u16) -> QueueSetup {
    QueueSetup {
        index,
        size: 16,
        descriptor_table: 0x10_0000,
        available_ring: 0x10_1000,
        used_ring: 0x10_3f78,
        base: 3,
        call: Some(Event::new().unwrap().into()),
        kick: Event::new().unwrap().into(),
    }
}

fn activation(queues: Vec<QueueSetup>) -> Activation {
    Activation {
        features: 1 << 32,
        memory: vec![MemoryRegion {
            guest_address: 0x10_0000,
            len: 0x4000,
            offset: 0,
            descriptor: file(0x4000),
        }],
        queues,
    }
}

/// Takes the calls out, as the main thread does.
fn with_calls(mut activation: Activation) -> (Activation, Vec<Call>) {
    let take = |queue: &mut QueueSetup| Some((queue.index, Arc::new(queue.call.take()?)));
    let calls = activation.queues.iter_mut().filter_map(take).collect();
    (activation, calls)
}

#[test]
fn connect_asks_for_regions_before_there_is_a_channel() {
    let (mut frontend, backend) = connected(Script {
        shmem: (2, vec![(1, 0x2000), (7, 0x1000)]),
        ..Script::default()
    });
    let info = frontend.connect(&ConnectOptions::default()).unwrap();
    assert_eq!(
        info.regions,
        [
            ShmemRegion {
                shmid: 1,
                len: 0x2000
            },
            ShmemRegion {
                shmid: 7,
                len: 0x1000
            }
        ]
    );
    assert_eq!(info.virtio_features, 1 << 32);
    assert_eq!(info.queues, Some(2));
    assert!(info.has_channel);

    let (_ours, theirs) = UnixStream::pair().unwrap();
    frontend.open_request_channel(&theirs).unwrap();
    assert_eq!(codes(frontend, backend), [3, 1, 15, 16, 17, 44, 21]);
}

#[test]
fn connect_a_second_time_is_refused() {
    let (mut frontend, _backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    let error = frontend.connect(&ConnectOptions::default()).unwrap_err();
    assert!(matches!(error, Error::AlreadyConnected));
}

#[test]
fn connect_with_a_hostile_count_fails_and_is_not_fatal() {
    let (mut frontend, _backend) = connected(Script {
        shmem: (u32::MAX, vec![(0, 0x1000)]),
        ..Script::default()
    });
    let error = frontend.connect(&ConnectOptions::default()).unwrap_err();
    assert!(matches!(
        error,
        Error::ShmemConfig(ShmemConfigError::Count {
            announced: u32::MAX,
            found: 1
        })
    ));
    assert_eq!(error.fatal(), None);
}

#[test]
fn connect_to_a_backend_that_claims_the_vmms_region_fails() {
    let (mut frontend, _backend) = connected(Script {
        shmem: (1, vec![(200, 0x1000)]),
        ..Script::default()
    });
    let error = frontend
        .connect(&ConnectOptions {
            notifier_region: Some(200),
            ..ConnectOptions::default()
        })
        .unwrap_err();
    assert!(matches!(
        error,
        Error::ShmemConfig(ShmemConfigError::Reserved { shmid: 200 })
    ));
}

#[test]
fn connect_with_given_regions_does_not_ask() {
    let (mut frontend, backend) = connected(Script::default());
    let given = vec![ShmemRegion {
        shmid: 3,
        len: 0x4000,
    }];
    let info = frontend
        .connect(&ConnectOptions {
            regions: RegionSource::Given(given.clone()),
            ..ConnectOptions::default()
        })
        .unwrap();
    assert_eq!(info.regions, given);
    assert!(!codes(frontend, backend).contains(&44));
}

#[test]
fn connect_to_a_backend_without_protocol_features_has_no_channel() {
    let (mut frontend, backend) = connected(Script {
        features: 1 << 32,
        ..Script::default()
    });
    let info = frontend.connect(&ConnectOptions::default()).unwrap();
    assert!(!info.has_channel);
    assert_eq!(info.regions, []);
    assert_eq!(info.queues, None);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let error = frontend.open_request_channel(&theirs).unwrap_err();
    assert!(matches!(
        error,
        Error::NotNegotiated {
            feature: "BACKEND_REQ"
        }
    ));
    assert_eq!(codes(frontend, backend), [3, 1]);
}

#[test]
fn connect_with_the_legacy_bit_asks_by_the_old_query() {
    let mut legacy_shmem = 2_u64.to_ne_bytes().to_vec();
    for (shmid, len) in [(4_u64, 0x1000_u64), (0, 0x3000)] {
        legacy_shmem.extend_from_slice(&shmid.to_ne_bytes());
        legacy_shmem.extend_from_slice(&len.to_ne_bytes());
    }
    let (mut frontend, backend) = connected(Script {
        protocol_features: BACKEND_REQ | 1 << 31,
        legacy_shmem,
        ..Script::default()
    });
    let info = frontend
        .connect(&ConnectOptions {
            legacy_shmem_bit: Some(31),
            ..ConnectOptions::default()
        })
        .unwrap();
    assert!(info.legacy_shmem);
    assert_eq!(info.protocol_features, BACKEND_REQ | 1 << 31);
    let shmids: Vec<_> = info.regions.iter().map(|region| region.shmid).collect();
    assert_eq!(shmids, [0, 4]);
    assert_eq!(codes(frontend, backend), [3, 1, 15, 16, 1004]);
}

#[test]
fn connect_with_a_legacy_list_shorter_than_its_count_fails() {
    let (mut frontend, _backend) = connected(Script {
        protocol_features: BACKEND_REQ | 1 << 31,
        legacy_shmem: 2_u64.to_ne_bytes().to_vec(),
        ..Script::default()
    });
    let error = frontend
        .connect(&ConnectOptions {
            legacy_shmem_bit: Some(31),
            ..ConnectOptions::default()
        })
        .unwrap_err();
    assert!(matches!(error, Error::LegacyList { count: 2, bytes: 0 }));
}

#[test]
fn backend_that_closes_in_place_of_an_answer_is_gone() {
    for code in [1, 15, 17, 44] {
        let (mut frontend, _backend) = connected(Script {
            hangs_up_at: Some(code),
            ..Script::default()
        });
        let error = frontend.connect(&ConnectOptions::default()).unwrap_err();
        assert_eq!(error.fatal(), Some(Exit::BackendGone), "request {code}");
    }
}

#[test]
fn read_config_returns_what_the_backend_has() {
    let (mut frontend, _backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    assert_eq!(frontend.read_config(8, 4).unwrap(), [0, 1, 2, 3]);
}

#[test]
fn read_config_out_of_bounds_is_refused_and_not_sent() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    for (offset, len) in [(0, 0), (4096, 1), (1, 4096), (u32::MAX, 4)] {
        let error = frontend.read_config(offset, len).unwrap_err();
        assert!(matches!(error, Error::ConfigBounds { .. }), "{error}");
    }
    assert!(!codes(frontend, backend).contains(&24));
}

#[test]
fn write_config_sends_offset_size_and_bytes() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.write_config(4, &[0xaa, 0xbb]).unwrap();
    drop(frontend);
    let seen = backend.join().unwrap();
    let mut want = Vec::new();
    for word in [4_u32, 2, 0] {
        want.extend_from_slice(&word.to_ne_bytes());
    }
    want.extend_from_slice(&[0xaa, 0xbb]);
    assert_eq!(
        seen.last(),
        Some(&Seen {
            code: 25,
            need_reply: true,
            payload: want,
            descriptors: 0
        })
    );
}

#[test]
fn write_config_that_is_nacked_is_an_error_and_not_fatal() {
    let (mut frontend, _backend) = connected(Script {
        nacks: vec![25],
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    let error = frontend.write_config(0, &[1]).unwrap_err();
    assert!(matches!(
        error,
        Error::Vhost {
            request: "SET_CONFIG",
            ..
        }
    ));
    assert_eq!(error.fatal(), None);
    assert_eq!(frontend.read_config(0, 1).unwrap(), [0]);
}

#[test]
fn activate_sends_memory_and_queues_in_the_order_of_real_frontends() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    let (activation, calls) = with_calls(activation(vec![queue(1)]));
    frontend.activate(&activation, &calls).unwrap();
    drop(frontend);
    let seen = backend.join().unwrap();
    let sent = &seen[6..];
    let codes: Vec<_> = sent.iter().map(|message| message.code).collect();
    assert_eq!(codes, [2, 5, 8, 9, 10, 13, 12, 18]);
    let descriptors: Vec<_> = sent.iter().map(|message| message.descriptors).collect();
    assert_eq!(descriptors, [0, 1, 0, 0, 0, 1, 1, 0]);
    let features: u64 = 1 << 32 | 1 << 30;
    assert_eq!(sent[0].payload, features.to_ne_bytes());
    // One region, and its "user" address is its guest address.
    let mut table = Vec::new();
    for word in [1_u64, 0x10_0000, 0x4000, 0x10_0000, 0] {
        table.extend_from_slice(&word.to_ne_bytes());
    }
    assert_eq!(sent[1].payload, table);
}

#[test]
fn backend_that_calls_by_message_does_not_get_the_eventfd() {
    let (mut frontend, backend) = connected(Script {
        protocol_features: SUPPORTED & !STATUS,
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    let (activation, calls) = with_calls(activation(vec![queue(1)]));
    frontend.activate(&activation, &calls).unwrap();
    drop(frontend);
    let seen = backend.join().unwrap();
    let call = seen.iter().find(|message| message.code == 13).unwrap();
    // Queue 1, and the bit that says that there is no descriptor.
    assert_eq!(call.payload, 0x101_u64.to_ne_bytes());
    assert_eq!(call.descriptors, 0);
}

#[test]
fn activate_without_queues_or_memory_sends_nothing() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.activate(&Activation::default(), &[]).unwrap();
    assert_eq!(codes(frontend, backend), [3, 1, 15, 16, 17, 44]);
}

#[test]
fn activate_with_packed_rings_is_refused() {
    let (mut frontend, _backend) = connected(Script {
        features: VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_RING_PACKED,
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    let error = frontend
        .activate(
            &Activation {
                features: VIRTIO_F_RING_PACKED,
                ..Activation::default()
            },
            &[],
        )
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Features {
            extra: VIRTIO_F_RING_PACKED
        }
    ));
}

#[test]
fn activate_with_impossible_queues_is_refused_and_not_sent() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    let odd = QueueSetup {
        size: 100,
        ..queue(0)
    };
    let far = QueueSetup {
        index: 64,
        ..queue(0)
    };
    let crooked = QueueSetup {
        available_ring: 0x10_1001,
        ..queue(0)
    };
    // The last byte of the used ring is one too far.
    let outside = QueueSetup {
        used_ring: 0x10_3f7c,
        ..queue(0)
    };
    let around = QueueSetup {
        descriptor_table: !0xff,
        ..queue(0)
    };
    for queues in [
        vec![odd],
        vec![far],
        vec![crooked],
        vec![outside],
        vec![around],
        vec![queue(0), queue(0)],
    ] {
        let error = frontend.activate(&activation(queues), &[]).unwrap_err();
        assert!(matches!(error, Error::Queue { .. }), "{error}");
    }
    let no_memory = Activation {
        queues: vec![queue(0)],
        ..Activation::default()
    };
    let error = frontend.activate(&no_memory, &[]).unwrap_err();
    assert!(matches!(error, Error::MemoryRegions { count: 0, .. }));
    assert_eq!(codes(frontend, backend), [3, 1, 15, 16, 17, 44]);
}

#[test]
fn activate_that_fails_half_way_stops_what_ran() {
    let (mut frontend, backend) = connected(Script {
        nacks: vec![18],
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    let error = frontend
        .activate(&activation(vec![queue(0)]), &[])
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Vhost {
            request: "SET_VRING_ENABLE",
            ..
        }
    ));
    assert_eq!(codes(frontend, backend).last(), Some(&11));
}

#[test]
fn deactivate_returns_where_each_queue_stands() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    let activation = activation(vec![queue(0), queue(1)]);
    frontend.activate(&activation, &[]).unwrap();
    let base = |index| VringBase { index, base: 7 };
    assert_eq!(frontend.deactivate().unwrap(), [base(0), base(1)]);
    assert_eq!(frontend.deactivate().unwrap(), []);
    assert_eq!(codes(frontend, backend)[20..], [18, 11, 18, 11]);
}

#[test]
fn reset_with_the_feature_is_one_message() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.activate(&activation(vec![queue(0)]), &[]).unwrap();
    frontend.reset().unwrap();
    assert_eq!(frontend.deactivate().unwrap(), []);
    assert_eq!(codes(frontend, backend)[14..], [34]);
}

#[test]
fn reset_without_the_feature_stops_ring_by_ring() {
    let (mut frontend, backend) = connected(Script {
        protocol_features: SUPPORTED & !RESET_DEVICE & !STATUS,
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.activate(&activation(vec![queue(0)]), &[]).unwrap();
    frontend.reset().unwrap();
    assert_eq!(codes(frontend, backend)[14..], [18, 11]);
}

#[test]
fn status_follows_the_device_where_it_was_negotiated() {
    let (mut frontend, backend) = connected(Script {
        protocol_features: SUPPORTED & !RESET_DEVICE,
        ..Script::default()
    });
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.activate(&activation(vec![queue(0)]), &[]).unwrap();
    frontend.reset().unwrap();
    drop(frontend);
    let seen = backend.join().unwrap();
    let status: Vec<_> = seen
        .iter()
        .filter(|message| message.code == 39)
        .map(|message| message.payload[0])
        .collect();
    assert_eq!(status, [11, 15, 0]);
}

#[test]
fn requests_with_an_answer_of_their_own_do_not_ask_for_an_ack() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    frontend.read_config(0, 4).unwrap();
    frontend.write_config(0, &[1]).unwrap();
    drop(frontend);
    let acked: Vec<_> = backend
        .join()
        .unwrap()
        .into_iter()
        .filter(|message| message.need_reply)
        .map(|message| message.code)
        .collect();
    assert_eq!(acked, [25]);
}

#[test]
fn open_request_channel_sends_the_descriptor() {
    let (mut frontend, backend) = connected(Script::default());
    frontend.connect(&ConnectOptions::default()).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    frontend.open_request_channel(theirs.as_fd()).unwrap();
    drop(frontend);
    let seen = backend.join().unwrap();
    assert_eq!(
        seen.last(),
        Some(&Seen {
            code: 21,
            need_reply: true,
            payload: Vec::new(),
            descriptors: 1
        })
    );
}
