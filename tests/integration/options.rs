//! The options of `portcullis run` that change what a backend may do.

use std::os::fd::AsFd;

use fixture::Script;
use rustix::fs::SealFlags;

use crate::rig::EBADF;
use crate::rig::EDQUOT;
use crate::rig::ENOENT;
use crate::rig::EPERM;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;

#[test]
fn mappings_past_the_limit_are_refused_and_others_stay() {
    let rig = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--max-mappings").arg("3")
    });
    let memory = fixture::memfd(&[1; 4096]);
    for index in 0..3 {
        assert_eq!(rig.channel.map(0, index * PAGE, 0, PAGE, 0, &memory), 0);
    }
    assert_eq!(rig.channel.map(0, 3 * PAGE, 0, PAGE, 0, &memory), EDQUOT);
    assert_eq!(rig.channel.unmap(0, PAGE, PAGE), 0);
    assert_eq!(rig.channel.map(0, 3 * PAGE, 0, PAGE, 0, &memory), 0);
    assert_eq!(rig.vm.maps(), [(0, 0), (0, 2 * PAGE), (0, 3 * PAGE)]);
}

#[test]
fn bytes_past_the_limit_are_refused() {
    let rig = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--max-bytes").arg("12K")
    });
    let memory = fixture::memfd(&[1; 16384]);
    assert_eq!(rig.channel.map(0, 0, 0, 2 * PAGE, 0, &memory), 0);
    assert_eq!(
        rig.channel.map(0, 4 * PAGE, 0, 2 * PAGE, 0, &memory),
        EDQUOT
    );
    // One byte is one page.
    assert_eq!(rig.channel.map(0, 4 * PAGE, 0, 1, 0, &memory), 0);
    assert_eq!(rig.channel.map(0, 8 * PAGE, 0, 1, 0, &memory), EDQUOT);
}

#[test]
fn unsealed_memory_is_refused_where_seals_are_required() {
    let rig = Rig::with(Script::one_region(REGION), |vm| vm.arg("--require-seals"));
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), EPERM);
    let file = fixture::file(&rig.dir.path().join("file"), &[1; 4096]);
    // A file can't be sealed: a kind that is not allowed.
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &file), EBADF);
    rustix::fs::fcntl_add_seals(memory.as_fd(), SealFlags::SHRINK).expect("a seal");
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
}

#[test]
fn unmap_by_offset_alone_is_an_option() {
    let strict = Rig::new();
    let memory = fixture::memfd(&[1; 8192]);
    assert_eq!(strict.channel.map(0, 0, 0, 8192, 0, &memory), 0);
    assert_eq!(strict.channel.unmap(0, 0, 1), ENOENT);
    let lax = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--offset-only-unmap")
    });
    assert_eq!(lax.channel.map(0, 0, 0, 8192, 0, &memory), 0);
    assert_eq!(lax.channel.unmap(0, 0, 1), 0);
    assert_eq!(lax.vm.maps(), []);
}

#[test]
fn length_that_is_no_multiple_of_a_page_is_unmapped_by_either_length() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 0x70800]);
    for unmap in [0x70800, 0x71000] {
        assert_eq!(rig.channel.map(0, 0, 0, 0x70800, 0, &memory), 0);
        assert_eq!(rig.channel.unmap(0, 0, unmap), 0, "{unmap:#x}");
    }
}

#[test]
fn once_ends_the_vmm_with_its_device() {
    let mut rig = Rig::with(Script::one_region(REGION), |vm| vm.arg("--once"));
    rig.backend.hang_up();
    rig.vm.process.event("device_ended");
    assert_eq!(rig.vm.process.event("stopped")["reason"], "once");
    rig.vm.process.wait();
}

#[test]
fn wait_takes_a_backend_that_comes_later() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut vm = fixture::TestVm::without_guest(crate::rig::BINARY, &dir.path().join("backend"))
        .arg("--wait")
        .start();
    vm.process.event("waiting");
    let backend =
        fixture::ScriptedBackend::listen(dir.path(), "backend", Script::one_region(REGION));
    vm.serving();
    let channel = backend.request_socket();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(channel.map(0, 0, 0, PAGE, 0, &memory), 0);
}
