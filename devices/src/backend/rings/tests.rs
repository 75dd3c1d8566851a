//! Rings without a main channel: in whatever order the frontend says things.

use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;
use rustix::fs::memfd_create;
use vm_memory::GuestMemoryBackend;

use super::*;

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const BYTES: u64 = 0x10_000;
const FEATURES: u64 = VERSION_1 | PROTOCOL_FEATURES;

const ADDRESSES: RingAddresses = RingAddresses {
    descriptors: USER + 0x1000,
    available: USER + 0x2000,
    used: USER + 0x3000,
};

/// Holds the ring that runs, and counts.
#[derive(Default)]
struct Holder {
    ring: Option<Ring>,
    starts: u32,
    stops: u32,
}

impl RingDevice for Holder {
    fn start(&mut self, index: u16, ring: Ring) -> io::Result<()> {
        assert_eq!(index, 0);
        assert!(self.ring.is_none());
        self.starts += 1;
        self.ring = Some(ring);
        Ok(())
    }

    fn stop(&mut self, index: u16) -> io::Result<Ring> {
        assert_eq!(index, 0);
        self.stops += 1;
        self.ring.take().ok_or_else(|| invalid("it does not run"))
    }
}

fn memory() -> (VhostUserMemoryRegion, File) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(BYTES).expect("it grows");
    (VhostUserMemoryRegion::new(GUEST, BYTES, USER, 0), file)
}

fn eventfd() -> File {
    let event = Event::new().expect("an event");
    File::from(event.as_fd().try_clone_to_owned().expect("a duplicate"))
}

/// One of the messages that a ring needs before it runs.
fn tell(rings: &mut Rings, device: &mut Holder, step: u8) {
    let told = match step {
        0 => {
            let (region, file) = memory();
            rings.set_memory(&[region], vec![file], device)
        }
        1 => rings.set_size(0, 64, device),
        2 => rings.set_addresses(0, ADDRESSES, device),
        3 => rings.set_kick(0, Some(eventfd()), device),
        _ => rings.set_enabled(0, true, device),
    };
    told.expect("it is taken");
}

fn running() -> (Rings, Holder) {
    let (mut rings, mut device) = (Rings::new(1), Holder::default());
    rings.set_features(FEATURES, &mut device).expect("taken");
    (0..5).for_each(|step| tell(&mut rings, &mut device, step));
    assert!(device.ring.is_some());
    (rings, device)
}

#[track_caller]
fn check_refused<T>(result: io::Result<T>, text: &str) {
    let error = result.map(drop).expect_err("a refusal");
    assert_eq!(error.to_string(), text);
}

#[test]
fn ring_runs_once_all_is_known_whatever_comes_last() {
    for last in 0..5 {
        let (mut rings, mut device) = (Rings::new(1), Holder::default());
        rings.set_features(FEATURES, &mut device).expect("taken");
        for step in (0..5).filter(|step| *step != last) {
            tell(&mut rings, &mut device, step);
            assert!(device.ring.is_none(), "after {step}, before {last}");
        }
        tell(&mut rings, &mut device, last);
        let ring = device.ring.as_ref().expect("it runs");
        assert_eq!(ring.queue.desc_table(), GUEST + 0x1000);
        assert_eq!(ring.queue.avail_ring(), GUEST + 0x2000);
        assert_eq!(ring.queue.used_ring(), GUEST + 0x3000);
        assert_eq!((ring.queue.size(), ring.queue.next_avail()), (64, 0));
    }
}

#[test]
fn ring_of_a_frontend_without_protocol_features_needs_no_enabling() {
    let (mut rings, mut device) = (Rings::new(1), Holder::default());
    rings.set_features(VERSION_1, &mut device).expect("taken");
    (0..4).for_each(|step| tell(&mut rings, &mut device, step));
    assert!(device.ring.is_some());
}

#[test]
fn disabled_ring_goes_on_where_it_was() {
    let (mut rings, mut device) = running();
    let ring = device.ring.as_mut().expect("it runs");
    ring.queue.set_next_avail(5);
    rings.set_enabled(0, false, &mut device).expect("taken");
    assert!(device.ring.is_none());
    rings.set_enabled(0, true, &mut device).expect("taken");
    let ring = device.ring.as_ref().expect("it runs");
    assert_eq!(ring.queue.next_avail(), 5);
    assert_eq!((device.starts, device.stops), (2, 1));
}

