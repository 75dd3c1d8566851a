//! The jail of a real device process, read from `/proc` by somebody else.

use std::collections::BTreeMap;
use std::fs;

use fixture::Script;

use crate::rig::REGION;
use crate::rig::Rig;
use crate::rig::device_pid;

fn status_of(pid: u32) -> BTreeMap<String, String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .expect("a process")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn every_thread_is_locked_down() {
    let rig = Rig::new();
    let pid = device_pid(&rig.vm.status());
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a process") {
        let task = task.expect("a thread").file_name();
        let thread: u32 = task.to_string_lossy().parse().expect("a number");
        let status = status_of(thread);
        assert_eq!(status["Seccomp"], "2");
        assert_eq!(status["NoNewPrivs"], "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
        threads += 1;
    }
    assert!(threads >= 2, "the main thread and the worker: {threads}");
}

#[test]
fn every_namespace_is_its_own() {
    let rig = Rig::new();
    let pid = device_pid(&rig.vm.status());
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a namespace");
        assert_ne!(of(pid), of(rig.vm.process.pid()), "{name}");
    }
}

#[test]
fn root_is_empty_and_read_only() {
    let rig = Rig::new();
    let pid = device_pid(&rig.vm.status());
    let entries: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))
        .expect("its root")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(entries, Vec::<std::path::PathBuf>::new());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).expect("its mounts");
    let roots: Vec<_> = mounts.lines().collect();
    assert_eq!(roots.len(), 1, "{mounts}");
    let options = roots[0].split(' ').nth(3).expect("options");
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
}

#[test]
fn descriptors_are_the_named_ones_and_none_has_a_path() {
    let rig = Rig::new();
    let pid = device_pid(&rig.vm.status());
    let mut descriptors = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors") {
        let link = entry.expect("a descriptor").path();
        let target = fs::read_link(&link).expect("a link");
        let target = target.to_string_lossy();
        let is_known = ["socket:", "anon_inode:", "pipe:", "/dev/null"]
            .iter()
            .any(|kind| target.starts_with(kind));
        assert!(is_known, "{}: {target}", link.display());
        descriptors += 1;
    }
    assert!(descriptors <= 32, "{descriptors} descriptors");
}

#[test]
fn limits_are_set_and_nothing_is_dumped() {
    let rig = Rig::new();
    let pid = device_pid(&rig.vm.status());
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let hard = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name));
        let fields: Vec<_> = line.expect("a limit")[name.len()..]
            .split_ascii_whitespace()
            .collect();
        fields[1].to_owned()
    };
    assert_eq!(hard("Max core file size"), "0");
    assert_eq!(hard("Max file size"), "0");
    let arguments = fs::read(format!("/proc/{pid}/environ"));
    assert!(
        arguments.as_ref().map_or(true, |environment| {
            !String::from_utf8_lossy(environment).contains("PATH=")
        }),
        "{arguments:?}"
    );
}

#[test]
fn serving_event_shows_the_same_as_proc() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backend =
        fixture::ScriptedBackend::listen(dir.path(), "backend", Script::one_region(REGION));
    let mut vm = fixture::TestVm::without_guest(crate::rig::BINARY, backend.path()).start();
    let jail = vm.serving()["jail"].clone();
    assert_eq!(jail["seccomp"], 2, "{jail}");
    assert_eq!(jail["no_new_privs"], 1, "{jail}");
    assert_eq!(jail["cap_eff"], "0000000000000000", "{jail}");
}

#[test]
fn weaker_jails_are_what_they_are_called() {
    let seccomp = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--sandbox").arg("seccomp")
    });
    let pid = device_pid(&seccomp.vm.status());
    assert_eq!(status_of(pid)["Seccomp"], "2");
    seccomp.assert_serves(0);
    let none = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--sandbox").arg("none")
    });
    let pid = device_pid(&none.vm.status());
    assert_eq!(status_of(pid)["Seccomp"], "0");
    none.assert_serves(0);
}

#[test]
fn strict_kill_mode_serves_as_well() {
    let rig = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--seccomp").arg("kill")
    });
    rig.assert_serves(0);
}
