//! Devices whose descriptors take long to close.

use std::io::IoSlice;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::channel;
use std::time::Duration;

use base::Event;
use base::SafeDescriptor;
use base::Tube;
use base::WaitContext;
use base::scm;
use base::scm::Wait;
use fixture::lingering_socket;

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
    /// While it lives, the misbehaving device's first descriptor does not close. Dropped first, so that a service that waits for it
    /// ends.
    peer: TcpStream,
    fixture: Fixture,
    id: DeviceId,
    tube: Tube,
    other: Tube,
}

impl Setup {
    /// The misbehaving device asks to map a socket, which is refused.
    fn new(closing_patience: Duration) -> Self {
        let setup = Self::with(closing_patience, |tube, socket| {
            tube.send(&batch([map_request(socket, 0)])).expect("sent");
        });
        assert_eq!(received(&setup.tube), [refused(libc::EBADF)]);
        setup
    }

    /// `send` sends the socket that does not close, in whatever way.
    fn with(closing_patience: Duration, send: impl FnOnce(&Tube, SafeDescriptor)) -> Self {
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
        let (socket, peer) = lingering_socket();
        // The service has to be the last who closes the socket.
        let prepare = VmMemoryRequest::PrepareRegion { shmid: 0 };
        other.send(&batch([prepare])).expect("sent");
        send(&tube, socket.into());
        gate.send(()).expect("the service waits");
        other.set_recv_timeout(Some(TIMEOUT)).expect("a tube");
        assert_eq!(received(&other), [VmMemoryResponse::Ok]);
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
    setup.pass();
    // What it sent and nobody looked at is closed in its turn.
    drop(setup.peer);
    assert_closed(&watch);
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
    setup.pass();
    drop(setup.peer);
    assert_closed(&watch);
}

#[test]
fn descriptors_beyond_what_a_batch_can_have_hold_up_nobody() {
    let setup = Setup::with(TIMEOUT, |tube, socket| {
        let (_, pipe) = watched();
        let mut many = vec![pipe.as_fd(); MAX_BATCH];
        many.push(socket.as_fd());
        scm::send(tube.as_fd(), &[IoSlice::new(&[0; 2])], &many, Wait::Never).expect("sent");
    });
    setup.pass();
    let gone = setup.fixture.wait_gone();
    assert_eq!(gone.id, setup.id);
    assert!(
        matches!(gone.reason, GoneReason::Protocol(_)),
        "{:?}",
        gone.reason
    );
}
