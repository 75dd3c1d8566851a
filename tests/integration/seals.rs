//! Memory that a backend can take back, and seals against that.

use std::os::fd::AsFd;

use fixture::Script;
use rustix::fs::SealFlags;
use rustix::io::Errno;
use serde_json::json;

use crate::rig::EACCES;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;

#[test]
fn truncated_memory_is_an_error_to_whoever_looks_at_it_and_to_nobody_else() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 8192]);
    assert_eq!(rig.channel.map(0, 0, 0, 2 * PAGE, 1, &memory), 0);
    rustix::fs::ftruncate(&memory, PAGE).expect("a memfd");
    assert_eq!(rig.vm.peek(0, 0, 4), [1; 4], "the page that is left");
    for request in [
        json!({"command": "peek", "shmid": 0, "offset": PAGE, "len": 4}),
        json!({"command": "poke", "shmid": 0, "offset": PAGE, "hex": "00"}),
    ] {
        let reply = rig.vm.ask(&request);
        let error = reply["error"].as_str().expect("a refusal");
        assert!(error.starts_with("region 0 has no memory"), "{error}");
    }
    assert_eq!(rig.channel.unmap(0, 0, 2 * PAGE), 0);
    rig.assert_serves(0);
}

#[test]
fn memory_that_had_to_be_sealed_cant_be_truncated_under_the_guest() {
    let rig = Rig::with(Script::one_region(REGION), |vm| vm.arg("--require-seals"));
    let memory = fixture::memfd(&[7; 4096]);
    rustix::fs::fcntl_add_seals(memory.as_fd(), SealFlags::SHRINK).expect("a seal");
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    assert_eq!(rustix::fs::ftruncate(&memory, 0), Err(Errno::PERM));
    assert_eq!(rig.vm.peek(0, 0, 4), [7; 4]);
}

#[test]
fn memory_sealed_against_writing_is_mapped_for_reading_and_never_copied_to_be_written() {
    for seal in [SealFlags::WRITE, SealFlags::FUTURE_WRITE] {
        let rig = Rig::new();
        let memory = fixture::memfd(&[7; 4096]);
        rustix::fs::fcntl_add_seals(memory.as_fd(), seal).expect("a seal");
        assert_eq!(rig.channel.map(0, 0, 0, PAGE, 1, &memory), EACCES);
        assert_eq!(rig.vm.maps(), []);
        assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
        let poke = json!({"command": "poke", "shmid": 0, "offset": 0, "hex": "00"});
        let reply = rig.vm.ask(&poke);
        let error = reply["error"].as_str().expect("a refusal");
        assert!(error.starts_with("region 0 is mapped read-only"), "{error}");
        assert_eq!(rig.vm.peek(0, 0, 4), [7; 4]);
    }
}
