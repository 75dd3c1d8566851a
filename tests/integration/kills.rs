//! A thousand violent deaths in one VM: of the backend or of the device process, at random moments of the load.

use std::time::Duration;
use std::time::Instant;

use fixture::Dice;
use fixture::Leftovers;
use fixture::Process;
use fixture::TestVm;
use rustix::process::Signal;

use crate::rig::BINARY;
use crate::rig::files_backend;

/// Decides who dies when.
const SEED: u64 = 0x5eed;
const KILLS: u32 = 1_000;
/// A life of the VMM's device is compared with an earlier one after so many.
const COUNT_EVERY: u32 = 50;
/// What the backend maps as soon as it is connected: that is the load.
const FILES: u32 = 64;

#[test]
fn thousand_kills_under_load_leave_nothing_and_the_next_device_works() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    std::fs::create_dir(&files).expect("a directory");
    for index in 0..FILES {
        std::fs::write(files.join(index.to_string()), "content").expect("a file");
    }
    let socket = dir.path().join("socket");
    let start = || files_backend(&socket, &files, &[]);
    let mut backend: Process = start();
    let mut vm = TestVm::without_guest(BINARY, &socket)
        .arg("--restart")
        .arg("on-failure")
        .start();
    let vmm = vm.process.pid();
    let mut random = Dice::new(SEED);
    let mut before = None;
    // From the device process's death, and from the backend's return, until the device is served again.
    let mut back = [Vec::new(), Vec::new()];
    let mut since = None;
    for kill in 1..=KILLS {
        let serving = vm.serving();
        if let Some((victim, moment)) = since.take() {
            let times: &mut Vec<Duration> = &mut back[victim];
            times.push(Instant::now().duration_since(moment));
        }
        let is_counted = kill % COUNT_EVERY == 0;
        // So that the counted life has a backend that was never ready before.
        let is_next_counted = (kill + 1) % COUNT_EVERY == 0;
        if is_counted {
            all_mapped(&mut backend, &vm);
        }
        // From before the backend's first request until after its last one.
        let moment = Instant::now() + Duration::from_micros(random.below(4_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        if !is_counted && !is_next_counted && !random.once_in(3) {
            // It lives on, and tells of each file in each life.
            backend.discard_output();
            let device = serving["device_pid"].as_u64().expect("a pid");
            fixture::signal_pid(u32::try_from(device).expect("a pid"), Signal::KILL);
            since = Some((0, Instant::now()));
            vm.process.event("device_ended");
            continue;
        }
        backend.signal(Signal::KILL);
        backend.wait();
        vm.process.event("device_ended");
        if is_counted {
            // Nothing is left of fifty lives while the VMM waits for a backend.
            vm.process.event("waiting");
            assert_eq!(vm.maps(), []);
            let look = || drop(vm.status());
            let before = before.get_or_insert_with(|| Leftovers::at_rest(vmm, look));
            Leftovers::settle(vmm, before, look);
        }
        std::fs::remove_file(&socket).expect("the dead socket");
        backend = start();
        since = Some((1, Instant::now()));
    }
    for (victim, times) in ["device process", "backend"].iter().zip(&mut back) {
        times.sort_unstable();
        println!(
            "{} kills of the {victim}; served again after {:?} (median), {:?} (worst)",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1],
        );
    }
    vm.serving();
    all_mapped(&mut backend, &vm);
}

/// Waits until the backend has mapped all of its files in its first life.
fn all_mapped(backend: &mut Process, vm: &TestVm) {
    assert_eq!(backend.event("ready")["mapped"], FILES);
    assert_eq!(vm.maps().len(), FILES as usize);
}