#[test]
fn ring_whose_base_is_taken_stops_until_the_next_kick() {
    let (mut rings, mut device) = running();
    let ring = device.ring.as_mut().expect("it runs");
    ring.queue.set_next_avail(0xffff);
    assert_eq!(rings.take_base(0, &mut device).expect("a base"), 0xffff);
    rings.set_enabled(0, true, &mut device).expect("taken");
    assert!(device.ring.is_none());
    rings.set_base(0, 7).expect("taken");
    tell(&mut rings, &mut device, 3);
    let ring = device.ring.as_ref().expect("it runs");
    assert_eq!(ring.queue.next_avail(), 7);
}

#[test]
fn base_of_a_ring_that_never_ran_is_the_one_that_was_set() {
    let (mut rings, mut device) = (Rings::new(1), Holder::default());
    rings.set_base(0, 9).expect("taken");
    assert_eq!(rings.take_base(0, &mut device).expect("a base"), 9);
    assert_eq!(device.stops, 0);
}

#[test]
fn new_memory_reaches_a_running_ring_without_stopping_it() {
    let (mut rings, mut device) = running();
    let (region, file) = memory();
    let twice = VhostUserMemoryRegion::new(GUEST + BYTES, BYTES, USER + BYTES, 0);
    let again = file.try_clone().expect("a duplicate");
    rings
        .set_memory(&[region, twice], vec![file, again], &mut device)
        .expect("taken");
    assert_eq!((device.starts, device.stops), (1, 0));
    let ring = device.ring.as_ref().expect("it runs");
    assert_eq!(ring.memory.memory().iter().count(), 2);
}

#[test]
fn call_can_change_and_go_under_a_running_ring() {
    let (mut rings, device) = running();
    let call = Event::new().expect("an event");
    let sent = File::from(call.as_fd().try_clone_to_owned().expect("a duplicate"));
    let ring = device.ring.as_ref().expect("it runs");
    ring.call.signal().expect("nobody to signal is no error");
    rings.set_call(0, Some(sent)).expect("taken");
    ring.call.signal().expect("signals");
    call.wait().expect("a signal");
    rings.set_call(0, None).expect("taken");
    ring.call.signal().expect("nobody to signal is no error");
    let again = call.wait_timeout(std::time::Duration::ZERO);
    assert_eq!(again, Ok(base::EventWaitResult::TimedOut));
}

#[test]
fn reset_forgets_rings() {
    let (mut rings, mut device) = running();
    device.ring = None;
    rings.reset();
    assert_eq!(device.stops, 0);
    tell(&mut rings, &mut device, 4);
    assert!(device.ring.is_none());
}

#[test]
fn ring_that_can_not_be_is_refused() {
    let (mut rings, mut device) = running();
    for size in [0, 3, 2048, 0x1_0000] {
        let result = rings.set_size(0, size, &mut device);
        check_refused(result, "a ring's size is a power of two up to 1024");
    }
    check_refused(rings.set_base(0, 0x1_0000), "the base of a packed ring");
    check_refused(rings.set_base(0, 1), "the base of a ring that runs");
    check_refused(rings.set_base(1, 1), "no such ring");
    let result = rings.set_kick(0, None, &mut device);
    check_refused(result, "a ring without a kick");
    assert_eq!(device.stops, 0);
}

#[test]
fn ring_that_can_not_start_is_set_up_anew() {
    let outside = "an address that is not in the guest's memory";
    let overhanging = "a ring that is not in the guest's memory";
    for (used, text) in [
        (USER - 1, outside),
        (USER + BYTES, outside),
        (0, outside),
        (u64::MAX, outside),
        (USER + BYTES - 4, overhanging),
    ] {
        let (mut rings, mut device) = running();
        let addresses = RingAddresses { used, ..ADDRESSES };
        check_refused(rings.set_addresses(0, addresses, &mut device), text);
        assert!(device.ring.is_none());
        let features = rings.set_features(FEATURES, &mut device);
        features.expect("that has nothing to do with the ring");
        tell(&mut rings, &mut device, 2);
        assert!(device.ring.is_none());
        tell(&mut rings, &mut device, 3);
        assert!(device.ring.is_some());
    }
}
