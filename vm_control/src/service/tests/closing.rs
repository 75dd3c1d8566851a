//! Devices whose descriptors take long to close.

use std::io::ErrorKind;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::channel;
use std::time::Duration;

use base::Event;
use base::SafeDescriptor;
use base::Tube;
use base::WaitContext;
use rustix::net::sockopt::set_socket_linger;

use super::fixture::*;
use crate::ArenaVm;
use crate::DeviceId;
use crate::GoneReason;
use crate::MAX_BATCH;
use crate::MapOperation;
use crate::RegionConfig;
use crate::RegionKey;
use crate::ServiceConfig;
use crate::Vm;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;

/// A VM whose preparing of a region lasts until the test says so: whatever a test sends meanwhile is received afterwards.
struct Gated {
    inner: ArenaVm,
    gate: Receiver<()>,
}

impl Vm for Gated {
    fn add_region(&mut self, region: RegionKey, config: &RegionConfig) -> base::Result<()> {
        self.inner.add_region(region, config)
    }

    fn remove_region(&mut self, region: RegionKey) {
        self.inner.remove_region(region);
    }

    fn prepare(&mut self, region: RegionKey) -> base::Result<()> {
        self.gate.recv().expect("the test opens the gate");
        self.inner.prepare(region)
    }

    fn map(&mut self, operation: &MapOperation<'_>) -> base::Result<()> {
        self.inner.map(operation)
    }

    fn unmap(&mut self, region: RegionKey, offset: u64, footprint: u64) -> base::Result<()> {
        self.inner.unmap(region, offset, footprint)
    }

    fn clear(&mut self, region: RegionKey, len: u64) -> base::Result<()> {
        self.inner.clear(region, len)
    }
}

/// A device that misbehaves, beside one that does not.
struct Setup {
    fixture: Fixture,
    id: DeviceId,
    tube: Tube,
    other: Tube,
    /// While it lives, the misbehaving device's first descriptor does not close.
    peer: TcpStream,
}

impl Setup {
    fn new(closing_patience: Duration) -> Self {
        let (gate, receiver) = channel();
        let vm = Gated {
            inner: ArenaVm::new(),
            gate: receiver,
        };
        let config = ServiceConfig {
            closing_patience,
            ..ServiceConfig::default()
        };
        let mut fixture = Fixture::with(Box::new(vm), config);
        let (_, other, _arena) = fixture.add_bare(named("fs1"));
        let (id, tube, _arena) = fixture.add_bare(named("fs0"));
        let (socket, peer) = lingering();
        // The service has to be the last who closes the socket.
        let prepare = VmMemoryRequest::PrepareRegion { shmid: 0 };
        other.send(&batch([prepare])).expect("sent");
        tube.send(&batch([map_request(socket, 0)])).expect("sent");
        gate.send(()).expect("the service waits");
        assert_eq!(received(&other), [VmMemoryResponse::Ok]);
        assert_eq!(received(&tube), [refused(libc::EBADF)]);
        Self {
            fixture,
            id,
            tube,
            other,
            peer,
        }
    }

    /// Sends events, which are refused and which the service's own thread does not close.
    fn send_events(&self) {
        let event = Event::new().expect("an event");
        let events = (0..MAX_BATCH as u64).map(|page| {
            let event = event.try_clone().expect("a duplicate");
            map_request(event, page)
        });
        self.tube.send(&batch(events)).expect("sent");
    }

    /// Lets the service look at every tube once, and some of them twice.
    fn pass(&self) {
        for _ in 0..2 {
            self.other.send(&batch([unmap_request(0)])).expect("sent");
            assert_eq!(received(&self.other), [refused(libc::ENOENT)]);
        }
    }

    fn is_answered(&self) -> bool {
        let tube = WaitContext::build_with(&[(&self.tube, 0u32)]).expect("a wait context");
        let ready = tube.wait_timeout(Duration::ZERO).expect("it waits");
        !ready.is_empty()
    }
}

/// A socket whose closing takes a minute, or as long as there is the other one: what it sent does not get there.
fn lingering() -> (SafeDescriptor, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut socket = TcpStream::connect(address).expect("connects");
    let (peer, _) = listener.accept().expect("accepts");
    set_socket_linger(&socket, Some(Duration::from_secs(60))).expect("lingers");
    socket.set_nonblocking(true).expect("a socket");
    let full = loop {
        if let Err(error) = socket.write(&[0; 1 << 16]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    (OwnedFd::from(socket).into(), peer)
}

#[test]
fn device_whose_descriptors_close_slowly_waits_for_them_and_stays() {
    let setup = Setup::new(TIMEOUT);
    let mut answered = 0;
    loop {
        setup.send_events();
        setup.pass();
        if !setup.is_answered() {
            break;
        }
        assert_eq!(received(&setup.tube), [refused(libc::EBADF); MAX_BATCH]);
        answered += 1;
        assert!(answered < 100, "it is served for ever");
    }
    // 128 wait behind the first one then.
    assert_eq!(answered, 4);
    // The connection is reset; there is nothing to linger for.
    drop(setup.peer);
    assert_eq!(received(&setup.tube), [refused(libc::EBADF); MAX_BATCH]);
    let map = map_request(memfd(PAGE, 1), 0);
    setup.tube.send(&batch([map])).expect("sent");
    assert_eq!(received(&setup.tube), [VmMemoryResponse::Ok]);
}

#[test]
fn device_whose_descriptors_do_not_close_is_dropped() {
    let setup = Setup::new(Duration::ZERO);
    let map = map_request(memfd(PAGE, 1), 0);
    setup.tube.send(&batch([map])).expect("sent");
    assert_eq!(received(&setup.tube), [VmMemoryResponse::Ok]);
    let (watch, pipe) = watched();
    for _ in 0..4 {
        setup.send_events();
    }
    setup
        .tube
        .send(&batch([map_request(pipe, 1)]))
        .expect("sent");
    let gone = setup.fixture.wait_gone();
    assert_eq!(gone.mappings, 1);
    assert!(
        matches!(gone.reason, GoneReason::Stalls),
        "{:?}",
        gone.reason
    );
    // What it sent and nobody looked at is closed, too.
    assert_closed(&watch);
    setup.pass();
}

#[test]
fn device_removed_while_it_waits_leaves_nothing() {
    let setup = Setup::new(TIMEOUT);
    for _ in 0..4 {
        setup.send_events();
        assert_eq!(received(&setup.tube), [refused(libc::EBADF); MAX_BATCH]);
    }
    let (watch, pipe) = watched();
    setup
        .tube
        .send(&batch([map_request(pipe, 0)]))
        .expect("sent");
    setup.pass();
    assert!(!setup.is_answered());
    let removed = setup.fixture.handle.remove_device(setup.id);
    assert_eq!(removed.expect("known").mappings, 0);
    assert_closed(&watch);
    setup.pass();
}
