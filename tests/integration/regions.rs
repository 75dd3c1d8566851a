//! What a backend may say of its regions.

use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;

use crate::rig::BINARY;
use crate::rig::ENXIO;
use crate::rig::ERANGE;
use crate::rig::PAGE;
use crate::rig::Rig;

#[test]
fn regions_with_gaps_are_separate() {
    let script = Script::regions(&[(0, 1 << 20), (3, 2 << 20), (255, PAGE)]);
    let rig = Rig::with(script, |vm| vm);
    let regions = rig.vm.status()["regions"].clone();
    let ids: Vec<_> = regions
        .as_array()
        .expect("a list")
        .iter()
        .map(|region| (region["shmid"].as_u64(), region["len"].as_u64()))
        .collect();
    let want = [(0, 1 << 20), (3, 2 << 20), (255, PAGE)];
    assert_eq!(ids, want.map(|(shmid, len)| (Some(shmid), Some(len))));
    let memory = fixture::memfd(&[3; 4096]);
    for shmid in [0, 3, 255] {
        assert_eq!(rig.channel.map(shmid, 0, 0, PAGE, 0, &memory), 0);
        assert_eq!(rig.vm.peek(shmid, 0, 1), [3]);
    }
    for shmid in [1, 2, 4, 254] {
        assert_eq!(rig.channel.map(shmid, 0, 0, PAGE, 0, &memory), ENXIO);
    }
    assert_eq!(rig.channel.map(0, 1 << 20, 0, PAGE, 0, &memory), ERANGE);
    assert_eq!(rig.channel.map(3, 1 << 20, 0, PAGE, 0, &memory), 0);
    assert_eq!(rig.channel.map(255, PAGE, 0, PAGE, 0, &memory), ERANGE);
    assert_eq!(rig.vm.maps(), [(0, 0), (3, 0), (3, 1 << 20), (255, 0)]);
}

/// A backend whose answer to `GET_SHMEM_CONFIG` is hostile: the device ends, the VMM goes on and says why.
#[track_caller]
fn check_refused(what: &str, payload: Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut script = Script::one_region(PAGE);
    script.answers.push((44, payload));
    let backend = ScriptedBackend::listen(dir.path(), "backend", script);
    let mut vm = TestVm::without_guest(BINARY, backend.path()).start();
    let ended = vm.process.event("device_ended");
    assert_eq!(ended["dropped"], 0, "{what}: {ended}");
    let status = vm.status();
    assert_eq!(status["state"], "ended", "{what}: {status}");
    assert_eq!(status["ended"], ended["how"], "{what}");
    assert_eq!(vm.maps(), [], "{what}");
}

fn sizes(of: &[(usize, u64)]) -> [u64; 256] {
    let mut sizes = [0; 256];
    for &(shmid, size) in of {
        sizes[shmid] = size;
    }
    sizes
}

#[test]
fn hostile_region_lists_end_the_device_and_not_the_vmm() {
    let payload = |count, of: &[(usize, u64)]| fixture::shmem_config_payload(count, &sizes(of));
    check_refused("a count of 257", payload(257, &[(0, PAGE)]));
    check_refused("a count that is too large", payload(2, &[(0, PAGE)]));
    check_refused("a count that is too small", payload(0, &[(0, PAGE)]));
    check_refused("a size that is not pages", payload(1, &[(0, 4097)]));
    check_refused(
        "a size that no address space has",
        payload(1, &[(0, !4095)]),
    );
    check_refused(
        "sizes whose sum overflows",
        payload(2, &[(0, 1 << 63), (1, 1 << 63)]),
    );
    check_refused(
        "256 huge regions",
        fixture::shmem_config_payload(256, &[1 << 40; 256]),
    );
}

#[test]
fn answers_of_a_wrong_length_end_the_device_and_not_the_vmm() {
    let good = fixture::shmem_config_payload(1, &sizes(&[(0, PAGE)]));
    check_refused("a short answer", good[..2048].to_vec());
    check_refused("a long answer", [good, vec![0; 8]].concat());
}

#[test]
fn backend_without_regions_is_served_and_maps_nothing() {
    let rig = Rig::with(Script::regions(&[]), |vm| vm);
    let memory = fixture::memfd(&[3; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), ENXIO);
    assert_eq!(rig.channel.request(2, &[], &[]), 0);
}
